"""Products and gathers with weights in panels: torch tensors in and out, the work in soroq._cpu.

Three precisions. "exact": activations stay float32. "int8": they are rounded to 8 bits for each
token and chunk of at most 128 columns, all but the quads of four columns with the two greatest
values, which keep 15, and multiplied as integers. "int16": all to 15 bits, in two planes of 8: twice
the multiplications, but the same time where memory is what a product waits for.
A chunk with a value that isn't finite gives NaN. Results don't depend on the number of threads.
"""

import torch

from soroq.kernels.panels import PanelWeight, is_built
from soroq.kernels.problem import Problem


def can_use_panels(problem: Problem) -> str:
    """Return '' when soroq._cpu can run the problem, otherwise why not."""
    if not is_built():
        return "soroq._cpu is not built"
    if problem.grad:
        return "soroq._cpu has no backward"
    return ""


def matmul_panels(
    x: torch.Tensor,
    weight: PanelWeight,
    *,
    precision: str,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ + bias + residual in x's dtype, summed in float32."""
    from soroq import _cpu

    y = torch.empty(x.shape[0], weight.N)
    _cpu.matmul_panels(
        weight.handle,
        x.detach().float().contiguous(),
        y,
        precision=precision,
        bias=None if bias is None else bias.detach().float().contiguous(),
        residual=None if residual is None else residual.detach().float().contiguous(),
    )
    return y.to(x.dtype)


def gated_panels(
    x: torch.Tensor, weight: PanelWeight, *, precision: str, activation: str
) -> torch.Tensor:
    """Return act(x · gateᵀ) · (x · upᵀ) (M, F) of a weight of `pack_pair`, in x's dtype."""
    from soroq import _cpu

    assert weight.gated is not None
    y = torch.empty(x.shape[0], weight.gated)
    _cpu.matmul_panels(
        weight.handle,
        x.detach().float().contiguous(),
        y,
        precision=precision,
        gate=activation,
        gated_rows=weight.gated,
    )
    return y.to(x.dtype)


def gather_panels(ids: torch.Tensor, weight: PanelWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`; ids int64 (M,). Raises IndexError for a row out of range."""
    from soroq import _cpu

    rows = torch.empty(ids.shape[0], weight.K)
    _cpu.gather_panels(weight.handle, ids.contiguous(), rows)
    return rows.to(dtype)
