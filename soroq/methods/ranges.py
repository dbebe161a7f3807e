"""Scales and zero points: plain minimum/maximum, or the range that loses least.

`search_ranges` shrinks each group's range step by step and keeps the one with the smallest
Σ_k h_k (w_k − ŵ_k)², h the mean square of input channel k (the diagonal of the Hessian), as in the
importance-weighted search of llama.cpp's imatrix and the MSE observer of llm-compressor.
Scales are rounded to bfloat16 before the codes are chosen, so what is searched is what is stored.
"""

import torch

from soroq.core.qtensor import round_float8
from soroq.core.scheme import FP8_MAX, QuantArgs

SEARCH_STEPS = 20
SEARCH_MIN_RATIO = 0.6
FLOAT_SEARCH_STEPS = 8


def group_size_of(weight: torch.Tensor, args: QuantArgs) -> int:
    return args.group_size or weight.shape[1]


def minmax_ranges(
    weight: torch.Tensor, args: QuantArgs, ratio: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales (N, K // G) bfloat16 and zeros (N, K // G) int8 (None if symmetric).

    The range of each group is [min(w, 0), max(w, 0)] · ratio.
    """
    groups = weight.float().view(weight.shape[0], -1, group_size_of(weight, args))
    if args.symmetric:
        half = args.levels / 2 - 0.5  # codes −8…7: the range reaches half a step past both ends
        scales = groups.abs().amax(-1) * ratio / half
        return _store(scales), None
    high = groups.amax(-1).clamp_min(0) * ratio
    low = groups.amin(-1).clamp_max(0) * ratio
    scales = _store((high - low) / (args.levels - 1))
    zeros = (args.code_min - low / scales.float()).round().clamp(args.code_min, args.code_max)
    return scales, zeros.to(torch.int8)


def search_ranges(
    weight: torch.Tensor, args: QuantArgs, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the ranges with the least importance-weighted error; importance (K,) ≥ 0."""
    N, K = weight.shape
    group = group_size_of(weight, args)
    groups = weight.float().view(N, -1, group)
    weights = importance.float().clamp_min(0).view(1, -1, group)
    best_scales, best_zeros = minmax_ranges(weight, args)
    best = torch.full_like(best_scales, float("inf"), dtype=torch.float32)
    for ratio in torch.linspace(1.0, SEARCH_MIN_RATIO, SEARCH_STEPS).tolist():
        scales, zeros = minmax_ranges(weight, args, ratio)
        step = scales.float()[..., None]
        offset = 0.0 if zeros is None else zeros.float()[..., None]
        codes = ((groups / step).round() + offset).clamp(args.code_min, args.code_max)
        error = (((codes - offset) * step - groups) ** 2 * weights).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        best_scales = torch.where(better, scales, best_scales)
        if zeros is not None and best_zeros is not None:
            best_zeros = torch.where(better, zeros, best_zeros)
    return best_scales, best_zeros


def search_float_scales(
    weight: torch.Tensor, args: QuantArgs, importance: torch.Tensor
) -> torch.Tensor:
    """Return float8 scales (N, 1) or per tile with the least importance-weighted error.

    A float grid repeats every factor of two, so one octave of scales at and above the largest
    magnitude / 448 holds every distinct rounding.
    """
    base = absmax_float_scales(weight, args)
    best_scales = base
    best = torch.full(base.shape, float("inf"))
    for ratio in torch.logspace(0, 1, FLOAT_SEARCH_STEPS + 1, base=2.0)[:-1].tolist():
        scales = (base.float() * ratio).to(base.dtype)
        error = (round_float8(weight, scales, args).dequantize() - weight.float()) ** 2
        total = _sum_like(error * importance.float(), args)
        better = total < best
        best = torch.where(better, total, best)
        best_scales = torch.where(better, scales, best_scales)
    return best_scales


def absmax_float_scales(weight: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """Return largest magnitude / 448 per row (N, 1), bfloat16, or per tile, float32."""
    magnitude = weight.float().abs()
    if args.block is None:
        return _store(magnitude.amax(1, keepdim=True) / FP8_MAX)
    scales = _tiles(magnitude, args.block).amax((1, 3)) / FP8_MAX
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _sum_like(values: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    if args.block is None:
        return values.sum(1, keepdim=True)
    return _tiles(values, args.block).sum((1, 3))


def _tiles(values: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Zero-pad (N, K) to whole tiles and view it as (N/bn, bn, K/bk, bk)."""
    N, K = values.shape
    bn, bk = block
    padded = torch.nn.functional.pad(values, (0, -K % bk, 0, -N % bn))
    return padded.view(padded.shape[0] // bn, bn, padded.shape[1] // bk, bk)


def _store(scales: torch.Tensor) -> torch.Tensor:
    """Round scales to bfloat16; an all-zero group gets 1, so that nothing divides by zero."""
    stored = scales.to(torch.bfloat16)
    return torch.where(stored.float() > 0, stored, torch.ones_like(stored))
