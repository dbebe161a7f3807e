"""Matrix product and row gather with weights in tiles (layout: `soroq.kernels.tiles`)."""

import torch

from soroq.kernels.tiles import ALIGN_N, TiledWeight, untile

_CHUNK_CODES = 2**21


def matmul_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ, summed in float32, in x's dtype."""
    return _product(x, weight).to(x.dtype)


def geglu_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return gelu(gate) · up (M, N/2), tanh form; W's rows 2i are gate's, 2i + 1 up's."""
    both = _product(x, weight)
    gated = torch.nn.functional.gelu(both[:, 0::2], approximate="tanh") * both[:, 1::2]
    return gated.to(x.dtype)


def matmul_w4a8(
    codes: torch.Tensor, x_scales: torch.Tensor, weight: TiledWeight, *, dtype: torch.dtype
) -> torch.Tensor:
    """Return y (M, N) = x̂ · Wᵀ in `dtype`, x̂ = codes (M, K) · x_scales (M, 1)."""
    return (_product(codes, weight) * x_scales).to(dtype)


def _product(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    rows = max(1, _CHUNK_CODES // (weight.K * ALIGN_N)) * ALIGN_N
    x32 = x.float()
    parts = []
    for start in range(0, weight.N, rows):
        part = weight.rows(start, min(start + rows, weight.N))
        parts.append(x32 @ untile(part).dequantize().t())
    return torch.cat(parts, 1)


def gather_tiles(ids: torch.Tensor, weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`; ids int64 (M,)."""
    blocks = ids // ALIGN_N
    needed, at = blocks.unique(return_inverse=True)
    parts = [
        untile(weight.rows(b * ALIGN_N, min((b + 1) * ALIGN_N, weight.N))).dequantize()
        for b in needed.tolist()
    ]
    if not parts:
        return torch.empty(0, weight.K, dtype=dtype, device=weight.tiles.device)
    rows = [parts[int(b)][int(i)] for b, i in zip(at, ids % ALIGN_N, strict=True)]
    return torch.stack(rows).to(dtype)
