"""y = x̂ · Wᵀ with int4 weights in tiles and float8 activations: an experiment.

x̂ (M, K) is float8_e4m3fn with one scale a row, as `quantize_fp8` makes it; W, in the int4 tiles of
soroq.kernels.tiles, is the left operand (yᵀ = W x̂ᵀ). Unpacking is almost nothing: the byte u = 0…15
is the float8 number u · 2⁻⁹, since e4m3 goes on below its smallest normal number, 8 · 2⁻⁹, in the
same steps (OCP FP8 1.0, table 1). Eight integer instructions make 16 codes the tensor cores'
operands; nothing is converted, nothing rounded.

The tensor cores sum one group, at most 128 of K, since Hopper keeps about 14 bits of a float8 sum
(deepseek-ai/DeepGEMM#50); zero point and scale are applied to that sum in float32:

    y[m, n] = 2⁹ · x_scales[m] · Σ_g scales[g, n] · (Σ_k u · 2⁻⁹ · x̂ − (8 + zero) · Σ_k 2⁻⁹ · x̂)

The second sum comes from the tensor cores too, a product with a matrix of 2⁻⁹. Slices of K are
added in a fixed order, as in matmul_tiles. What rounding x loses was measured before there was a
kernel (LOG.md).
"""

from typing import Any

import torch
import triton
import triton.language as tl

from soroq.kernels.tiles import TiledWeight
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.matmul_fp8 import store_scaled
from soroq.kernels.triton.matmul_tiles import (
    INTERPRETED,
    _dot,
    _repeat,
    is_last,
    sum_slices,
)

# four int16 words in two registers → their nibbles 0…3, each as four bytes in a register
_NIBBLES = tl.constexpr(
    "{ .reg .b32 a, b;"
    " prmt.b32 a, $4, $5, 0x6420;"
    " prmt.b32 b, $4, $5, 0x7531;"
    " and.b32 $0, a, 0x0f0f0f0f;"
    " shr.u32 a, a, 4;"
    " and.b32 $1, a, 0x0f0f0f0f;"
    " and.b32 $2, b, 0x0f0f0f0f;"
    " shr.u32 b, b, 4;"
    " and.b32 $3, b, 0x0f0f0f0f; }"
)


@triton.jit
def _nibbles(words, PORTABLE: tl.constexpr):
    """Return the four nibbles of int16 `words` as numbers u · 2⁻⁹, float8 (float32 if PORTABLE)."""
    if PORTABLE:
        w = words.to(tl.int32)
        out = (
            (w & 15).to(tl.float32) * 0.001953125,
            ((w >> 4) & 15).to(tl.float32) * 0.001953125,
            ((w >> 8) & 15).to(tl.float32) * 0.001953125,
            ((w >> 12) & 15).to(tl.float32) * 0.001953125,
        )
    else:
        out = tl.inline_asm_elementwise(
            _NIBBLES,
            "=r,=r,=r,=r,r,r",
            [words],
            dtype=(tl.float8e4nv, tl.float8e4nv, tl.float8e4nv, tl.float8e4nv),
            is_pure=True,
            pack=4,
        )
    return out


@triton.jit(do_not_specialize=["M"])
def matmul_w4a8_kernel(
    x,
    tiles,
    x_scales,
    scales,
    zeros,
    y,
    partials,
    counters,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST_N: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """One program: BLOCK_N rows of W, BLOCK_M rows of x, one of SPLITS slices of K.

    x float8 (M, K), x_scales float32 (M, 1), y (M, N) contiguous; partials, counters, ROWS and
    LEAST_N as in matmul_tiles.
    """
    STEPS: tl.constexpr = (K + 127) // 128
    AHEAD: tl.constexpr = GROUP >= 128
    SPAN: tl.constexpr = 4 if AHEAD else GROUP // 32  # nibbles that share a scale
    blocks_m = tl.cdiv(M, BLOCK_M)
    block_n, block_m = tl.program_id(0) // blocks_m, tl.program_id(0) % blocks_m
    slice_k = tl.program_id(1)
    rn = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rc = tl.arange(0, 32)
    in_m = rm < M
    word = (rn // 64) * (STEPS * 2048) + (rn % 64) * 32
    tile = tiles + word[:, None] + rc[None, :]
    x_row = x + rm.to(tl.int64)[None, :] * K

    first, last = slice_k * STEPS // SPLITS, (slice_k + 1) * STEPS // SPLITS
    # a step ahead: the compiler loads ahead only what products take, and a step would wait for them
    if AHEAD:
        s_next = tl.load(scales + (first * 128 // GROUP) * ROWS + rn)
        if HAS_ZEROS:
            z_next = tl.load(zeros + (first * 128 // GROUP) * ROWS + rn)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(first, last):
        if AHEAD:
            s = s_next
            group_next = (tl.minimum(step + 1, last - 1) * 128 // GROUP) * ROWS
            s_next = tl.load(scales + group_next + rn)
            if HAS_ZEROS:
                z = z_next
                z_next = tl.load(zeros + group_next + rn)
        words = tl.load(tile + step * 2048, eviction_policy="evict_first")
        nibbles = _nibbles(words, PORTABLE)
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        total = tl.zeros([LEAST_N, BLOCK_M], tl.float32)
        for j in tl.static_range(4):
            k = step * 128 + j * 32 + rc
            in_x = in_m[None, :]
            if K % 128 != 0:
                in_x = in_x & (k[:, None] < K)
            xj = tl.load(x_row + k[:, None], mask=in_x, other=0.0)
            ones = tl.full([LEAST_N, 32], 0.001953125, tl.float32).to(xj.dtype)
            total = _dot(ones, xj, total, PORTABLE)
            part = _dot(nibbles[j], xj, part, PORTABLE)
            if j % SPAN == SPAN - 1:
                if not AHEAD:
                    group = step * (128 // GROUP) + j // SPAN
                    s = tl.load(scales + group * ROWS + rn)
                    if HAS_ZEROS:
                        z = tl.load(zeros + group * ROWS + rn)
                sums = _repeat(total, LEAST_N, BLOCK_N, BLOCK_M)
                if HAS_ZEROS:
                    part -= z.to(tl.float32)[:, None] * sums
                else:
                    part -= 8.0 * sums
                acc += s.to(tl.float32)[:, None] * part
                part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                total = tl.zeros([LEAST_N, BLOCK_M], tl.float32)
    acc *= 512.0

    if SPLITS == 1:
        store_scaled(acc, y, x_scales, scales, rn, rm, M, N, True, "row")
    elif is_last(acc, partials, counters, slice_k, SPLITS):
        acc = sum_slices(partials, counters, SPLITS, BLOCK_N, BLOCK_M)
        store_scaled(acc, y, x_scales, scales, rn, rm, M, N, True, "row")


def run(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: Config,
    partials: torch.Tensor,
    counters: torch.Tensor,
) -> None:
    """Write x (M, K), float8 with x_scales float32 (M, 1), · Wᵀ into y (M, N), contiguous.

    partials float32 and counters int32 (all 0 before and after) hold at least `config.scratch`.
    """
    M = x.shape[0]
    blocks_n, blocks_m = config.blocks(M, weight.N)
    matmul_w4a8_kernel[(blocks_n * blocks_m, config.splits)](
        x,
        weight.tiles,
        x_scales,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        y,
        partials,
        counters,
        M,
        **constants(
            N=weight.N,
            K=weight.K,
            rows=weight.scales.shape[1],
            group=weight.span,
            has_zeros=weight.zeros is not None,
            config=config,
            portable=INTERPRETED,
        ),
        num_warps=config.warps,
        num_stages=config.stages,
    )


def constants(
    *, N: int, K: int, rows: int, group: int, has_zeros: bool, config: Config, portable: bool
) -> dict[str, Any]:
    """Return the compile-time arguments of the kernel."""
    return {
        "N": N,
        "K": K,
        "ROWS": rows,
        "GROUP": group,
        "HAS_ZEROS": has_zeros,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLITS": config.splits,
        "LEAST_N": min(16 * config.warps, config.block_n),
        "PORTABLE": portable,
    }
