"""Matrix product and row gather with `pack-quantized` weights (layout: `soroq.core.packing`)."""

import torch

from soroq.core.packing import unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs

# Unpacking a whole lm_head at once would take gigabytes (262,144 × 640 codes as int64 words).
_CHUNK_CODES = 2**21


def dequantize_packed(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
    bits: int,
) -> torch.Tensor:
    """Return W (N, K) float32 = (codes − zeros) · scales."""
    args = QuantArgs(bits=bits, group_size=group_size)  # dequantize() looks at zeros itself
    codes = unpack_rows(qweight, bits, qweight.shape[1] * (32 // bits))
    return QuantizedTensor(codes, scales, zeros, args).dequantize()


def matmul_w4(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ for 4-bit packed W."""
    return _matmul(x, qweight, scales, zeros, group_size, bits=4)


def matmul_w8(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ for 8-bit packed W."""
    return _matmul(x, qweight, scales, zeros, group_size, bits=8)


def gather_w4(
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype` for 4-bit packed W; ids int64 (M,)."""
    return _gather(ids, qweight, scales, zeros, group_size, dtype, bits=4)


def gather_w8(
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype` for 8-bit packed W; ids int64 (M,)."""
    return _gather(ids, qweight, scales, zeros, group_size, dtype, bits=8)


def _matmul(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_size: int | None,
    *,
    bits: int,
) -> torch.Tensor:
    x32 = x.float()
    n_rows = max(1, _CHUNK_CODES // x.shape[1])
    parts = []
    for start in range(0, qweight.shape[0], n_rows):
        rows = slice(start, start + n_rows)
        w = dequantize_packed(
            qweight[rows],
            scales[rows],
            None if zeros is None else zeros[rows],
            group_size=group_size,
            bits=bits,
        )
        parts.append(x32 @ w.t())
    return torch.cat(parts, 1).to(x.dtype)


def _gather(
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
    *,
    bits: int,
) -> torch.Tensor:
    picked = None if zeros is None else zeros[ids]
    rows = dequantize_packed(qweight[ids], scales[ids], picked, group_size=group_size, bits=bits)
    return rows.to(dtype)
