"""y = x · Wᵀ for few rows of x, W in tiles: the CUDA C++ kernel, called through ctypes.

The library is built by CMake where nvcc is (`soroq/_cuda.so`); SOROQ_CUDA_LIBRARY names another.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.tiles import TiledWeight

EPILOGUES = {"none": 0, "residual": 1, "geglu": 2}


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, None where it wasn't built."""
    named = os.environ.get("SOROQ_CUDA_LIBRARY")
    import soroq

    places = [Path(named)] if named else [Path(p) / "_cuda.so" for p in soroq.__path__]
    for place in places:
        if place.is_file():
            found = ctypes.CDLL(str(place))
            pointers, numbers = [ctypes.c_void_p] * 8, [ctypes.c_int] * 16
            found.soroq_matmul_tiles.argtypes = [*pointers, *numbers, ctypes.c_void_p]
            if hasattr(found, "soroq_matmul_warpgroups"):  # built for sm_90a
                pointers, numbers = [ctypes.c_void_p] * 7, [ctypes.c_int] * 15
                found.soroq_matmul_warpgroups.argtypes = [*pointers, *numbers, ctypes.c_void_p]
            return found
    return None


def run(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: CudaConfig,
    partials: torch.Tensor,
    counters: torch.Tensor,
    *,
    epilogue: str = "none",
    extra: torch.Tensor | None = None,
    overlaps: bool = True,
) -> None:
    """Write x (M, K) · Wᵀ into y (M, N), contiguous; y is float32 or x's dtype.

    epilogue: 'residual' adds extra (M, N); 'geglu' writes y (M, N/2) = gelu(row 2i) · row 2i + 1;
    partials float32 and counters int32 (all 0 before and after) hold at least `config.scratch`.
    overlaps: on Hopper and newer, start while the launch before this one ends (its weights are read
    then, everything else after). Raises RuntimeError with CUDA's error when it wasn't launched.
    """
    call("matmul_tiles", x, weight, y, extra, (partials, counters), epilogue, config, overlaps)


def call(
    name: str,
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    extra: torch.Tensor | None,
    memory: Sequence[torch.Tensor],
    epilogue: str,
    config: Any,
    overlaps: bool,
) -> None:
    """Launch the library's kernel of this name on x's stream.

    memory: what else it writes. config: a dataclass with the fields of the kernel's C interface, in
    their order. Raises RuntimeError without the library, and with CUDA's error when it wasn't
    launched.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("the CUDA library is not built")
    tensors = (x, weight.tiles, weight.scales, weight.zeros, y, extra, *memory)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    sizes = (x.shape[0], weight.N, weight.K, weight.scales.shape[1], weight.span, weight.bits)
    kinds = (int(x.dtype == torch.float16), int(y.dtype == torch.float32), EPILOGUES[epilogue])
    launch = (
        *vars(config).values(),
        int(overlaps),
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    error = getattr(loaded, f"soroq_{name}")(*pointers, *sizes, *kinds, *launch)
    if error:
        raise RuntimeError(f"{name} of M {x.shape[0]} and {config}: CUDA error {error}")
