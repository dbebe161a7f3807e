"""y = x · Wᵀ with int4 weights in tiles (soroq.kernels.tiles), for every M.

The weights are the left operand (yᵀ = W xᵀ): they go from shared memory to tensor-core fragments in
registers, where one instruction turns two codes into 128 + code, and x is the narrow right side.

- DEFERRED: the tensor cores multiply 128 + code by x, over one group; zero point and scale are
  applied to the group's sum in float32. Σx, which the zero point and the 128 are multiplied by,
  comes from the tensor cores too: one product with a matrix of ones, a single row of fragments.
  Work per weight besides the products: a lop3 and a shift for two. For M up to 64.
- else: (code − zero) · scale is rounded to x's dtype in registers; work per weight doesn't grow
  with M. For larger M.

Split-K: each slice leaves its partial sums in float32; the last one to arrive at a counter adds all
slices in order and resets the counter, so the result is the same every time, with no memset.
"""

from typing import Any

import torch

import triton
import triton.language as tl
from soroq.kernels.tiles import TiledWeight
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.nibbles import offset_nibble

INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _dot(a, b, acc, PORTABLE: tl.constexpr):
    """Return acc + a · b; the interpreter's bfloat16 products are wrong, float32 ones right."""
    if PORTABLE:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        out = tl.dot(a, b, acc)
    return out


@triton.jit
def matmul_w4_kernel(
    x,
    tiles,
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
    DEFERRED: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """One program: BLOCK_N rows of W, BLOCK_M rows of x, one of SPLITS slices of K.

    x (M, K), y (M, N) contiguous; partials float32 (programs, BLOCK_N, BLOCK_M) and counters int32
    (output blocks,) only with SPLITS > 1. ROWS: N rounded up as the tiles are. LEAST_N: rows of
    one tensor-core instruction of all warps, 16 each.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    BF16: tl.constexpr = dtype == tl.bfloat16
    OFFSET: tl.constexpr = 128.0 if BF16 else 1024.0
    work: tl.constexpr = tl.float32 if PORTABLE else dtype
    STEPS: tl.constexpr = (K + 127) // 128
    SPAN: tl.constexpr = GROUP // 32 if GROUP < 128 else 4  # nibbles that share a scale
    block_n = tl.program_id(0)
    block_m = tl.program_id(1)
    slice_k = tl.program_id(2)
    rn = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rc = tl.arange(0, 32)
    in_m = rm < M
    word = (rn // 64) * (STEPS * 2048) + (rn % 64) * 32
    x_row = x + rm[None, :] * K

    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(slice_k * STEPS // SPLITS, (slice_k + 1) * STEPS // SPLITS):
        words = tl.load(
            tiles + word[:, None] + step * 2048 + rc[None, :], eviction_policy="evict_first"
        )
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        total = tl.zeros([LEAST_N, BLOCK_M], tl.float32)
        for j in tl.static_range(4):
            k = step * 128 + j * 32 + rc
            in_x = in_m[None, :]
            if K % 128 != 0:
                in_x = in_x & (k[:, None] < K)
            xj = tl.load(x_row + k[:, None], mask=in_x, other=0.0)
            wj = offset_nibble(words, j, BF16, PORTABLE)
            if GROUP < 128:
                group = step * (128 // GROUP) + j // SPAN
            else:
                group = step * 128 // GROUP
            if DEFERRED:
                ones = tl.full([LEAST_N, 32], 1.0, tl.float32).to(dtype)
                total = _dot(ones, xj, total, PORTABLE)
                part = _dot(wj, xj, part, PORTABLE)
                if j % SPAN == SPAN - 1:
                    s = tl.load(scales + group * ROWS + rn).to(tl.float32)
                    # every row of `total` is Σx: repeating it costs nothing in registers
                    sums = tl.reshape(total, [1, LEAST_N, BLOCK_M])
                    sums = tl.broadcast_to(sums, [BLOCK_N // LEAST_N, LEAST_N, BLOCK_M])
                    sums = tl.reshape(sums, [BLOCK_N, BLOCK_M])
                    if HAS_ZEROS:
                        z = tl.load(zeros + group * ROWS + rn).to(tl.float32) + OFFSET
                        part -= z[:, None] * sums
                    else:
                        part -= (8.0 + OFFSET) * sums
                    acc += s[:, None] * part
                    part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                    total = tl.zeros([LEAST_N, BLOCK_M], tl.float32)
            else:
                s = tl.load(scales + group * ROWS + rn).to(work)
                if HAS_ZEROS:
                    z = tl.load(zeros + group * ROWS + rn).to(tl.float32) + OFFSET
                    centred = wj.to(work) - z.to(work)[:, None]
                else:
                    centred = wj.to(work) - tl.full([1, 1], 8.0 + OFFSET, tl.float32).to(work)
                wj = (centred * s[:, None]).to(dtype)
                acc = _dot(wj, xj, acc, PORTABLE)

    in_y = in_m[None, :] & (rn[:, None] < N)
    out = y + rm[None, :] * N + rn[:, None]
    if SPLITS == 1:
        tl.store(out, acc.to(y.dtype.element_ty), mask=in_y)
    else:
        block = block_m * tl.num_programs(0) + block_n
        cell = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        mine = partials + block * (SPLITS * BLOCK_N * BLOCK_M) + cell
        tl.store(mine + slice_k * (BLOCK_N * BLOCK_M), acc)
        tl.debug_barrier()  # all of the block's stores before its arrival is counted
        arrived = tl.atomic_add(counters + block, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            whole = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for i in tl.static_range(SPLITS):
                whole += tl.load(mine + i * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
            tl.store(out, whole.to(y.dtype.element_ty), mask=in_y)
            tl.store(counters + block, 0)


def run(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: Config,
    partials: torch.Tensor,
    counters: torch.Tensor,
) -> None:
    """Write x (M, K) · Wᵀ into y (M, N), both contiguous and of x's dtype.

    partials float32 and counters int32 (all 0 before and after) hold at least `config.scratch`.
    """
    M = x.shape[0]
    blocks_n, blocks_m = config.blocks(M, weight.scales.shape[1])
    matmul_w4_kernel[(blocks_n, blocks_m, config.splits)](
        x,
        weight.tiles,
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
            group=weight.group,
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
        "DEFERRED": config.deferred,
        "PORTABLE": portable,
    }


@triton.jit
def dequantize_w4_kernel(
    tiles,
    scales,
    zeros,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):
    """Write one tile of W (N, K), (code − zero) · scale rounded once to out's dtype."""
    STEPS: tl.constexpr = (K + 127) // 128
    block_n = tl.program_id(0)
    step = tl.program_id(1)
    rn = block_n * 64 + tl.arange(0, 64)
    rc = tl.arange(0, 32)
    cell = tl.arange(0, 64)[:, None] * 32 + rc[None, :]
    words = tl.load(tiles + (block_n.to(tl.int64) * STEPS + step) * 2048 + cell).to(tl.int32)
    row = rn[:, None].to(tl.int64) * K
    for j in tl.static_range(4):
        k = step * 128 + j * 32 + rc
        if GROUP < 128:
            group = step * (128 // GROUP) + j * 32 // GROUP
        else:
            group = step * 128 // GROUP
        codes = ((words >> (4 * j)) & 15).to(tl.float32)
        if HAS_ZEROS:
            codes -= tl.load(zeros + group * ROWS + rn).to(tl.float32)[:, None]
        else:
            codes -= 8.0
        w = codes * tl.load(scales + group * ROWS + rn).to(tl.float32)[:, None]
        inside = (rn[:, None] < N) & (k[None, :] < K)
        tl.store(out + row + k[None, :], w.to(out.dtype.element_ty), mask=inside)


def dequantize(weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W (N, K) in `dtype`."""
    out = torch.empty(weight.N, weight.K, dtype=dtype, device=weight.tiles.device)
    dequantize_w4_kernel[(-(-weight.N // 64), weight.tiles.shape[1])](
        weight.tiles,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        out,
        N=weight.N,
        K=weight.K,
        ROWS=weight.scales.shape[1],
        GROUP=weight.group,
        HAS_ZEROS=weight.zeros is not None,
        num_warps=4,
    )
    return out
