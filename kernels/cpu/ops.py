"""int4 on the CPU: torch tensors in and out, the work in soroq._cpu (kernels/cpu/csrc)."""

import importlib.util
from functools import cache

import torch

from soroq.kernels.problem import Problem

# The scalar kernel's time grows with M, the reference's is mostly unpacking. One thread of an AMD
# EPYC, N 2048, K 640, minimum of 40: M = 1: 2.4 against 5.8 ms, 8: 5.6 against 6.4, 16: 9.1
# against 7.4.
MAX_M = 8


@cache
def is_built() -> bool:
    """Tell whether soroq._cpu was compiled: a bare checkout runs without it."""
    return importlib.util.find_spec("soroq._cpu") is not None


def can_matmul_w4(problem: Problem) -> str:
    """Return '' when `matmul_w4` below is the kernel to take, otherwise why not."""
    if not is_built():
        return "soroq._cpu is not built"
    if problem.grad:
        return "matmul_w4_scalar has no backward"
    if problem.M > MAX_M:
        return f"M {problem.M} > {MAX_M}: unpacking once for torch's matmul is faster"
    return ""


def matmul_w4(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    group_size: int | None,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ for 4-bit packed W; see `kernels/reference/packed.py`."""
    from soroq import _cpu

    y = torch.empty(x.shape[0], qweight.shape[0])
    _cpu.matmul_w4(
        x.detach().float().contiguous(),
        qweight.contiguous(),
        scales.detach().float().contiguous(),
        None if zeros is None else zeros.contiguous(),
        y,
        group_size=group_size or x.shape[1],
        n_threads=torch.get_num_threads(),
    )
    return y.to(x.dtype)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes int8 (N, K) in −8…7 to int32 (N, ⌈K / 8⌉), as `soroq.core.packing.pack_rows`.

    Raises ValueError for a code out of range.
    """
    from soroq import _cpu

    words = torch.empty(codes.shape[0], -(-codes.shape[1] // 8), dtype=torch.int32)
    _cpu.pack_int4(codes.contiguous(), words)
    return words


def unpack_int4(words: torch.Tensor, K: int) -> torch.Tensor:
    """Invert `pack_int4`: int32 (N, ⌈K / 8⌉) to codes int8 (N, K)."""
    from soroq import _cpu

    codes = torch.empty(words.shape[0], K, dtype=torch.int8)
    _cpu.unpack_int4(words.contiguous(), codes)
    return codes
