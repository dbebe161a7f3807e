"""Time calls on a GPU against each other: rotating weights, CUDA graphs, medians of rounds.

A call is repeated over enough copies of its weights that none is in the L2 cache when its turn
comes (`cold`), or over one (`hot`). All contenders run in one process, one replay each in turn, in
an order that is turned round every time; what is compared is the median over rounds. Without CUDA
the same code runs with a wall clock, so that it can be tried.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

CALLS = 100  # in a graph; fewer when a call is long
GRAPH_SECONDS = 4e-3
ROUNDS = 30
COLD_L2 = 4  # copies together are so many times the L2 cache
LEAST_COLD_BYTES = 256 << 20
MOST_COPIES = 64

Call = Callable[[int], object]  # runs with its i-th copy of the weights


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: median over rounds, and the quartiles."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int


def cold_copies(nbytes: int, device: torch.device) -> int:
    """Return how many copies of `nbytes` keep each other out of the L2 cache."""
    if device.type != "cuda":
        return 2
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = max(LEAST_COLD_BYTES, COLD_L2 * l2)
    return min(MOST_COPIES, max(2, math.ceil(wanted / nbytes)))


def race(
    contenders: Mapping[str, tuple[Call, int]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Time contenders, name → (call, copies), in turn; return what each needs."""
    if device.type != "cuda":
        return {name: _wall(call, copies) for name, (call, copies) in contenders.items()}
    graphs = {name: _capture(call, copies) for name, (call, copies) in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 2):  # two to warm up
        names = list(graphs) if number % 2 else list(graphs)[::-1]
        for name in names:
            graph, calls = graphs[name]
            start, stop = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            if number >= 2:
                times[name].append(start.elapsed_time(stop) * 1e3 / calls)
    return {name: _summary(values, graphs[name][1]) for name, values in times.items()}


def _capture(call: Call, copies: int) -> tuple[torch.cuda.CUDAGraph, int]:
    """Return a graph of calls over all copies, and how many calls it holds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for copy in range(copies):
            call(copy)  # compiles, and leaves scratch memory behind
        stream.synchronize()
        begin = time.perf_counter()
        for copy in range(copies):
            call(copy)
        stream.synchronize()
        seconds = (time.perf_counter() - begin) / copies
    torch.cuda.current_stream().wait_stream(stream)
    calls = max(copies, min(CALLS, int(GRAPH_SECONDS / seconds) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            call(number % copies)
    return graph, calls


def _wall(call: Call, copies: int) -> Timing:
    call(0)
    times = []
    for number in range(3):
        begin = time.perf_counter()
        call(number % copies)
        times.append((time.perf_counter() - begin) * 1e6)
    return _summary(times, 1)


def _summary(times: list[float], calls: int) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high, len(times), calls)
