"""Products with float8 weights as torch operators, weights alone in float8 or both sides.

Few rows of x go through the kernel that reads W once, many through the one of both sides' blocks.
"""

from dataclasses import replace

import torch

from soroq.kernels.triton import scratch
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.matmul_fp8 import Many, run_few, run_many
from soroq.kernels.triton.matmul_tiles import INTERPRETED
from soroq.kernels.triton.ops import device_facts
from soroq.kernels.triton.quantize_fp8 import quantize_rows

round_rows = quantize_rows  # what dispatch asks for

FEW = 64  # rows of x that one block of the first kernel takes
DENSE_M = 256  # from here on float8 weights for other activations are dequantized once


def rule_few(sms: int, M: int, N: int, K: int, *, both: bool) -> Config:
    """Return how `run_few` is launched. both: x is float8 too, in blocks of 16 rows and more."""
    block_m = next(size for size in (8, 16, 32, 64) if M <= size or size == FEW)
    blocks = -(-N // 64) * -(-M // block_m)
    splits = max(1, min(2 * sms // blocks, -(-K // 128) // 3))
    # four stages where all programs run at once, three where more wait or registers are short
    stages = 3 if blocks > 3 * sms or (not both and M > 8) else 4
    return Config(max(block_m, 16) if both else block_m, 64, splits, 4, stages, deferred=True)


def rule_many(sms: int, M: int, N: int) -> Many:
    """Return how `run_many` is launched: the largest blocks that keep the SMs busy."""
    if -(-M // 128) * -(-N // 256) >= 2 * sms:
        return Many(block_m=128, block_n=256, warps=8, stages=3, programs=sms)
    return Many(block_m=64, block_n=256, warps=4, stages=4, programs=sms)


def _matmul_w8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    M, N = x.shape[0], weight.shape[0]
    y = x.new_empty(M, N)
    if M:
        few(x.contiguous(), weight, None, scales, y)
    return y


def _matmul_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    act_scale: torch.Tensor | None,
) -> torch.Tensor:
    blocks = scales.shape != (weight.shape[0], 1)
    codes, x_scales = quantize_rows(x, group_size=128 if blocks else None, scale=act_scale)
    return _matmul_rounded(codes, x_scales, weight, scales, x.dtype)


def _matmul_rounded(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    M, (N, K) = codes.shape[0], weight.shape
    y = torch.empty(M, N, dtype=dtype, device=codes.device)
    if M == 0:
        return y
    if M <= FEW or N % 16 or K % 16:
        few(codes, weight, x_scales, scales, y)
        return y
    launch = rule_many(device_facts(codes.device)[1], M, N)
    if scales.shape != (N, 1):
        launch = replace(launch, block_n=128, flatten=False)
    run_many(codes, weight, x_scales, scales, y, launch)
    return y


def few(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scales: torch.Tensor | None,
    scales: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """Launch `run_few` as its rule says."""
    sms = device_facts(x.device)[1]
    memory = scratch.get(x.device, sms)
    config = rule_few(sms, x.shape[0], *weight.shape, both=x_scales is not None)
    run_few(x, weight, x_scales, scales, y, config, memory.partials, memory.counters)


_library = torch.library.Library("soroq", "FRAGMENT")
_library.define("matmul_w8_float(Tensor x, Tensor weight, Tensor scales) -> Tensor")
_library.define("matmul_fp8(Tensor x, Tensor weight, Tensor scales, Tensor? act_scale) -> Tensor")
_library.define(
    "matmul_rounded(Tensor codes, Tensor x_scales, Tensor weight, Tensor scales, ScalarType dtype)"
    " -> Tensor"
)
_KEY = "CompositeExplicitAutograd" if INTERPRETED else "CUDA"
_library.impl("matmul_w8_float", _matmul_w8, _KEY)
_library.impl("matmul_fp8", _matmul_fp8, _KEY)
_library.impl("matmul_rounded", _matmul_rounded, _KEY)


@torch.library.register_fake("soroq::matmul_w8_float", lib=_library)
def _fake_w8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("soroq::matmul_fp8", lib=_library)
def _fake_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    act_scale: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("soroq::matmul_rounded", lib=_library)
def _fake_rounded(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty(codes.shape[0], weight.shape[0], dtype=dtype)


def matmul_w8_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x · Wᵀ, x as it is; see `soroq.kernels.dispatch`."""
    if x.shape[0] >= DENSE_M:
        wide = scales if block is None else _spread(scales, weight)
        return torch.nn.functional.linear(x, (weight.float() * wide).to(x.dtype))
    y: torch.Tensor = torch.ops.soroq.matmul_w8_float(x, weight, scales)
    return y


def matmul_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
    act_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ; see `soroq.kernels.dispatch`. `block` shows in scales' shape."""
    y: torch.Tensor = torch.ops.soroq.matmul_fp8(x, weight, scales, act_scale)
    return y


def matmul_rounded(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    dtype: torch.dtype,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ; see `soroq.kernels.dispatch`. `block` shows in scales' shape."""
    y: torch.Tensor = torch.ops.soroq.matmul_rounded(codes, x_scales, weight, scales, dtype)
    return y


def _spread(scales: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return scales of blocks of 128 × 128 as (N, K)."""
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return wide[: weight.shape[0], : weight.shape[1]]
