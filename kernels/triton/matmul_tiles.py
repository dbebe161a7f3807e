"""y = x · Wᵀ with int4 or int8 weights in tiles (soroq.kernels.tiles), for every M.

The weights are the left operand (yᵀ = W xᵀ): they go from shared memory to tensor-core fragments in
registers, where one instruction turns two codes into 128 + code, and x is the narrow right side.

- DEFERRED: the tensor cores multiply 128 + code by x, over one group; zero point and scale are
  applied to the group's sum in float32. Σx, which the zero point and the 128 are multiplied by,
  comes from the tensor cores too: one product with a matrix of ones, a single row of fragments.
  Work per weight besides the products: a lop3 and a shift for two. For M up to 64.
- else: (code − zero) · scale is rounded to x's dtype in registers; work per weight doesn't grow
  with M. For larger M.

An int8 weight is two planes of four bits: its group's sum is 16 · (upper · x) + lower · x.

Split-K: each slice leaves its partial sums in float32; the last one to arrive at a counter adds all
slices in order and resets the counter, so the result is the same every time, with no memset.

What follows the product costs no launch of its own: EPILOGUE adds a residual, or multiplies pairs
of rows as gelu(gate) · up, or keeps each block's largest value for a top-k over a vocabulary.
"""

from typing import Any, Literal

import torch
import triton
import triton.language as tl

from soroq.kernels.tiles import TiledWeight
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.nibbles import offset_nibble

INTERPRETED = triton.knobs.runtime.interpret
Epilogue = Literal["none", "residual", "geglu", "maxima"]


@triton.jit
def _dot(a, b, acc, PORTABLE: tl.constexpr):
    """Return acc + a · b; the interpreter's bfloat16 products are wrong, float32 ones right."""
    if PORTABLE:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        out = tl.dot(a, b, acc)
    return out


@triton.jit
def _repeat(total, LEAST_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return LEAST_N equal rows as BLOCK_N rows; no register moves."""
    sums = tl.reshape(total, [1, LEAST_N, BLOCK_M])
    sums = tl.broadcast_to(sums, [BLOCK_N // LEAST_N, LEAST_N, BLOCK_M])
    return tl.reshape(sums, [BLOCK_N, BLOCK_M])


@triton.jit
def gelu_tanh(x):
    """Return gelu(x) in its tanh form, x float32: x · σ(2u), u = √(2/π)(x + 0.044715 x³)."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _finish(
    acc,
    y,
    extra,
    block_n,
    rm,
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Store a finished block, acc (BLOCK_N, BLOCK_M), as the epilogue says."""
    dtype: tl.constexpr = y.dtype.element_ty
    rn = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rm[None, :] < M) & (rn[:, None] < N)
    if EPILOGUE == "geglu":
        pairs = tl.permute(tl.reshape(acc, [BLOCK_N // 2, 2, BLOCK_M]), [0, 2, 1])
        gate, up = tl.split(pairs)
        half = block_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        inside = (rm[None, :] < M) & (half[:, None] < N // 2)
        out = y + rm[None, :] * (N // 2) + half[:, None]
        tl.store(out, (gelu_tanh(gate) * up).to(dtype), mask=inside)
    else:
        at = rm[None, :] * N + rn[:, None]
        if EPILOGUE == "residual":
            acc += tl.load(extra + at, mask=inside, other=0.0).to(tl.float32)
        if EPILOGUE == "maxima":
            best = tl.max(tl.where(inside, acc, float("-inf")), 0)
            blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
            tl.store(extra + rm * blocks + block_n, best, mask=rm < M)
        tl.store(y + at, acc.to(dtype), mask=inside)


@triton.jit
def _partials_of(partials, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return where the sums of this block's first slice lie."""
    cell = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    return partials + tl.program_id(0) * (SPLITS * BLOCK_N * BLOCK_M) + cell


@triton.jit
def is_last(acc, partials, counters, slice_k, SPLITS: tl.constexpr):
    """Leave a slice's sums acc (BLOCK_N, BLOCK_M); tell if it is the block's last to arrive."""
    mine = _partials_of(partials, SPLITS, acc.shape[0], acc.shape[1])
    tl.store(mine + slice_k * (acc.shape[0] * acc.shape[1]), acc)
    tl.debug_barrier()  # all of the block's stores before its arrival is counted
    return tl.atomic_add(counters + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1


@triton.jit
def sum_slices(
    partials, counters, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Return the sum of all slices (BLOCK_N, BLOCK_M), in their order; reset the counter."""
    mine = _partials_of(partials, SPLITS, BLOCK_N, BLOCK_M)
    whole = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for i in tl.static_range(SPLITS):
        whole += tl.load(mine + i * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
    tl.store(counters + tl.program_id(0), 0)
    return whole


@triton.jit(do_not_specialize=["M"])
def matmul_tiles_kernel(
    x,
    tiles,
    scales,
    zeros,
    y,
    extra,
    partials,
    counters,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST_N: tl.constexpr,
    DEFERRED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """One program: BLOCK_N rows of W, BLOCK_M rows of x, one of SPLITS slices of K.

    x (M, K), y (M, N) contiguous; extra: the residual (M, N), or where block maxima (M, blocks) go;
    partials float32 (programs, BLOCK_N, BLOCK_M) and counters int32 (output blocks,) only with
    SPLITS > 1. ROWS: N rounded up as the tiles are. LEAST_N: rows of one tensor-core instruction of
    all warps, 16 each.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    BF16: tl.constexpr = dtype == tl.bfloat16
    OFFSET: tl.constexpr = 128.0 if BF16 else 1024.0
    # what is in front of x besides the code: of one plane, or of 16 · upper + lower
    FRONT: tl.constexpr = OFFSET if PLANES == 1 else 17 * OFFSET
    MIDDLE: tl.constexpr = 8.0 if PLANES == 1 else 128.0
    work: tl.constexpr = tl.float32 if PORTABLE else dtype
    STEPS: tl.constexpr = (K + 127) // 128
    SPAN: tl.constexpr = GROUP // 32 if GROUP < 128 else 4  # nibbles that share a scale
    AHEAD: tl.constexpr = GROUP >= 128
    # blocks of x's rows come first, so that all that need a tile run while it is in the cache
    blocks_m = tl.cdiv(M, BLOCK_M)
    block_n = tl.program_id(0) // blocks_m
    block_m = tl.program_id(0) % blocks_m
    slice_k = tl.program_id(1)
    rn = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rc = tl.arange(0, 32)
    in_m = rm < M
    word = (rn // 64) * (STEPS * PLANES * 2048) + (rn % 64) * 32
    tile = tiles + word[:, None] + rc[None, :]
    x_row = x + rm[None, :] * K

    first, last = slice_k * STEPS // SPLITS, (slice_k + 1) * STEPS // SPLITS
    # nothing but what products take is loaded ahead by the compiler: a group's scales would be
    # waited for in every step
    if AHEAD:
        s_next = tl.load(scales + (first * 128 // GROUP) * ROWS + rn)
        if HAS_ZEROS:
            z_next = tl.load(zeros + (first * 128 // GROUP) * ROWS + rn)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(first, last):
        if AHEAD:
            s_now = s_next
            group_next = (tl.minimum(step + 1, last - 1) * 128 // GROUP) * ROWS
            s_next = tl.load(scales + group_next + rn)
            if HAS_ZEROS:
                z_now = z_next
                z_next = tl.load(zeros + group_next + rn)
        words = tl.load(tile + step * (PLANES * 2048), eviction_policy="evict_first")
        if PLANES == 2:
            lower = tl.load(tile + step * 4096 + 2048, eviction_policy="evict_first")
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        part_lower = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
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
                if PLANES == 2:
                    wj = offset_nibble(lower, j, BF16, PORTABLE)
                    part_lower = _dot(wj, xj, part_lower, PORTABLE)
                if j % SPAN == SPAN - 1:
                    if AHEAD:
                        s = s_now.to(tl.float32)
                    else:
                        s = tl.load(scales + group * ROWS + rn).to(tl.float32)
                    sums = _repeat(total, LEAST_N, BLOCK_N, BLOCK_M)
                    if PLANES == 2:
                        part = part * 16.0 + part_lower
                    if HAS_ZEROS:
                        if AHEAD:
                            z = z_now.to(tl.float32) + FRONT
                        else:
                            z = tl.load(zeros + group * ROWS + rn).to(tl.float32) + FRONT
                        part -= z[:, None] * sums
                    else:
                        part -= (MIDDLE + FRONT) * sums
                    acc += s[:, None] * part
                    part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                    part_lower = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                    total = tl.zeros([LEAST_N, BLOCK_M], tl.float32)
            else:
                if AHEAD:
                    s = s_now.to(work)
                else:
                    s = tl.load(scales + group * ROWS + rn).to(work)
                # every step is exact in bfloat16: no value needs more than eight bits
                centred = wj.to(work) - tl.full([1, 1], 8.0 + OFFSET, tl.float32).to(work)
                if PLANES == 2:
                    below = offset_nibble(lower, j, BF16, PORTABLE).to(work)
                    below -= tl.full([1, 1], OFFSET, tl.float32).to(work)
                    centred = centred * tl.full([1, 1], 16.0, tl.float32).to(work) + below
                if HAS_ZEROS:
                    if AHEAD:
                        z = z_now.to(tl.float32) - MIDDLE
                    else:
                        z = tl.load(zeros + group * ROWS + rn).to(tl.float32) - MIDDLE
                    centred -= z.to(work)[:, None]
                wj = (centred * s[:, None]).to(dtype)
                acc = _dot(wj, xj, acc, PORTABLE)

    if SPLITS == 1:
        _finish(acc, y, extra, block_n, rm, M, N, BLOCK_M, BLOCK_N, EPILOGUE)
    elif is_last(acc, partials, counters, slice_k, SPLITS):
        acc = sum_slices(partials, counters, SPLITS, BLOCK_N, BLOCK_M)
        _finish(acc, y, extra, block_n, rm, M, N, BLOCK_M, BLOCK_N, EPILOGUE)


def run(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: Config,
    partials: torch.Tensor,
    counters: torch.Tensor,
    *,
    epilogue: Epilogue = "none",
    extra: torch.Tensor | None = None,
) -> None:
    """Write x (M, K) · Wᵀ into y (M, N), contiguous; y's dtype may be wider than x's.

    epilogue: 'residual' adds extra (M, N); 'geglu' writes y (M, N/2) = gelu(row 2i) · row 2i + 1;
    'maxima' also writes the largest value of each block of rows into extra float32 (M, blocks).
    partials float32 and counters int32 (all 0 before and after) hold at least `config.scratch`.
    """
    M = x.shape[0]
    blocks_n, blocks_m = config.blocks(M, weight.N)
    matmul_tiles_kernel[(blocks_n * blocks_m, config.splits)](
        x,
        weight.tiles,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        y,
        y if extra is None else extra,
        partials,
        counters,
        M,
        **constants(
            N=weight.N,
            K=weight.K,
            rows=weight.scales.shape[1],
            group=weight.span,
            has_zeros=weight.zeros is not None,
            bits=weight.bits,
            config=config,
            epilogue=epilogue,
            portable=INTERPRETED,
        ),
        num_warps=config.warps,
        num_stages=config.stages,
    )


def constants(
    *,
    N: int,
    K: int,
    rows: int,
    group: int,
    has_zeros: bool,
    bits: int,
    config: Config,
    epilogue: Epilogue,
    portable: bool,
) -> dict[str, Any]:
    """Return the compile-time arguments of the kernel."""
    return {
        "N": N,
        "K": K,
        "ROWS": rows,
        "GROUP": group,
        "HAS_ZEROS": has_zeros,
        "PLANES": bits // 4,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLITS": config.splits,
        "LEAST_N": min(16 * config.warps, config.block_n),
        "DEFERRED": config.deferred,
        "EPILOGUE": epilogue,
        "PORTABLE": portable,
    }
