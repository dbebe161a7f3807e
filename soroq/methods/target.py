"""What a layer aims for behind quantized layers: its original output, not its original weight.

Behind quantized layers a linear sees x instead of the x̄ that the unquantized model sees. The
weight that best turns x into the original output solves, with a ridge towards W,

    min_W′ Σ ‖W′x − W x̄‖² + λ‖W′ − W‖²   ⇒   W′ = W + W (Σ x̄xᵀ − Σ xxᵀ)(Σ xxᵀ + λI)⁻¹

and minimizing ‖(W′ − Ŵ) X‖² with any solver then minimizes the distance to the original output.
The same aim as GPTAQ's asymmetric calibration (arXiv 2504.02692, eq. 6), reached by changing the
target once instead of the solver's inner loop.
"""

import torch

from soroq.core.errors import NumericsError


def corrected_weight(
    weight: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, *, ridge: float
) -> torch.Tensor:
    """Return W′ (N, K) float32 for W (N, K), hessian Σ xxᵀ and cross Σ x x̄ᵀ (K, K).

    λ = ridge · mean diag H. Raises NumericsError when the system can't be solved.
    """
    damped = hessian.clone()
    damped.diagonal().add_(ridge * hessian.diagonal().mean().clamp_min(1e-12))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise NumericsError("the Hessian can't be factorized; use more calibration tokens or ridge")
    right = (cross - hessian) @ weight.float().t()  # (Σ x x̄ᵀ − H) Wᵀ, (K, N)
    return weight.float() + torch.cholesky_solve(right, factor).t()
