"""Round to nearest: no calibration, the baseline that every other method must beat."""

import torch

from soroq.core.qtensor import QuantizedTensor, round_int
from soroq.core.scheme import QuantArgs
from soroq.methods.ranges import minmax_ranges, search_ranges


def quantize_rtn(weight: torch.Tensor, args: QuantArgs) -> QuantizedTensor:
    """Round W (N, K) to the nearest code over each group's full range."""
    scales, zeros = minmax_ranges(weight, args)
    return round_int(weight, scales, zeros, args)


def quantize_clip(
    weight: torch.Tensor, args: QuantArgs, importance: torch.Tensor
) -> QuantizedTensor:
    """Round W (N, K) to the nearest code over ranges clipped by importance (K,)."""
    scales, zeros = search_ranges(weight, args, importance)
    return round_int(weight, scales, zeros, args)
