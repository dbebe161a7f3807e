"""Race products on a CPU: all in one process, in turn, in an order that changes with every turn.

A runner has units; a unit is one call that multiplies by weights which no other unit touches.
Turn by turn every runner goes on with its next unit, so its weights come from memory when all its
units together are larger than the caches (`cold`), or from the caches when it has one (`hot`).
Other libraries' worker threads spin for a while behind their last call, on the cores that the next
runner needs: before a sample, the clock waits until this process rests.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

COLD_BYTES = 4 * 32 << 20  # more than four times a last-level cache of 32 MB
SAMPLE_S = 0.01  # a sample takes at least so long, or one unit
WARM_S = 0.03  # units longer than that need no warm-up behind another runner
REST_S, REST_MOST_S = 1e-3, 0.1
FEWEST, MOST = 5, 25  # samples of each


@dataclass
class Runner:
    """units: calls in turn, each `products` matmuls; result: y (M, N) of the first unit."""

    units: Sequence[Callable[[], object]]
    products: int
    result: Callable[[], torch.Tensor]
    turn: int = 0
    samples: list[float] = field(default_factory=list)  # microseconds a product
    unit_s: float = 0.0

    def advance(self) -> None:
        """Run the next unit."""
        self.units[self.turn]()
        self.turn = (self.turn + 1) % len(self.units)


@dataclass(frozen=True)
class Summary:
    """Microseconds a product."""

    median: float
    p20: float
    p80: float


def order(names: Sequence[str], turn: int) -> list[str]:
    """Return names as they run in this turn: each starts once in n, every second turn backwards."""
    start = turn % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if turn % 2 else turned


def rest() -> None:
    """Wait until no thread of this process runs, or REST_MOST_S."""
    deadline = time.perf_counter() + REST_MOST_S
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(REST_S)
        if time.process_time() - before < REST_S / 4:
            return


def race(
    runners: Mapping[str, Runner],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[], None] = rest,
) -> None:
    """Take samples of all runners until `seconds` are over: at least FEWEST, at most MOST."""
    deadline = clock() + seconds
    for runner in runners.values():
        _sample(runner, clock)  # what is slow at first: page faults, packing on first use
    for turn in range(MOST if runners else 0):
        if turn >= FEWEST and clock() > deadline:
            break
        for name in order(list(runners), turn):
            rest()
            if runners[name].unit_s < WARM_S:
                _sample(runners[name], clock)
            runners[name].samples.append(_sample(runners[name], clock))


def _sample(runner: Runner, clock: Callable[[], float]) -> float:
    """Run units for SAMPLE_S; return microseconds a product."""
    begin = clock()
    units = 0
    while True:
        runner.advance()
        units += 1
        seconds = clock() - begin
        if seconds >= SAMPLE_S:
            break
    runner.unit_s = seconds / units
    return seconds * 1e6 / (units * runner.products)


def summarize(samples: Sequence[float]) -> Summary:
    """Return the median and the 20th and 80th percentile."""
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0])
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Summary(statistics.median(samples), fifths[0], fifths[3])
