"""GPTQ: choose codes one column at a time, spreading each column's error over those not yet chosen.

arXiv 2210.17323, algorithm 1, with H = Σ xxᵀ of the calibration inputs: minimizes
‖(W − Ŵ) X‖² = tr((W − Ŵ) H (W − Ŵ)ᵀ). Pure function of (weight, hessian, ranges).

Differs: columns are visited by falling diag(H) (act_order) but scales belong to the groups of the
original order and are fixed before ("static groups"), so codes go back to their places and no g_idx
is stored; damping grows tenfold until the factorization exists; dead columns (H_kk = 0) are
rounded to nearest.
"""

import torch

from soroq.core.errors import NumericsError
from soroq.core.qtensor import QuantizedTensor
from soroq.methods.grid import Grid, round_to_grid

BLOCK_COLUMNS = 32  # columns updated one by one between two matrix products
MAX_DAMP_RATIO = 1.0


def quantize_gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    *,
    damp_ratio: float = 0.01,
    act_order: bool = True,
) -> QuantizedTensor:
    """Return the codes of W (N, K) on a given grid.

    hessian (K, K) float32 is not changed. Raises NumericsError when it can't be factorized.
    """
    K = weight.shape[1]
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(K)
    factor = inverse_factor(hessian, damp_ratio, order)
    offsets = grid.full_offsets()
    # transposed, (K, N): what the loop touches lies together in memory
    remaining = weight.float().t()[order]
    step = grid.full_steps().t()[order]
    offset = None if offsets is None else offsets.t()[order]
    chosen = torch.empty_like(remaining)
    for start in range(0, K, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, K)
        part = remaining[start:stop]
        errors = torch.empty_like(part)
        local = factor[start:stop, start:stop]
        for j in range(stop - start):
            k = start + j
            value = round_to_grid(
                part[j], step[k], None if offset is None else offset[k], grid.args
            )
            torch.sub(part[j], value, out=errors[j]).div_(local[j, j])
            part[j + 1 :].addr_(local[j, j + 1 :], errors[j], alpha=-1)
            chosen[k] = value
        remaining[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    values = torch.empty_like(chosen)
    values[order] = chosen
    return grid.encode(values.t().contiguous())


def inverse_factor(hessian: torch.Tensor, damp_ratio: float, order: torch.Tensor) -> torch.Tensor:
    """Return upper-triangular U (K, K) with UᵀU = (H + λI)⁻¹, columns in `order`.

    λ = damp_ratio · mean diag H; it grows tenfold, up to the mean itself, until the Cholesky
    factorization succeeds. Raises NumericsError when it never does.
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    ratio = damp_ratio
    while ratio <= MAX_DAMP_RATIO:
        damped = hessian[order][:, order]
        damped.diagonal().add_(ratio * mean)
        damped.diagonal()[diagonal[order] == 0] = mean if mean > 0 else 1.0
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped  # K = 21,504 is 1.8 GB: hold as few of these as possible
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper: torch.Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        ratio *= 10
    raise NumericsError(
        f"the Hessian ({hessian.shape[0]} columns) is not positive definite even with damping "
        f"{MAX_DAMP_RATIO}; use more calibration tokens"
    )
