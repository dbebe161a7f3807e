"""int4 weights and float8 activations as a torch operator: an experiment, timed on no GPU yet.

codes, x_scales = dispatch.round_rows(x)
y = dispatch.matmul_w4a8(codes, x_scales, weight, dtype=x.dtype)
"""

import torch

from soroq.kernels.tiles import TiledWeight
from soroq.kernels.triton import matmul_w4a8 as kernel
from soroq.kernels.triton import scratch
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.matmul_tiles import INTERPRETED
from soroq.kernels.triton.ops import device_facts


def rule(sms: int, M: int, N: int, K: int) -> Config:
    """Return how the kernel is launched, judged by its machine code alone: four warps are wgmma's.

    Blocks are as large as registers allow without a spill. K is sliced until there are two programs
    an SM, never thinner than two tiles of 128.
    """
    block_m = next(size for size in (16, 32, 64, 128) if M <= size or size == 128)
    blocks = -(-N // 128) * -(-M // block_m)
    splits = max(1, min(2 * sms // blocks, -(-K // 128) // 2))
    return Config(block_m, 128, splits, 8 if block_m == 128 else 4, 3, deferred=True)


def _matmul(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    weight = TiledWeight(tiles, scales, zeros, N, K, group, 4)
    M, sms = codes.shape[0], device_facts(codes.device)[1]
    y = torch.empty(M, N, dtype=dtype, device=codes.device)
    if M:
        memory = scratch.get(codes.device, sms)
        x, steps = codes.contiguous(), x_scales.contiguous()
        config = rule(sms, M, N, K)
        kernel.run(x, steps, weight, y, config, memory.partials, memory.counters)
    return y


_library = torch.library.Library("soroq", "FRAGMENT")
_library.define(
    "matmul_w4a8(Tensor codes, Tensor x_scales, Tensor tiles, Tensor scales, Tensor? zeros, int N, "
    "int K, int group, ScalarType dtype) -> Tensor"
)
_library.impl("matmul_w4a8", _matmul, "CompositeExplicitAutograd" if INTERPRETED else "CUDA")


@torch.library.register_fake("soroq::matmul_w4a8", lib=_library)
def _fake_matmul(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty(codes.shape[0], N, dtype=dtype)


def matmul_w4a8(
    codes: torch.Tensor, x_scales: torch.Tensor, weight: TiledWeight, *, dtype: torch.dtype
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ; see `soroq.kernels.dispatch`."""
    w = weight
    y: torch.Tensor = torch.ops.soroq.matmul_w4a8(
        codes, x_scales, w.tiles, w.scales, w.zeros, w.N, w.K, w.group, dtype
    )
    return y
