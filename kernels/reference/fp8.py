"""Matrix product with float8_e4m3fn weights (layout `float-quantized`), activations too or not.

Activations are rounded at run time: scale = max|x| / 448 over a token, or over each `bk` elements
of it with block scales, so that the largest element lands on the largest float8 (OCP FP8 1.0).
"""

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import FP8_MAX, QuantArgs

_TINY = 1e-12  # a token of zeros gets this as its largest magnitude, and stays zeros


def quantize_tokens(
    x: torch.Tensor, *, group_size: int | None = None, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x̂ (M, K) float32: x rounded to float8_e4m3fn and scaled back.

    One scale a token, or one for each `group_size` elements (the last group may be shorter), or
    the given `scale` (one element) for all.
    """
    x32 = x.float()
    if scale is not None:
        return _round_float8(x32, scale.float().reshape(1, 1))
    size = group_size or x.shape[1]
    parts = x32.split(size, 1)
    return torch.cat(
        [_round_float8(p, p.abs().amax(1, keepdim=True).clamp_min(_TINY) / FP8_MAX) for p in parts],
        1,
    )


def matmul_w8_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x · Wᵀ, W = weight · scales; see `soroq.kernels.dispatch`."""
    return (x.float() @ _dequantize(weight, scales, block).t()).to(x.dtype)


def matmul_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
    act_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ, W = weight · scales; see `soroq.kernels.dispatch`."""
    rounded = quantize_tokens(x, group_size=block[1] if block else None, scale=act_scale)
    return (rounded @ _dequantize(weight, scales, block).t()).to(x.dtype)


def _dequantize(
    weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None
) -> torch.Tensor:
    args = QuantArgs(dtype="float", bits=8, group_size=None, block=block)
    return QuantizedTensor(weight, scales, None, args).dequantize()


def _round_float8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    codes = (x / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes.float() * scale
