"""Which problems the Triton kernels take; nothing of Triton is imported to answer."""

import importlib.util
from functools import cache

import torch

from soroq.kernels.problem import Problem
from soroq.kernels.tiles import objection


@cache
def is_installed() -> bool:
    """Tell whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def can_use_tiles(problem: Problem) -> str:
    """Return '' when matmul_tiles and gather_tiles can run the problem, otherwise why not."""
    return _objection(problem) or objection(problem.K, problem.group_size)


def can_use_float8(problem: Problem) -> str:
    """Return '' when the float8 kernels can run the problem, otherwise why not."""
    if why := _objection(problem):
        return why
    if problem.group_size not in (None, 128):
        return (
            f"the float8 kernels take scales of rows or of 128 × 128, not of {problem.group_size}"
        )
    return lacks_float8()


def can_use_w4a8(problem: Problem) -> str:
    """Return '' when matmul_w4a8 can run the problem, otherwise why not."""
    return can_use_tiles(problem) or lacks_float8()


def lacks_float8() -> str:
    """Return 'the GPU has no float8' where that is so, '' on other GPUs and without one."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        return "the GPU has no float8"
    return ""


def _objection(problem: Problem) -> str:
    """Return why no Triton kernel runs the problem, '' when one may."""
    if not is_installed():
        return "triton is not installed"
    if problem.grad:
        return "the Triton kernels have no backward"
    if problem.dtype not in (torch.bfloat16, torch.float16):
        return f"the Triton kernels take bfloat16 and float16, not {problem.dtype}"
    return ""
