"""y = x · Wᵀ with float8 weights as they are stored: for few rows of x, and for many.

`matmul_w8_kernel`, few rows: W is the left operand (yᵀ = W xᵀ), read once; x is in bfloat16 or
float16, and W is converted in registers, or x is float8 too and nothing is. K can be sliced.

`matmul_fp8_kernel`, many rows: both sides are float8 and come through tensor descriptors (the copy
engine where there is one); a program multiplies one block of y after the other.

Scales: one a row of W, or one for each 128 × 128 of it. With blocks every 128 of K are summed on
their own and added in float32, which also keeps Hopper's float8 sums, of about 14 bits (see
deepseek-ai/DeepGEMM#50), short; EXACT does the same for scales of rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from soroq.kernels.triton.config import Config
from soroq.kernels.triton.matmul_tiles import INTERPRETED, _dot, is_last, sum_slices

BLOCK_K = 128  # also the side of a scale's block


@dataclass(frozen=True)
class Many:
    """How `run_many` is launched.

    programs: how many share the blocks of y; flatten: one loop over blocks and K, so that a block's
    loads begin while the one before is stored; exact: sum every 128 of K on its own.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    programs: int
    flatten: bool = True
    exact: bool = False


@triton.jit(do_not_specialize=["M"])
def matmul_w8_kernel(
    x,
    w,
    x_scales,
    w_scales,
    y,
    partials,
    counters,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    X_SCALES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """One program: BLOCK_N rows of W, BLOCK_M rows of x, one of SPLITS slices of K.

    x (M, K), w (N, K), y (M, N) contiguous. X_SCALES: 'none'; 'fixed', one for all; 'row' (M,);
    'block' (M, ⌈K / 128⌉), only with BLOCKWISE. partials and counters as in matmul_tiles.
    """
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    blocks_m = tl.cdiv(M, BLOCK_M)
    block_n = tl.program_id(0) // blocks_m
    block_m = tl.program_id(0) % blocks_m
    slice_k = tl.program_id(1)
    rn = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rk = tl.arange(0, BLOCK_K)
    in_m = rm < M
    w_at = w + tl.minimum(rn, N - 1).to(tl.int64)[:, None] * K + rk[None, :]
    x_at = x + rm[None, :] * K + rk[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(slice_k * STEPS // SPLITS, (slice_k + 1) * STEPS // SPLITS):
        k = step * BLOCK_K
        if K % BLOCK_K == 0:
            wk = tl.load(w_at + k, eviction_policy="evict_first")
            xk = tl.load(x_at + k, mask=in_m[None, :], other=0.0)
        else:
            wk = tl.load(w_at + k, mask=(k + rk < K)[None, :], other=0.0)
            xk = tl.load(x_at + k, mask=in_m[None, :] & (k + rk < K)[:, None], other=0.0)
        if X_SCALES == "none":
            wk = wk.to(xk.dtype)
        if BLOCKWISE:
            part = _dot(wk, xk, tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PORTABLE)
            part *= tl.load(w_scales + (block_n * BLOCK_N // 128) * STEPS + step).to(tl.float32)
            if X_SCALES == "block":
                s = tl.load(x_scales + rm * STEPS + step, mask=in_m, other=0.0)
                part *= s[None, :]
            acc += part
        else:
            acc = _dot(wk, xk, acc, PORTABLE)

    if SPLITS == 1:
        store_scaled(acc, y, x_scales, w_scales, rn, rm, M, N, BLOCKWISE, X_SCALES)
    elif is_last(acc, partials, counters, slice_k, SPLITS):
        acc = sum_slices(partials, counters, SPLITS, BLOCK_N, BLOCK_M)
        store_scaled(acc, y, x_scales, w_scales, rn, rm, M, N, BLOCKWISE, X_SCALES)


@triton.jit
def store_scaled(
    acc, y, x_scales, w_scales, rn, rm, M, N, BLOCKWISE: tl.constexpr, X_SCALES: tl.constexpr
):
    """Apply the scales that are one for all of K; store acc (BLOCK_N, BLOCK_M) as yᵀ."""
    if not BLOCKWISE:
        acc *= tl.load(w_scales + rn, mask=rn < N, other=0.0).to(tl.float32)[:, None]
    if X_SCALES == "row":
        acc *= tl.load(x_scales + rm, mask=rm < M, other=0.0)[None, :]
    if X_SCALES == "fixed":
        acc *= tl.load(x_scales)
    inside = (rm[None, :] < M) & (rn[:, None] < N)
    at = y + rm.to(tl.int64)[None, :] * N + rn[:, None]
    tl.store(at, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def matmul_fp8_kernel(
    x,
    w,
    x_scales,
    w_scales,
    y,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    X_SCALES: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """One program takes every PROGRAMS-th block (BLOCK_M, BLOCK_N) of y.

    x, w and y are tensor descriptors of blocks of their matrices.
    """
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    blocks_m = tl.cdiv(M, BLOCK_M)
    # GROUP_M blocks of x's rows meet all of W's before the next: their x stays in the L2 cache
    width: tl.constexpr = GROUP_M * blocks_n
    for block in tl.range(
        tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN
    ):
        first_m = block // width * GROUP_M
        tall = tl.minimum(blocks_m - first_m, GROUP_M)
        at_m = (first_m + (block % width) % tall) * BLOCK_M
        at_n = (block % width) // tall * BLOCK_N
        rm = at_m + tl.arange(0, BLOCK_M)
        rn = at_n + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in tl.range(0, STEPS):
            a = x.load([at_m, step * BLOCK_K])
            b = w.load([at_n, step * BLOCK_K])
            if BLOCKWISE:
                part = _dot(a, b.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PORTABLE)
                if BLOCK_N > 128:
                    rows = tl.minimum(rn, N - 1) // 128
                    part *= tl.load(w_scales + rows * STEPS + step).to(tl.float32)[None, :]
                else:
                    part *= tl.load(w_scales + (at_n // 128) * STEPS + step).to(tl.float32)
                if X_SCALES == "block":
                    sx = tl.load(x_scales + rm * STEPS + step, mask=rm < M, other=0.0)
                    part *= sx[:, None]
                acc += part
            elif EXACT:
                acc += _dot(a, b.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PORTABLE)
            else:
                acc = _dot(a, b.T, acc, PORTABLE)
        if not BLOCKWISE:
            acc *= tl.load(w_scales + rn, mask=rn < N, other=0.0).to(tl.float32)[None, :]
        if X_SCALES == "row":
            acc *= tl.load(x_scales + rm, mask=rm < M, other=0.0)[:, None]
        if X_SCALES == "fixed":
            acc *= tl.load(x_scales)
        y.store([at_m, at_n], acc.to(y.dtype))


def run_few(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scales: torch.Tensor | None,
    w_scales: torch.Tensor,
    y: torch.Tensor,
    config: Config,
    partials: torch.Tensor,
    counters: torch.Tensor,
) -> None:
    """Write x (M, K) · Wᵀ into y (M, N). x_scales: None when x isn't float8, else (1,), (M, 1) or
    (M, ⌈K / 128⌉); w_scales (N, 1), or (⌈N / 128⌉, ⌈K / 128⌉) for blocks.
    """
    N, K = weight.shape
    M = x.shape[0]
    blocks_n, blocks_m = config.blocks(M, N)
    matmul_w8_kernel[(blocks_n * blocks_m, config.splits)](
        x,
        weight,
        w_scales if x_scales is None else x_scales,
        w_scales,
        y,
        partials,
        counters,
        M,
        N=N,
        K=K,
        BLOCKWISE=is_blockwise(w_scales, N),
        X_SCALES=kind_of(x_scales, M),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=BLOCK_K,
        SPLITS=config.splits,
        PORTABLE=INTERPRETED,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def run_many(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scales: torch.Tensor,
    w_scales: torch.Tensor,
    y: torch.Tensor,
    launch: Many,
) -> None:
    """Write x (M, K) · Wᵀ, both float8, into y (M, N); scales as in run_few.

    K and N must be multiples of 16.
    """
    N, K = weight.shape
    M = x.shape[0]
    blocks = -(-M // launch.block_m) * -(-N // launch.block_n)
    matmul_fp8_kernel[(min(launch.programs, blocks),)](
        TensorDescriptor.from_tensor(x, [launch.block_m, BLOCK_K]),
        TensorDescriptor.from_tensor(weight, [launch.block_n, BLOCK_K]),
        x_scales,
        w_scales,
        TensorDescriptor.from_tensor(y, [launch.block_m, launch.block_n]),
        M,
        N=N,
        K=K,
        BLOCKWISE=is_blockwise(w_scales, N),
        X_SCALES=kind_of(x_scales, M),
        EXACT=launch.exact,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        BLOCK_K=BLOCK_K,
        GROUP_M=8,
        FLATTEN=launch.flatten,
        PORTABLE=INTERPRETED,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


def is_blockwise(w_scales: torch.Tensor, N: int) -> bool:
    """Tell whether W's scales belong to blocks of 128 × 128, not to rows."""
    return w_scales.shape != (N, 1)


def kind_of(x_scales: torch.Tensor | None, M: int) -> str:
    """Return what x's scales belong to: 'none', 'fixed', 'row' or 'block'."""
    if x_scales is None:
        return "none"
    if x_scales.dim() < 2:
        return "fixed"
    return "row" if x_scales.shape[1] == 1 else "block"
