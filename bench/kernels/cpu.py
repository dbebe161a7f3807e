"""The CPU's int4 products against everybody else's, bounded by what this machine can do at all.

    soroq bench cpu                                    # 1 and 2 threads, cold, under 12 minutes
    soroq bench cpu --shapes "4b down" --rows 1 --threads 2 --hot
    soroq bench cpu --table                            # the last run, as Markdown
    soroq bench cpu --picture roofline.svg

A process for each number of threads, all contenders in it, in turn (`cpu_race`). A contender whose
product is not what float64 makes of its own weights is refused. Speeds are of the packed weights'
bytes and of 2 · M · N · K operations; the ceilings are measured in the same process. Every
measurement is a line in bench/records/<device>/cpu-kernels.jsonl.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soroq.bench.kernels.cpu_contender import LIMITS, Contender, Ready, Unfit
from soroq.bench.kernels.cpu_peers import DEFAULT_WHO, everybody
from soroq.bench.kernels.cpu_problem import Problem, make_problem
from soroq.bench.kernels.cpu_race import COLD_BYTES, Runner, race, summarize
from soroq.bench.kernels.shapes import SHAPES, Shape, named
from soroq.bench.record import append_records
from soroq.kernels.cpu import ceilings

BENCH = "cpu-kernels"
DEFAULT_SHAPES = "270m head,1b gate_up,1b down,4b gate_up,4b down,12b down"
DEFAULT_ROWS = (1, 4, 16, 128, 512)
HEAD_ROWS = 16  # by default: a prefill wants the last token's logits only
SECONDS = 660.0  # of the default run
OURS = "soroq"
TRIAL = Shape("trial", 96, 256)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is raced: shapes and their Ms; `who`: beginnings of contenders' names."""

    shapes: dict[Shape, tuple[int, ...]]
    cold: tuple[bool, ...]
    who: tuple[str, ...]
    seconds: float
    cold_bytes: int = COLD_BYTES
    keep: bool = True

    @property
    def n_cells(self) -> int:
        return sum(len(rows) for rows in self.shapes.values()) * len(self.cold)


@dataclass(frozen=True)
class Ceilings:
    """What the machine does with so many threads: the most that this process has seen so far."""

    read_gb_s: float = 0.0
    int8_gop_s: float = 0.0
    fma_gflop_s: float = 0.0


def measure_ceilings(threads: int, so_far: Ceilings) -> Ceilings:
    """Measure plain reads, int8 dot products and float32 fused multiply-adds once more."""
    return Ceilings(
        max(so_far.read_gb_s, ceilings.read_gb_s(threads)),
        max(so_far.int8_gop_s, ceilings.int8_gop_s(threads)),
        max(so_far.fma_gflop_s, ceilings.fma_gflop_s(threads)),
    )


def measure(request: Request, threads: int) -> list[Entry]:
    """Race everybody with so many threads; return an entry for each contender and product."""
    _use_threads(threads)
    contenders, absent, versions = everybody(threads)
    for line in absent:
        _say(line)
    contenders = [c for c in contenders if c.name.startswith(request.who)]
    deadline = time.monotonic() + request.seconds
    left = request.n_cells
    found: list[Entry] = []
    top = Ceilings()
    for shape, rows in request.shapes.items():
        top = measure_ceilings(threads, top)
        problem = make_problem(shape, max(rows))
        for cold in request.cold:
            entered, entries = _prepare(contenders, problem, request.cold_bytes if cold else 0)
            for M in sorted(rows, reverse=True):  # the slow ones first
                seconds = max(0.0, deadline - time.monotonic()) / left
                entries += _round(entered, problem, M, seconds, top)
                left -= 1
            where = {"threads": threads, "cold": cold, "versions": versions}
            entries = [entry | where for entry in entries]
            _report(entries, shape, top)
            if request.keep:
                append_records(BENCH, entries)
            found += entries
            del entered
            gc.collect()
    return found


Entered = list[tuple[Contender, Ready]]


def _prepare(
    contenders: Sequence[Contender], problem: Problem, cold_bytes: int
) -> tuple[Entered, list[Entry]]:
    """Return who is ready, and an entry with the reason for each who isn't."""
    entered: Entered = []
    failed: list[Entry] = []
    for contender in contenders:
        try:
            entered.append((contender, contender.prepare(problem, cold_bytes)))
        except (Unfit, RuntimeError, OSError) as error:
            failed += [_who(contender, problem.shape) | {"error": str(error)[:300]}]
    return entered, failed


def _round(
    entered: Entered, problem: Problem, M: int, seconds: float, top: Ceilings
) -> list[Entry]:
    """Check everybody's product for the first M inputs, then race those who are right."""
    found: list[Entry] = []
    racing: dict[str, tuple[Contender, Ready, Runner, float]] = {}
    for contender, ready in entered:
        try:
            runner = ready.runner(problem.inputs[:M])
            error = problem.relative_error(runner.result(), ready.weight)
        except (ValueError, RuntimeError) as refusal:
            found.append(_who(contender, problem.shape) | {"M": M, "error": str(refusal)[:300]})
            continue
        if error <= LIMITS[contender.precision]:
            racing[contender.name] = (contender, ready, runner, error)
        else:
            why = f"wrong: relative error {error:.1e}, limit {LIMITS[contender.precision]:.0e}"
            found.append(_who(contender, problem.shape) | {"M": M, "error": why})
    race({name: runner for name, (_, _, runner, _) in racing.items()}, seconds)
    timed = [_entry(*racer, problem.shape, M, top) for racer in racing.values()]
    best = min((e for e in timed if e["peer"] != OURS), key=lambda e: e["median"], default=None)
    for entry in timed:
        if best is not None:
            entry["baseline"] = {"kernel": best["kernel"], "median": best["median"]}
            entry["times_baseline"] = round(best["median"] / entry["median"], 3)
    return found + timed


def _who(contender: Contender, shape: Shape) -> Entry:
    return {
        "kernel": contender.name,
        "peer": contender.family,
        "shape": shape.name,
        "N": shape.N,
        "K": shape.K,
        "dtype": contender.precision,
        "layout": contender.layout,
    }


def _entry(
    contender: Contender,
    ready: Ready,
    runner: Runner,
    error: float,
    shape: Shape,
    M: int,
    top: Ceilings,
) -> Entry:
    """Return one measurement: times in microseconds a product, speeds, shares of the ceilings."""
    summary = summarize(runner.samples)
    ops = 2 * M * shape.N * shape.K
    gb_s, gop_s = ready.nbytes / summary.median / 1e3, ops / summary.median / 1e3
    shares = {"read": gb_s / top.read_gb_s, "int8": gop_s / top.int8_gop_s}
    bound = max(shares, key=lambda name: shares[name])
    return _who(contender, shape) | {
        "M": M,
        "samples": [round(sample, 2) for sample in runner.samples],
        "median": round(summary.median, 2),
        "p20": round(summary.p20, 2),
        "p80": round(summary.p80, 2),
        "unit": "us",
        "warm_up": "a sample before each sample, discarded",
        "copies": ready.copies,
        "bytes": ready.nbytes,
        "ops": ops,
        "gb_s": round(gb_s, 2),
        "gop_s": round(gop_s, 1),
        "read_gb_s": round(top.read_gb_s, 2),
        "int8_gop_s": round(top.int8_gop_s, 1),
        "fma_gflop_s": round(top.fma_gflop_s, 1),
        "fraction": round(shares[bound], 4),
        "bound": bound,
        "rel_error": float(f"{error:.3e}"),
    }


def _report(entries: Sequence[Entry], shape: Shape, top: Ceilings) -> None:
    """Print one shape's entries."""
    for entry in entries:
        if "error" in entry:
            at = f", M {entry['M']}" if "M" in entry else ""
            _say(f"{entry['kernel']}, {shape.name}{at}: left out, {entry['error']}")
    timed = [entry for entry in entries if "median" in entry]
    for M in dict.fromkeys(entry["M"] for entry in timed):
        cell = [entry for entry in timed if entry["M"] == M]
        first = cell[0]
        _say(
            f"{shape.name} {shape.N} x {shape.K}, M {M}, {first['threads']} threads, "
            f"{'cold' if first['cold'] else 'hot'}; reads {top.read_gb_s:.1f} GB/s, "
            f"int8 {top.int8_gop_s:.0f} GOP/s, FMA {top.fma_gflop_s:.0f} GFLOP/s"
        )
        for e in sorted(cell, key=lambda entry: entry["median"]):
            times = f"{e['times_baseline']:.2f} x best peer" if "times_baseline" in e else ""
            _say(
                f"  {e['kernel']:28} {e['median']:11.1f} us ({e['p20']:.1f}-{e['p80']:.1f}) "
                f"{e['gb_s']:6.1f} GB/s {e['gop_s']:7.1f} GOP/s {e['fraction']:4.2f} of "
                f"{e['bound']:4} {times:18} error {e['rel_error']:.1e}"
            )


def _use_threads(threads: int) -> None:
    from soroq import _cpu

    torch.set_num_threads(threads)
    _cpu.set_num_threads(threads)


def _say(text: str) -> None:
    print(text, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _shapes(text: str) -> tuple[Shape, ...]:
    if text == "all":
        return tuple(shape for shape in SHAPES if not shape.name.startswith("square"))
    return tuple(named(*(name.strip() for name in text.split(","))))


def _rows(shape: Shape, text: str) -> tuple[int, ...]:
    if text:
        return _numbers(text)
    most = HEAD_ROWS if shape.name.endswith("head") else max(DEFAULT_ROWS)
    return tuple(M for M in DEFAULT_ROWS if most >= M)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=DEFAULT_SHAPES, help="names, or all")
    parser.add_argument("--rows", default="", help="values of M")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--hot", action="store_true", help="one copy of the weights, in the caches")
    parser.add_argument("--both", action="store_true", help="cold and hot")
    parser.add_argument("--who", default="", help="beginnings of contenders' names, or all")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--try", dest="trial", action="store_true", help="in miniature, no record")
    parser.add_argument("--table", action="store_true", help="the last run's records, as Markdown")
    parser.add_argument("--picture", type=Path, help="the last run's records, as SVG")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code: 1 when a product of ours is wrong."""
    options = _parse(arguments)
    if options.table or options.picture is not None:
        return _show(options)
    try:
        shapes = {shape: _rows(shape, options.rows) for shape in _shapes(options.shapes)}
        threads = _numbers(options.threads)
    except (KeyError, ValueError) as error:
        known = ", ".join(shape.name for shape in SHAPES)
        print(f"bench cpu: {error.args[0]!r} is neither a number nor a shape: {known}")
        return 2
    if len(threads) > 1:
        return max(_in_process_of_its_own(options, arguments, n, len(threads)) for n in threads)
    cold = (True, False) if options.both else (not options.hot,)
    request = Request(
        shapes={TRIAL: (1, 3)} if options.trial else shapes,
        cold=cold,
        who=("",) if options.who == "all" else tuple((options.who or DEFAULT_WHO).split(",")),
        seconds=0.0 if options.trial else options.seconds,
        cold_bytes=100_000 if options.trial else COLD_BYTES,
        keep=not (options.no_record or options.trial),
    )
    entries = measure(request, threads[0])
    return int(any(entry["peer"] == OURS and "error" in entry for entry in entries))


def _in_process_of_its_own(
    options: argparse.Namespace, arguments: Sequence[str] | None, threads: int, processes: int
) -> int:
    """Thread pools can't be made smaller: each number of threads gets a fresh process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given += ["--threads", str(threads), "--seconds", str(options.seconds / processes)]
    command = [sys.executable, "-m", "soroq.bench.kernels.cpu", *given]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "SOROQ_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, check=False).returncode


def _show(options: argparse.Namespace) -> int:
    from soroq.bench.kernels.cpu_table import last_run, table
    from soroq.bench.kernels.roofline import roofline
    from soroq.bench.record import read_records
    from soroq.io.writer import atomic_write

    run = last_run(read_records(BENCH))
    if not run:
        print(f"bench cpu: no records of {BENCH} yet; run it first", file=sys.stderr)
        return 2
    if options.table:
        print(table(run), end="")
    if options.picture is not None:
        atomic_write(options.picture, roofline(run).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
