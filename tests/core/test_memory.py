"""Freed memory goes back to the system, and a summary needs little beside what it sums up."""

import subprocess
import sys

import pytest

KEPT = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
import ctypes
from soroq.core.memory import release_memory
held = [ctypes.create_string_buffer(1000) for _ in range(200_000)]
pin = ctypes.create_string_buffer(1000)  # on top of the heap: nothing below is given back by itself
del held
before = resident()
release_memory()
print(before - resident())
"""

SUMMARY = """
import resource, torch
from soroq.bench.quality.tables import base_rows
torch.set_num_threads(1)
def summarize(n):
    rows = torch.randn(n, 262_144).log_softmax(1)
    base_rows(rows, torch.zeros(n, dtype=torch.int64), torch.Generator())
summarize(1)
log_p = torch.randn(64, 262_144)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
base_rows(log_p, torch.zeros(64, dtype=torch.int64), torch.Generator().manual_seed(0))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def _run(program: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and glibc")
def test_what_was_freed_is_given_back() -> None:
    assert _run(KEPT) > 100e6  # of 200 MB


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_summary_of_64_positions_takes_less_than_250_mb() -> None:
    # 160 measured; 500 if all 64 distributions of 1 MB exist several times over at once
    assert _run(SUMMARY) < 250e6
