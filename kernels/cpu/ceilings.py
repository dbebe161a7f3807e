"""What this machine can do at most, measured now: plain reads, int8 products, multiply-adds.

    read_gb_s(2)      # of 256 MiB in huge pages, more than any cache holds
    int8_gop_s(2)     # independent vpdpbusd (or what the instruction set has), from registers
    fma_gflop_s(2)    # the same with float32

Each is the fastest of a few runs of about 20 ms: too low a ceiling flatters what is under it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

READ_BYTES = 256 << 20
RUN_S = 0.02
RUNS = 7


def read_gb_s(n_threads: int) -> float:
    """Return 10⁹ bytes a second that `n_threads` read of memory at most."""
    from soroq import _cpu

    with _threads(n_threads):
        data = _bytes()
        return _fastest(lambda: (_cpu.read_bytes(data), data.numel())[1]) / 1e9


def int8_gop_s(n_threads: int) -> float:
    """Return 10⁹ int8 operations a second, a product and a sum being two."""
    from soroq import _cpu

    with _threads(n_threads):
        return _fastest(_sized(_cpu.run_int8)) / 1e9


def fma_gflop_s(n_threads: int) -> float:
    """Return 10⁹ float32 operations a second."""
    from soroq import _cpu

    with _threads(n_threads):
        return _fastest(_sized(_cpu.run_fma)) / 1e9


@cache
def _bytes() -> torch.Tensor:
    from soroq import _cpu

    data: torch.Tensor = torch.as_tensor(_cpu.allocate(READ_BYTES))
    return data.fill_(1)  # pages that were never written are all the same one


@contextmanager
def _threads(n: int) -> Iterator[None]:
    from soroq import _cpu

    before = _cpu.num_threads()
    _cpu.set_num_threads(n)
    try:
        yield
    finally:
        _cpu.set_num_threads(before)


def _sized(run: Callable[[int], int]) -> Callable[[], int]:
    """Return a call of `run` with as many rounds as take RUN_S."""
    rounds, seconds = 250, 0.0
    while seconds < RUN_S / 4:
        rounds *= 4
        begin = time.perf_counter()
        run(rounds)
        seconds = time.perf_counter() - begin
    enough = max(1, int(rounds * RUN_S / seconds))
    return lambda: run(enough)


def _fastest(call: Callable[[], int]) -> float:
    """Return the most units a second of RUNS calls."""
    best = 0.0
    for _ in range(RUNS):
        begin = time.perf_counter()
        units = call()
        best = max(best, units / (time.perf_counter() - begin))
    return best
