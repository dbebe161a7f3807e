"""Rows rounded to float8 in the launch that makes them: plain, behind an RMSNorm, behind a GLU.

One program has a whole row in registers, so its largest element costs no second pass. What comes
out is what the separate steps give: values are rounded to x's dtype, then to float8.
"""

from typing import Literal

import torch
import triton
import triton.language as tl

from soroq.kernels.triton.matmul_tiles import INTERPRETED, gelu_tanh

FP8_MAX = 448.0
_TINY = 1e-12  # a row of zeros gets this as its largest magnitude, and stays zeros
Producer = Literal["plain", "norm", "geglu", "swiglu"]


@triton.jit
def _to_float8(x, PORTABLE: tl.constexpr):
    """Return x, |x| ≤ 448, as float8; the interpreter's own rounding loses carries."""
    if PORTABLE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits behind the point
        fine = (x + 24576.0) - 24576.0  # steps of 2⁻⁹, below the smallest normal number
        x = tl.where(tl.abs(x) < 0.015625, fine, bits.to(tl.float32, bitcast=True))
    return x.to(tl.float8e4nv)


@triton.jit
def quantize_rows_kernel(
    x,
    other,
    fixed,
    codes,
    scales,
    eps,
    stride,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PRODUCER: tl.constexpr,
    OFFSET: tl.constexpr,
    FIXED: tl.constexpr,
    FP8_MAX: tl.constexpr,
    TINY: tl.constexpr,
    PORTABLE: tl.constexpr,
):
    """Round one row of (M, K). other: the norm's weight (K,), or the up projection (M, K).

    stride: from one row of x, and of the up projection, to the next. GROUP: elements that share a
    scale, BLOCK for all of the row. OFFSET: what the norm's weight is added to (Gemma: 1).
    """
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < K
    v = tl.load(x + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    if PRODUCER == "norm":
        weight = tl.load(other + k, mask=inside, other=0.0).to(tl.float32)
        v = v * tl.rsqrt(tl.sum(v * v) / K + eps)
        if OFFSET == 0:  # Llama's modules round here, Gemma's only at the end
            v = v.to(dtype).to(tl.float32)
        v = v * (weight + OFFSET)
    if PRODUCER == "geglu" or PRODUCER == "swiglu":
        up = tl.load(other + row * stride + k, mask=inside, other=0.0).to(tl.float32)
        gate = gelu_tanh(v) if PRODUCER == "geglu" else v * tl.sigmoid(v)
        v = gate.to(dtype).to(tl.float32) * up
    v = v.to(dtype).to(tl.float32)
    if FIXED:
        scale = tl.load(fixed)
        out = tl.div_rn(v, scale)
    else:
        groups: tl.constexpr = BLOCK // GROUP
        parts = tl.reshape(v, [groups, GROUP])
        largest = tl.maximum(tl.max(tl.abs(parts), 1), TINY)
        scale = tl.div_rn(largest, FP8_MAX)
        out = tl.reshape(tl.div_rn(parts, scale[:, None]), [BLOCK])
        n_groups: tl.constexpr = (K + GROUP - 1) // GROUP
        i = tl.arange(0, groups)
        tl.store(scales + row * n_groups + i, scale, mask=i < n_groups)
    out = tl.minimum(tl.maximum(out, -FP8_MAX), FP8_MAX)
    tl.store(codes + row * K + k, _to_float8(out, PORTABLE), mask=inside)


def quantize_rows(
    x: torch.Tensor,
    *,
    producer: Producer = "plain",
    other: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 1.0,
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float8_e4m3fn (M, K) and the float32 scales that it is to be multiplied by.

    x (M, K), each row in one piece. producer: 'plain'; 'norm', x / rms(x) · (offset + other (K,))
    with `eps`; 'geglu' and 'swiglu', gelu(x), tanh form, or silu(x) · other (M, K). Scales: (M, 1),
    (M, ⌈K / group_size⌉), or the given `scale` (one element).
    """
    M, K = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    if other is not None and other.dim() == 2 and other.stride() != x.stride():
        x, other = x.contiguous(), other.contiguous()
    block = max(16, triton.next_power_of_2(K))
    codes = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=x.device)
    group = block if group_size is None else group_size
    if scale is None:
        scales = torch.empty(M, -(-K // min(group, K)), device=x.device)
    else:
        scales = scale.float().reshape(1)
    if M:
        quantize_rows_kernel[(M,)](
            x,
            x if other is None else other,
            scales,
            codes,
            scales,
            eps,
            x.stride(0),
            K=K,
            BLOCK=block,
            GROUP=group,
            PRODUCER=producer,
            OFFSET=offset,
            FIXED=scale is not None,
            FP8_MAX=FP8_MAX,
            TINY=_TINY,
            PORTABLE=INTERPRETED,
            num_warps=max(1, min(16, block // 512)),
        )
    return codes, scales
