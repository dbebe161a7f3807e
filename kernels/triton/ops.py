"""The tiled products as torch operators: `torch.compile` and CUDA graphs see one node each.

`torch.ops.soroq.matmul_tiles` and `gather_tiles` run on CUDA; in Triton's interpreter
(TRITON_INTERPRET=1) also on the CPU, to be tested. What is launched is decided by shape
(`kernels.triton.config`), never by timing.
"""

from functools import cache

import torch

from soroq.kernels.cuda import matmul_tiles as cuda_cpp
from soroq.kernels.cuda import warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig
from soroq.kernels.tiles import ALIGN_N, TiledWeight
from soroq.kernels.triton import config, scratch, unpack_tiles
from soroq.kernels.triton.config import Launch
from soroq.kernels.triton.matmul_tiles import INTERPRETED, Epilogue, run

LARGE_M = 1024  # from here on W is unpacked once and cuBLAS multiplies, unless tuned otherwise
LARGE_M_NARROW = 512  # and here already where W has too few rows to keep all SMs busy
UNPACKED_BYTES = 128 << 20  # of W at once then


@cache
def device_facts(device: torch.device) -> tuple[str, int]:
    """Return (name, number of SMs) of a device."""
    if device.type != "cuda":
        return "interpreter", 4
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count


def _matmul(
    x: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ in x's dtype."""
    weight = TiledWeight(tiles, scales, zeros, N, K, group, bits)
    y = x.new_empty(x.shape[0], N)
    if x.shape[0] == 0:
        return y
    plan = _plan(x, weight)
    if plan is None:
        return multiply_unpacked(x, weight, y)
    _launch(x, weight, y, plan, "none", None)
    return y


def _geglu(
    x: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
) -> torch.Tensor:
    """Return gelu(gate) · up (M, N/2) of alternating rows in x's dtype."""
    weight = TiledWeight(tiles, scales, zeros, N, K, group, bits)
    y = x.new_empty(x.shape[0], N // 2)
    if x.shape[0] == 0:
        return y
    plan = _plan(x, weight)
    if plan is None:
        both = multiply_unpacked(x, weight, x.new_empty(x.shape[0], N))
        gate: torch.Tensor = torch.nn.functional.gelu(both[:, 0::2], approximate="tanh")
        return gate * both[:, 1::2]
    _launch(x, weight, y, plan, "geglu", None)
    return y


def _gather(
    ids: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`."""
    return unpack_tiles.gather(ids, TiledWeight(tiles, scales, zeros, N, K, group, bits), dtype)


_library = torch.library.Library("soroq", "FRAGMENT")
_WEIGHT = "Tensor tiles, Tensor scales, Tensor? zeros, int N, int K, int group, int bits"
_library.define(f"matmul_tiles(Tensor x, {_WEIGHT}) -> Tensor")
_library.define(f"geglu_tiles(Tensor x, {_WEIGHT}) -> Tensor")
_library.define(f"gather_tiles(Tensor ids, {_WEIGHT}, ScalarType dtype) -> Tensor")
_KEY = "CompositeExplicitAutograd" if INTERPRETED else "CUDA"
_library.impl("matmul_tiles", _matmul, _KEY)
_library.impl("geglu_tiles", _geglu, _KEY)
_library.impl("gather_tiles", _gather, _KEY)


@torch.library.register_fake("soroq::matmul_tiles", lib=_library)
def _fake_matmul(
    x: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], N)


@torch.library.register_fake("soroq::geglu_tiles", lib=_library)
def _fake_geglu(
    x: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], N // 2)


@torch.library.register_fake("soroq::gather_tiles", lib=_library)
def _fake_gather(
    ids: torch.Tensor,
    tiles: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    N: int,
    K: int,
    group: int,
    bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return scales.new_empty(ids.shape[0], K, dtype=dtype)


def matmul_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ; x contiguous, bfloat16 or float16."""
    w = weight
    y: torch.Tensor = torch.ops.soroq.matmul_tiles(
        x, w.tiles, w.scales, w.zeros, w.N, w.K, w.group, w.bits
    )
    return y


def gather_tiles(ids: torch.Tensor, weight: TiledWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`; ids int64 (M,)."""
    w = weight
    rows: torch.Tensor = torch.ops.soroq.gather_tiles(
        ids, w.tiles, w.scales, w.zeros, w.N, w.K, w.group, w.bits, dtype
    )
    return rows


def geglu_tiles(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return gelu(gate) · up (M, N/2), tanh form; W's rows 2i are gate's, 2i + 1 up's."""
    w = weight
    y: torch.Tensor = torch.ops.soroq.geglu_tiles(
        x, w.tiles, w.scales, w.zeros, w.N, w.K, w.group, w.bits
    )
    return y


def matmul_add(x: torch.Tensor, weight: TiledWeight, residual: torch.Tensor) -> torch.Tensor:
    """Return residual (M, N) + x · Wᵀ, added in float32."""
    y = torch.empty_like(residual)
    plan = _plan(x, weight)
    if plan is None:
        return multiply_unpacked(x, weight, y).add_(residual)
    _launch(x, weight, y, plan, "residual", residual)
    return y


def matmul_topk(x: torch.Tensor, weight: TiledWeight, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest elements of each row of x · Wᵀ, float32 (M, k), and where they are.

    They lie in the k blocks with the largest maxima, which the product leaves behind: k blocks are
    searched, not the vocabulary. Of equal values any may be returned.
    """
    M = x.shape[0]
    y = x.new_empty(M, weight.N, dtype=torch.float32)
    name, sms = device_facts(x.device)
    chosen = config.choose(name, sms, M, weight.N, weight.K, weight.group, weight.bits)
    assert isinstance(chosen, config.Config)  # only the Triton kernel leaves maxima
    blocks = chosen.blocks(M, weight.N)[0]
    maxima = x.new_empty(M, blocks, dtype=torch.float32)
    memory = scratch.get(x.device, sms)
    launch(x.contiguous(), weight, y, chosen, memory, epilogue="maxima", extra=maxima)
    best = maxima.topk(min(k, blocks), sorted=False).indices
    offsets = torch.arange(chosen.block_n, device=x.device)
    at = (best[..., None] * chosen.block_n + offsets).flatten(1)
    candidates = y.gather(1, at.clamp_max(weight.N - 1))
    candidates.masked_fill_(at >= weight.N, float("-inf"))
    values, picked = candidates.topk(k)
    return values, at.gather(1, picked)


def _plan(x: torch.Tensor, weight: TiledWeight) -> Launch | None:
    """Return how x · Wᵀ is launched, None where W is unpacked first.

    That was as fast or faster on an H100 for many tokens, but for the kernel that only Hopper has.
    """
    M = x.shape[0]
    name, sms = device_facts(x.device)
    shape = (M, weight.N, weight.K, weight.group, weight.bits)
    can_cuda = x.is_cuda and cuda_cpp.library() is not None
    hopper = warpgroups.can_run(x.device)
    chosen = config.choose(name, sms, *shape, cuda_cpp=can_cuda, hopper=hopper)
    if isinstance(chosen, WarpgroupConfig):
        return chosen
    blocks = -(-M // 128) * -(-weight.N // 128)
    unpacks = M >= LARGE_M or (M >= LARGE_M_NARROW and blocks < sms)
    return None if unpacks else chosen


def launch(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: Launch,
    memory: scratch.Scratch,
    *,
    epilogue: Epilogue = "none",
    extra: torch.Tensor | None = None,
) -> None:
    """Write x (M, K) · Wᵀ into y as `config` says, by the kernel it belongs to.

    x contiguous; epilogue and extra as in `matmul_tiles.run`, 'maxima' only by the Triton kernel.
    """
    partials, counters = memory.partials, memory.counters
    if isinstance(config, CudaConfig):
        cuda_cpp.run(x, weight, y, config, partials, counters, epilogue=epilogue, extra=extra)
    elif isinstance(config, WarpgroupConfig):
        warpgroups.run(x, weight, y, config, epilogue=epilogue, extra=extra)
    else:
        run(x, weight, y, config, partials, counters, epilogue=epilogue, extra=extra)


def _launch(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    plan: Launch,
    epilogue: Epilogue,
    extra: torch.Tensor | None,
) -> None:
    memory = scratch.get(x.device, device_facts(x.device)[1])
    launch(x.contiguous(), weight, y, plan, memory, epilogue=epilogue, extra=extra)


def multiply_unpacked(x: torch.Tensor, weight: TiledWeight, y: torch.Tensor) -> torch.Tensor:
    """Write x · Wᵀ into y with torch's product, some rows of W at a time."""
    rows = max(1, UNPACKED_BYTES // (weight.K * x.element_size() * ALIGN_N)) * ALIGN_N
    for start in range(0, weight.N, rows):
        stop = min(start + rows, weight.N)
        part = weight if rows >= weight.N else weight.rows(start, stop)
        torch.mm(x, unpack_tiles.unpack(part, x.dtype).t(), out=y[:, start:stop])
    return y
