"""Matrix product with float8_e4m3fn weights (layout `float-quantized`), activations too or not.

Activations are rounded at run time: scale = max|x| / 448 over a token, or over each `bk` elements
of it with block scales, so that the largest element lands on the largest float8 (OCP FP8 1.0).
"""

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import FP8_MAX, QuantArgs

FP8 = torch.float8_e4m3fn
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


def round_rows(
    x: torch.Tensor,
    *,
    producer: str = "plain",
    other: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 1.0,
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float8 codes (M, K) and float32 scales; see `soroq.kernels.dispatch`."""
    made = _produce(x, producer, other, eps, offset).float()
    if scale is not None:
        scales = scale.float().reshape(1)
        return _codes(made, scales), scales
    parts = made.split(group_size or x.shape[1], 1)
    steps = [p.abs().amax(1, keepdim=True).clamp_min(_TINY) / FP8_MAX for p in parts]
    codes = [_codes(part, step) for part, step in zip(parts, steps, strict=True)]
    return torch.cat(codes, 1), torch.cat(steps, 1)


def matmul_rounded(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    dtype: torch.dtype,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ, x̂ = codes · x_scales; see `soroq.kernels.dispatch`."""
    wide = x_scales
    if x_scales.dim() == 2 and x_scales.shape[1] > 1:
        assert block is not None
        wide = x_scales.repeat_interleave(block[1], 1)[:, : codes.shape[1]]
    return ((codes.float() * wide) @ _dequantize(weight, scales, block).t()).to(dtype)


def _produce(
    x: torch.Tensor, producer: str, other: torch.Tensor | None, eps: float, offset: float
) -> torch.Tensor:
    """Return what is rounded, in x's dtype, in the steps of transformers' modules."""
    if other is None:
        return x
    if producer == "norm":
        v = x.float()
        v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)
        if offset == 0:  # Llama's modules round here, Gemma's only at the end
            return other * v.to(x.dtype)
        return (v * (offset + other.float())).to(x.dtype)
    if producer == "geglu":
        return torch.nn.functional.gelu(x, approximate="tanh") * other
    return torch.nn.functional.silu(x) * other


def _dequantize(
    weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None
) -> torch.Tensor:
    args = QuantArgs(dtype="float", bits=8, group_size=None, block=block)
    return QuantizedTensor(weight, scales, None, args).dequantize()


def _round_float8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _codes(x, scale).float() * scale


def _codes(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
