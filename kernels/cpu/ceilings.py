"""What this machine can do at most, measured: the figures that a kernel's speed stands beside.

    >>> read_gb_s(2), int8_gop_s(2), fma_gflop_s(2)

Each is the best of some tries: a ceiling is what can be had, not what a busy machine gives.
"""

import time

import torch

READ_BYTES = 256 * 2**20  # beyond any cache of the machines meant here
TRIES = 8
ROUNDS = 2_000_000


def read_gb_s(n_threads: int) -> float:
    """Return 10⁹ bytes a second that n_threads read from memory, in huge pages, written before."""
    from soroq import _cpu

    data = torch.from_numpy(_cpu.allocate(READ_BYTES))
    data.fill_(1)
    return READ_BYTES / _best(n_threads, lambda: _cpu.read_bytes(data)) / 1e9


def int8_gop_s(n_threads: int) -> float:
    """Return 10⁹ int8 operations a second, a product and a sum counting two, from registers."""
    from soroq import _cpu

    operations = 0

    def run() -> None:
        nonlocal operations
        operations = _cpu.run_int8(ROUNDS)

    seconds = _best(n_threads, run)
    return operations / seconds / 1e9


def fma_gflop_s(n_threads: int) -> float:
    """Return 10⁹ float32 operations a second of multiply-adds from registers."""
    from soroq import _cpu

    operations = 0

    def run() -> None:
        nonlocal operations
        operations = _cpu.run_fma(ROUNDS)

    seconds = _best(n_threads, run)
    return operations / seconds / 1e9


def _best(n_threads: int, run: object) -> float:
    from soroq import _cpu

    assert callable(run)
    before = _cpu.num_threads()
    _cpu.set_num_threads(n_threads)
    best = float("inf")
    try:
        for _ in range(TRIES):
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
    finally:
        _cpu.set_num_threads(before)
    return best
