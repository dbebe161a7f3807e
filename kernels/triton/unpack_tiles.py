"""Rows of a tiled weight as floats: all of them for large products, chosen ones for embeddings."""

import torch
import triton
import triton.language as tl

from soroq.kernels.tiles import TILE_N, TiledWeight


@triton.jit
def _unpack(at, plane, j: tl.constexpr, PLANES: tl.constexpr):
    """Return the unsigned codes float32 of nibble j, given pointers to the words of plane 0."""
    codes = (tl.load(at).to(tl.int32) >> (4 * j)) & 15
    if PLANES == 2:
        codes = codes * 16 + ((tl.load(at + plane).to(tl.int32) >> (4 * j)) & 15)
    return codes.to(tl.float32)


@triton.jit
def unpack_tiles_kernel(
    ids,
    tiles,
    scales,
    zeros,
    out,
    M,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PLANES: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write BLOCK rows, 128 columns of out (M, K): row i is W[ids[i]], W[i] without GATHER."""
    STEPS: tl.constexpr = (K + 127) // 128
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    step = tl.program_id(1)
    rn = i.to(tl.int64)
    if GATHER:
        rn = tl.load(ids + i, mask=i < M, other=0)
    rc = tl.arange(0, 32)
    word = ((rn // 64) * STEPS + step) * (PLANES * 2048) + (rn % 64) * 32
    at = tiles + word[:, None] + rc[None, :]
    for j in tl.static_range(4):
        k = step * 128 + j * 32 + rc
        if GROUP < 128:
            group = step * (128 // GROUP) + j * 32 // GROUP
        else:
            group = step * 128 // GROUP
        codes = _unpack(at, 2048, j, PLANES)
        if HAS_ZEROS:
            codes -= tl.load(zeros + group * ROWS + rn).to(tl.float32)[:, None]
        else:
            codes -= 8.0 if PLANES == 1 else 128.0
        w = codes * tl.load(scales + group * ROWS + rn).to(tl.float32)[:, None]
        inside = (i[:, None] < M) & (k[None, :] < K)
        to = out + i[:, None].to(tl.int64) * K + k[None, :]
        tl.store(to, w.to(out.dtype.element_ty), mask=inside)


def unpack(weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W (N, K) in `dtype`, (code − zero) · scale rounded once."""
    return _run(weight.tiles, weight, weight.N, dtype, gather=False)


def gather(ids: torch.Tensor, weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`; ids int64 (M,) in [0, N)."""
    return _run(ids, weight, ids.shape[0], dtype, gather=True)


def _run(
    ids: torch.Tensor, weight: TiledWeight, M: int, dtype: torch.dtype, *, gather: bool
) -> torch.Tensor:
    out = torch.empty(M, weight.K, dtype=dtype, device=weight.tiles.device)
    block = 1 if gather else TILE_N
    planes = weight.bits // 4
    unpack_tiles_kernel[(-(-M // block), weight.tiles.shape[1] // planes)](
        ids,
        weight.tiles,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        out,
        M,
        K=weight.K,
        ROWS=weight.scales.shape[1],
        GROUP=weight.span,
        HAS_ZEROS=weight.zeros is not None,
        PLANES=planes,
        GATHER=gather,
        BLOCK=block,
        num_warps=1 if gather else 4,
    )
    return out
