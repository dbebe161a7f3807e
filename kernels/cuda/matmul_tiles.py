"""y = x · Wᵀ for few rows of x, W in tiles: the CUDA C++ kernel, called through ctypes.

The library is built by CMake where nvcc is (`soroq/_cuda.so`); SOROQ_CUDA_LIBRARY names another.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

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
    loaded = library()
    if loaded is None:
        raise RuntimeError("the CUDA library is not built")
    error = loaded.soroq_matmul_tiles(
        x.data_ptr(),
        weight.tiles.data_ptr(),
        weight.scales.data_ptr(),
        None if weight.zeros is None else weight.zeros.data_ptr(),
        y.data_ptr(),
        None if extra is None else extra.data_ptr(),
        partials.data_ptr(),
        counters.data_ptr(),
        x.shape[0],
        weight.N,
        weight.K,
        weight.scales.shape[1],
        weight.span,
        weight.bits,
        int(x.dtype == torch.float16),
        int(y.dtype == torch.float32),
        EPILOGUES[epilogue],
        config.tokens_8,
        config.rows_16,
        config.depth,
        config.warps_n,
        config.warps_k,
        config.splits,
        int(overlaps),
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    if error:
        raise RuntimeError(f"matmul_tiles of M {x.shape[0]} and {config}: CUDA error {error}")
