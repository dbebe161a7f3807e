"""Choose a kernel and run it: the only door to `kernels/` for the rest of soroq.

    >>> kernel, reason = choose("matmul_w4", M=1, N=2048, K=640, group_size=128,
    ...                         symmetric=True, dtype=torch.bfloat16, device="cpu")

Packed weights lie as `pack-quantized` stores them (`soroq.core.packing`): qweight int32
(N, K · bits / 32), scales (N, K // G) floating point, zeros int8 (N, K // G) in code units or None,
    W = (codes − zeros) · scales.
GPUs want them in tiles (`soroq.kernels.tiles`), CPUs in panels (`soroq.kernels.panels`). All sums
are float32, y has x's dtype. The logger `soroq.kernels` says once, at INFO, what was taken and why.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

from soroq.kernels.panels import PanelWeight
from soroq.kernels.problem import Problem
from soroq.kernels.registry import KERNELS, Kernel
from soroq.kernels.tiles import TiledWeight

_log = logging.getLogger("soroq.kernels")


def choose(
    op: str,
    *,
    M: int,
    N: int,
    K: int,
    group_size: int | None,
    symmetric: bool,
    dtype: torch.dtype,
    device: torch.device | str,
    grad: bool = False,
) -> tuple[Kernel, str]:
    """Return the kernel for this problem and the reason for it.

    The reason is 'first choice', or what the kernels of higher priority objected to.
    Raises ValueError for an unknown op or when no kernel can run the problem.
    """
    kind = torch.device(device).type
    return _choose(Problem(op, M, N, K, group_size, symmetric, dtype, kind, grad))


@lru_cache(maxsize=4096)
def _choose(problem: Problem) -> tuple[Kernel, str]:
    known = {k.op for k in KERNELS.values()}
    if problem.op not in known:
        raise ValueError(f"unknown op {problem.op!r}; known: {', '.join(sorted(known))}")
    dtype = str(problem.dtype).removeprefix("torch.")
    objections: list[str] = []
    for kernel in sorted(KERNELS.values(), key=lambda k: -k.priority):
        if kernel.op != problem.op or kernel.device not in ("any", problem.device):
            continue
        if dtype not in kernel.activations:
            objection = f"{kernel.name} takes {', '.join(kernel.activations)}, not {dtype}"
        else:
            objection = str(_resolve(kernel.predicate)(problem))
        if not objection:
            reason = "; ".join(objections) or "first choice"
            _say_once(kernel.op, kernel.name, reason)
            return kernel, reason
        objections.append(objection)
    raise ValueError(f"no kernel can run {problem}: {'; '.join(objections)}")


@cache
def _say_once(op: str, name: str, reason: str) -> None:
    _log.info("%s: %s (%s)", op, name, reason)


@cache
def _resolve(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def matmul_w4(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
) -> torch.Tensor:
    """Return y (…, N) = x (…, K) · Wᵀ for 4-bit packed W, in x's dtype."""
    return _matmul_packed("matmul_w4", 4, x, qweight, scales, zeros, group_size)


def matmul_w8(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
) -> torch.Tensor:
    """Return y (…, N) = x (…, K) · Wᵀ for 8-bit packed W, in x's dtype."""
    return _matmul_packed("matmul_w8", 8, x, qweight, scales, zeros, group_size)


def gather_w4(
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the rows W[ids] (…, K) of a 4-bit packed W in `dtype`; ids int64 (…) in [0, N)."""
    return _gather_packed("gather_w4", 4, ids, qweight, scales, zeros, group_size, dtype)


def gather_w8(
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the rows W[ids] (…, K) of an 8-bit packed W in `dtype`; ids int64 (…) in [0, N)."""
    return _gather_packed("gather_w8", 8, ids, qweight, scales, zeros, group_size, dtype)


def matmul_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return y (…, N) = x (…, K) · Wᵀ for int4 or int8 W in tiles, in x's dtype."""
    return _multiply_tiled("matmul_tiles", x, weight)


def geglu_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return gelu(gate) · up (…, N/2), in its tanh form, x's dtype.

    gate and up are the products of x (…, K) with W's rows 2i and 2i + 1.
    """
    return _multiply_tiled("geglu_tiles", x, weight)


def _multiply_tiled(op: str, x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    if x.shape[-1] != weight.K:
        raise ValueError(f"{op}: x is {tuple(x.shape)}, the weight needs (…, {weight.K})")
    flat = x.reshape(-1, weight.K)
    kernel = _choose_tiled(op, flat.shape[0], weight, x.dtype, _needs_grad(x))
    y: torch.Tensor = _resolve(kernel.function)(flat, weight)
    return y.view(*x.shape[:-1], -1)


def matmul_w4a8(
    codes: torch.Tensor, x_scales: torch.Tensor, weight: TiledWeight, *, dtype: torch.dtype
) -> torch.Tensor:
    """Return y (…, N) = x̂ (…, K) · Wᵀ in `dtype` for int4 W in tiles, x̂ = codes · x_scales.

    x_scales float32 (M, 1), of `round_rows`. An experiment. Raises ValueError when parts don't fit.
    """
    if codes.dtype != torch.float8_e4m3fn or codes.shape[-1] != weight.K or weight.bits != 4:
        raise ValueError(
            f"matmul_w4a8: codes {codes.dtype} {tuple(codes.shape)}, int{weight.bits} weight; must "
            f"be float8_e4m3fn (…, {weight.K}) and int4"
        )
    flat = codes.reshape(-1, weight.K)
    if x_scales.shape != (len(flat), 1) or x_scales.dtype != torch.float32:
        raise ValueError(f"matmul_w4a8: x_scales must be float32 {(len(flat), 1)}")
    kernel = _choose_tiled("matmul_w4a8", len(flat), weight, dtype, False)
    y: torch.Tensor = _resolve(kernel.function)(flat, x_scales, weight, dtype=dtype)
    return y.view(*codes.shape[:-1], weight.N)


def gather_tiles(ids: torch.Tensor, weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows W[ids] (…, K) of a W in tiles in `dtype`; ids int64 (…) in [0, N)."""
    flat = ids.reshape(-1)
    kernel = _choose_tiled("gather_tiles", flat.shape[0], weight, dtype, False)
    rows: torch.Tensor = _resolve(kernel.function)(flat, weight, dtype)
    return rows.view(*ids.shape, weight.K)


def _choose_tiled(op: str, M: int, weight: TiledWeight, dtype: torch.dtype, grad: bool) -> Kernel:
    kernel, _ = choose(
        op,
        M=M,
        N=weight.N,
        K=weight.K,
        group_size=None if weight.group == weight.K else weight.group,
        symmetric=weight.zeros is None,
        dtype=dtype,
        device=weight.tiles.device,
        grad=grad,
    )
    return kernel


PRECISIONS = ("exact", "int8-coarse", "int8", "int16")


def matmul_panels(
    x: torch.Tensor,
    weight: PanelWeight,
    *,
    precision: str = "int8",
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (…, N) = x (…, K) · Wᵀ + bias + residual for W in panels, in x's dtype.

    precision: "exact" multiplies x as it is; "int8" and "int16" round it to 8 or 15 bits for each
    token and chunk of at most 128 columns. bias (N,); residual (…, N).
    """
    flat = _flatten_for_panels("matmul_panels", x, weight, precision)
    kernel = _choose_panels("matmul_panels", flat, weight)
    rest = None if residual is None else residual.reshape(-1, weight.N)
    y: torch.Tensor = _resolve(kernel.function)(
        flat, weight, precision=precision, bias=bias, residual=rest
    )
    return y.view(*x.shape[:-1], weight.N)


def gated_panels(
    x: torch.Tensor, weight: PanelWeight, *, precision: str = "int8", activation: str = "gelu"
) -> torch.Tensor:
    """Return act(x · gateᵀ) · (x · upᵀ) (…, F) for a weight of `panels.pack_pair`, in x's dtype.

    activation: "gelu" (its tanh form) or "silu".
    """
    if weight.gated is None or activation not in ("gelu", "silu"):
        raise ValueError(
            f"gated_panels: needs a weight of pack_pair and gelu or silu, {activation=}"
        )
    flat = _flatten_for_panels("gated_panels", x, weight, precision)
    kernel = _choose_panels("gated_panels", flat, weight)
    y: torch.Tensor = _resolve(kernel.function)(
        flat, weight, precision=precision, activation=activation
    )
    return y.view(*x.shape[:-1], weight.gated)


def gather_panels(ids: torch.Tensor, weight: PanelWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows W[ids] (…, K) of a W in panels in `dtype`; ids int64 (…) in [0, N)."""
    flat = ids.reshape(-1)
    kernel = _choose_panels("gather_panels", torch.empty(flat.shape[0], 0, dtype=dtype), weight)
    rows: torch.Tensor = _resolve(kernel.function)(flat, weight, dtype)
    return rows.view(*ids.shape, weight.K)


def _flatten_for_panels(
    op: str, x: torch.Tensor, weight: PanelWeight, precision: str
) -> torch.Tensor:
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision {precision!r} is not exact, int8-coarse, int8 or int16")
    if x.shape[-1] != weight.K or not x.is_floating_point():
        raise TypeError(
            f"{op}: x is {x.dtype} {tuple(x.shape)}, the weight needs floating (…, {weight.K})"
        )
    if x.device.type != "cpu":
        raise TypeError(f"{op}: x is on {x.device}, weights in panels are for the CPU")
    return x.reshape(-1, weight.K)


def _choose_panels(op: str, flat: torch.Tensor, weight: PanelWeight) -> Kernel:
    kernel, _ = choose(
        op,
        M=flat.shape[0],
        N=weight.N,
        K=weight.K,
        group_size=None if weight.group == weight.K else weight.group,
        symmetric=weight.symmetric,
        dtype=flat.dtype,
        device="cpu",
        grad=_needs_grad(flat),
    )
    return kernel


def matmul_w8_float(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (…, N) = x (…, K) · Wᵀ for float8 W, x as it is, in x's dtype.

    weight (N, K) float8_e4m3fn; scales (N, 1), or (⌈N/bn⌉, ⌈K/bk⌉) with `block` = (bn, bk).
    Raises ValueError when shapes or dtypes don't fit.
    """
    flat, kernel = _choose_float8("matmul_w8_float", x, weight, scales, block)
    y: torch.Tensor = _resolve(kernel.function)(flat, weight, scales, block=block)
    return y.view(*x.shape[:-1], weight.shape[0])


def matmul_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    block: tuple[int, int] | None = None,
    act_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (…, N) = x̂ (…, K) · Wᵀ, both sides in float8_e4m3fn, in x's dtype.

    As `matmul_w8_float`, but x is rounded to float8 first: with one scale a token (with `block`:
    one for each bk elements of it), or with the calibrated `act_scale` (one element, excludes
    `block`).
    """
    if act_scale is not None and (block is not None or act_scale.numel() != 1):
        raise ValueError("matmul_fp8: act_scale must have one element and excludes block")
    flat, kernel = _choose_float8("matmul_fp8", x, weight, scales, block)
    run = _resolve(kernel.function)
    y: torch.Tensor = run(flat, weight, scales, block=block, act_scale=act_scale)
    return y.view(*x.shape[:-1], weight.shape[0])


def round_rows(
    x: torch.Tensor,
    *,
    producer: str = "plain",
    other: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 1.0,
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a producer makes of x (M, K) as float8_e4m3fn codes (M, K), and their scales.

    producer: "plain", x itself; "norm", x / rms(x) · (offset + other (K,)) with `eps`; "geglu" and
    "swiglu", gelu(x), tanh form, or silu(x) · other (M, K). Scales float32: (M, 1), with group_size
    (M, ⌈K / group_size⌉), or `scale` (one element, excludes group_size) as it is.
    Raises ValueError when `other` is missing or of another shape.
    """
    shapes = {"plain": None, "norm": x.shape[1:], "geglu": x.shape, "swiglu": x.shape}
    if producer not in shapes or (None if other is None else other.shape) != shapes[producer]:
        given = None if other is None else tuple(other.shape)
        raise ValueError(f"round_rows: {producer!r} can't be made of {tuple(x.shape)} and {given}")
    M, K = x.shape
    kernel, _ = choose(
        "round_rows",
        M=M,
        N=K,
        K=K,
        group_size=group_size,
        symmetric=True,
        dtype=x.dtype,
        device=x.device,
        grad=_needs_grad(x),
    )
    found: tuple[torch.Tensor, torch.Tensor] = _resolve(kernel.function)(
        x,
        producer=producer,
        other=other,
        eps=eps,
        offset=offset,
        group_size=group_size,
        scale=scale,
    )
    return found


def matmul_rounded(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    dtype: torch.dtype,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return y (…, N) = x̂ (…, K) · Wᵀ in `dtype`, with x̂ = codes · x_scales of `round_rows`.

    As `matmul_fp8`, but x was rounded by who made it.
    """
    flat, kernel = _choose_float8("matmul_rounded", codes, weight, scales, block, dtype)
    run = _resolve(kernel.function)
    y: torch.Tensor = run(flat, x_scales, weight, scales, dtype=dtype, block=block)
    return y.view(*codes.shape[:-1], weight.shape[0])


def _choose_float8(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int] | None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, Kernel]:
    """Check the shapes; return x as (M, K) and the kernel. dtype: y's, if it isn't x's."""
    if weight.dtype != torch.float8_e4m3fn or weight.dim() != 2:
        raise ValueError(
            f"{op}: weight is {weight.dtype} {tuple(weight.shape)}, must be float8_e4m3fn (N, K)"
        )
    N, K = weight.shape
    want = (N, 1) if block is None else (-(-N // block[0]), -(-K // block[1]))
    if x.shape[-1] != K or tuple(scales.shape) != want:
        raise ValueError(
            f"{op}: x {tuple(x.shape)}, weight {(N, K)} and scales {tuple(scales.shape)} "
            f"don't fit; x must be (…, {K}), scales {want}"
        )
    flat = x.reshape(-1, K)
    kernel, _ = choose(
        op,
        M=flat.shape[0],
        N=N,
        K=K,
        group_size=block[1] if block else None,
        symmetric=True,
        dtype=dtype or x.dtype,
        device=x.device,
        grad=_needs_grad(x),
    )
    return flat, kernel


def _matmul_packed(
    op: str,
    bits: int,
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_size: int | None,
) -> torch.Tensor:
    N, K = _check_packed(op, bits, qweight, scales, zeros, group_size)
    if x.shape[-1] != K:
        raise ValueError(f"{op}: x is {tuple(x.shape)}, qweight {(N, K)} needs (…, {K})")
    flat = x.reshape(-1, K)
    kernel, _ = choose(
        op,
        M=flat.shape[0],
        N=N,
        K=K,
        group_size=group_size,
        symmetric=zeros is None,
        dtype=x.dtype,
        device=x.device,
        grad=_needs_grad(x),
    )
    y: torch.Tensor = _resolve(kernel.function)(flat, qweight, scales, zeros, group_size=group_size)
    return y.view(*x.shape[:-1], N)


def _gather_packed(
    op: str,
    bits: int,
    ids: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    N, K = _check_packed(op, bits, qweight, scales, zeros, group_size)
    flat = ids.reshape(-1)
    kernel, _ = choose(
        op,
        M=flat.shape[0],
        N=N,
        K=K,
        group_size=group_size,
        symmetric=zeros is None,
        dtype=dtype,
        device=qweight.device,
    )
    gather = _resolve(kernel.function)
    rows: torch.Tensor = gather(flat, qweight, scales, zeros, group_size=group_size, dtype=dtype)
    return rows.view(*ids.shape, K)


def _needs_grad(x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _check_packed(
    op: str,
    bits: int,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_size: int | None,
) -> tuple[int, int]:
    """Return (N, K) of a packed weight; raise ValueError when its parts don't fit together."""
    if qweight.dtype != torch.int32 or qweight.dim() != 2:
        raise ValueError(
            f"{op}: qweight is {qweight.dtype} {tuple(qweight.shape)}, must be int32 (N, K·bits/32)"
        )
    N, K = qweight.shape[0], qweight.shape[1] * (32 // bits)
    if K % (group_size or K):
        raise ValueError(f"{op}: K {K} is not divisible by group_size {group_size}")
    want = (N, K // (group_size or K))
    if tuple(scales.shape) != want or not scales.is_floating_point():
        raise ValueError(
            f"{op}: scales are {scales.dtype} {tuple(scales.shape)}, must be floating {want}"
        )
    if zeros is not None and (tuple(zeros.shape) != want or zeros.dtype != torch.int8):
        raise ValueError(f"{op}: zeros are {zeros.dtype} {tuple(zeros.shape)}, must be int8 {want}")
    return N, K
