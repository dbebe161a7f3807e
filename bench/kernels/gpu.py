"""Everything there is to know on a GPU, in parts that can be gone on from.

    python -m soroq.bench.kernels.gpu --out gpu                # all parts, under 8 minutes
    python -m soroq.bench.kernels.gpu --out gpu --parts check,sweep
    python -m soroq.bench.kernels.gpu --table gpu              # what was measured, as Markdown
    python -m soroq.bench.kernels.gpu --picture gpu            # one token, as an SVG

Needs PyTorch and Triton and nothing else. A part writes OUT/<part>.json, whole or not at all, and
is skipped when that is there. `--try` runs every part in miniature, on a CPU in Triton's
interpreter.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import triton

from soroq.bench.kernels import contenders as who
from soroq.bench.kernels import float8, step, w4a8
from soroq.bench.kernels.gpu_picture import bars
from soroq.bench.kernels.gpu_table import part_of, tables
from soroq.bench.kernels.shapes import Shape, named
from soroq.bench.kernels.timing import cold_copies, race
from soroq.bench.kernels.tuning import BUCKET_M, compile_candidates, entries, tune
from soroq.bench.kernels.verify import verify
from soroq.io.writer import atomic_write
from soroq.kernels.triton.config import add_tuned, file_name
from soroq.kernels.triton.ops import device_facts
from soroq.kernels.triton.support import lacks_float8

SWEEP_M = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TUNED = (
    *("4b qkv", "4b o", "4b gate_up", "4b down", "4b head"),
    *("27b gate_up", "square 8192", "27b down", "12b gate_up", "1b gate_up", "square 16384"),
    *("1b qkv", "1b down", "square 4096"),
)
FEW_ONLY = ("4b head",)  # a head multiplies the last token of each sequence
SWEPT = (
    *("4b gate_up", "27b gate_up", "4b head", "4b qkv", "4b o", "4b down", "square 8192"),
    *("square 16384", "1b gate_up", "12b gate_up", "27b down"),
)
GEMLITE = (
    *(("4b gate_up", 1), ("square 16384", 1), ("4b o", 1), ("4b gate_up", 16), ("4b down", 1)),
    *(("27b gate_up", 1), ("4b o", 16), ("square 16384", 16), ("27b gate_up", 16)),
)
PROFILED = "4b gate_up"
TRIAL = Shape("trial", 128, 256)
Entries = list[dict[str, Any]]
ROUNDS = 12


class Bench:
    """The device, how much to do, and how long there is."""

    def __init__(
        self, device: torch.device, seconds: float, trial: bool, tuning_seconds: float = math.inf
    ) -> None:
        self.device, self.trial, self.tuning_seconds = device, trial, tuning_seconds
        self.deadline = time.monotonic() + seconds
        self.ahead: SpawnProcess | None = None  # compiles what tuning will launch

    def shapes(self, names: tuple[str, ...]) -> list[Shape]:
        return [TRIAL] if self.trial else named(*names)

    def is_late(self) -> bool:
        return time.monotonic() > self.deadline


def check(bench: Bench) -> Entries:
    """Every configuration against float64."""
    return verify(bench.device, quick=bench.trial)


def ceilings(bench: Bench) -> Entries:
    """Bandwidth of copies and reads by size, an empty launch, dense peaks."""
    found: Entries = []
    for megabytes in (1,) if bench.trial else (4, 16, 64, 256, 1024):
        side = 64 if bench.trial else 4096
        for contender in who.ceilings(bench.device, megabytes << 20, side):
            copies = cold_copies(contender.nbytes, bench.device)
            if contender.name != "read the same bytes":
                copies = 1
            timed = race({contender.name: (contender.make(copies), copies)}, bench.device)
            found.append(_entry(contender, timed[contender.name], megabytes=megabytes, side=side))
    return found


def sweep(bench: Bench) -> Entries:
    """All contenders by shape and M, cold."""
    found: Entries = []
    for shape in bench.shapes(SWEPT):
        for M in (1, 3) if bench.trial else SWEEP_M:
            if bench.is_late():
                return found
            if M <= 16 or shape.name not in FEW_ONLY:
                found += _round(bench, who.contenders(shape, M, bench.device), shape, M)
    return found


def gemlite(bench: Bench) -> Entries:
    """gemlite beside ours, where it is installed; most of the time it tunes itself."""
    if importlib.util.find_spec("gemlite") is None or bench.trial:
        return [{"skipped": "gemlite is not installed"}]
    found: Entries = []
    for name, M in GEMLITE:
        if bench.is_late():
            return found
        shape = named(name)[0]
        ours = who.contenders(shape, M, bench.device)[:3]
        peer = who.gemlite_contender(shape, M, bench.device)
        found += _round(bench, [*ours, peer], shape, M)
    return found


def floats(bench: Bench) -> Entries:
    """float8 products, few rows and many, and what each way of summing loses."""
    found: Entries = []
    for shape in bench.shapes(float8.FEW):
        for M in (1, 16):
            found += _round(bench, float8.contenders(shape, M, bench.device), shape, M)
    for name, M in float8.MANY:
        shape = bench.shapes((name,))[0]
        rows = 80 if bench.trial else M
        found += _round(bench, float8.contenders(shape, rows, bench.device), shape, rows)
        if bench.trial:
            break
    shape = bench.shapes(("square 4096",))[0]
    rows = 70 if bench.trial else 512
    found.append({"shape": shape.name, "M": rows} | float8.errors(shape, rows, bench.device))
    return found


def int4_by_float8(bench: Bench) -> Entries:
    """matmul_w4a8 against float64, and timed only if it passed."""
    if why := lacks_float8():
        return [{"skipped": why}]
    found = w4a8.verify(bench.device, quick=bench.trial)
    if any(entry["failed"] for entry in found):
        return found
    for shape in bench.shapes(w4a8.SHAPES):
        for M in (3,) if bench.trial else w4a8.SWEEP_M:
            if not bench.is_late():
                found += _round(bench, w4a8.contenders(shape, M, bench.device), shape, M)
    return found


def decode_step(bench: Bench) -> Entries:
    """The products of one step of Gemma 3 4B, for one and eight sequences."""
    found: Entries = []
    model = step.TRIAL if bench.trial else step.GEMMA3_4B
    for M in (1, 8):
        makers = step.steps(model, M, bench.device)
        racing = {name: (make(), 1) for name, make in makers.items()}
        for name, timing in race(racing, bench.device).items():
            found.append(
                {
                    "name": name,
                    "model": model.name,
                    "M": M,
                    "microseconds": timing.median,
                    "low": timing.low,
                    "high": timing.high,
                    "int4 bytes": model.int4_bytes,
                }
            )
    return found


def whole_step(bench: Bench) -> Entries:
    """A decode step of whole models, by cache length and batch."""
    if importlib.util.find_spec("transformers") is None:
        return [{"skipped": "transformers is not installed"}]
    from soroq.bench.kernels import decode

    found: Entries = []
    for model in (decode.TRIAL,) if bench.trial else decode.MODELS:
        try:
            models = decode.both(model, bench.device)
            for length, batch in ((40, 1),) if bench.trial else ((128, 1), (2048, 1), (2048, 8)):
                where = {"model": model.name, "cache": length, "batch": batch}
                where["bytes"] = model.step_bytes(length, batch)
                timed = decode.times(model, models, length, batch, bench.device)
                found += [where | {"name": n, "microseconds": us} for n, us in timed.items()]
        except Exception as error:  # another library's: it is said, not hidden
            found.append({"model": model.name, "error": f"{type(error).__name__}: {error}"[:500]})
    return found


def _round(bench: Bench, racers: list[who.Contender], shape: Shape, M: int) -> Entries:
    racing = {}
    failed: Entries = []
    where = {"shape": shape.name, "N": shape.N, "K": shape.K, "M": M}
    for contender in racers:
        copies = cold_copies(contender.nbytes, bench.device)
        try:
            call = contender.make(copies)
            call(0)
            racing[contender.name] = (contender, call, copies)
        except Exception as error:  # another library's, whatever it may be: it is said, not hidden
            failed.append({"name": contender.name, "error": str(error)[:300]} | where)
    calls = {n: (call, copies) for n, (_, call, copies) in racing.items()}
    timed = race(calls, bench.device, ROUNDS)
    found = [_entry(racing[name][0], timing, **where) for name, timing in timed.items()]
    racing.clear()
    calls.clear()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return found + failed


def tuning(bench: Bench) -> Entries:
    """The fastest launches, which the parts behind this one then use."""
    work, begin = _tuning_work(bench), time.monotonic()
    if bench.ahead is not None:
        bench.ahead.join()
    found: Entries = []
    for shape, M in work:
        if bench.is_late() or time.monotonic() > begin + bench.tuning_seconds:
            return found
        tuned = tune(shape, M, bench.device, listen=_say)
        kept = entries(shape, M, 4, who.GROUP, tuned)
        if not bench.trial:
            add_tuned(device_facts(bench.device)[0], kept)
        times = {name: getattr(tuned, name) for name in ("triton_us", "cuda_us", "unpacked_us")}
        where = {"shape": shape.name, "N": shape.N, "K": shape.K, "M": M}
        found.append(where | times | {"configs": {k: asdict(c) for k, c in kept.items()}})
    return found


def _tuning_work(bench: Bench) -> list[tuple[Shape, int]]:
    return [
        (shape, M)
        for shape in bench.shapes(TUNED)
        for M in ((1,) if bench.trial else BUCKET_M)
        if M <= 16 or shape.name not in FEW_ONLY
    ]


def sanitizer(bench: Bench) -> Entries:
    """compute-sanitizer over the small checks, if it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or bench.trial:
        return [{"skipped": "compute-sanitizer is not installed"}]
    found = []
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m"]
        found.append(_run([*command, "soroq.bench.kernels.gpu", "--quick-check"], kind))
    return found


def profile(bench: Bench) -> Entries:
    """ncu on one large product of one token and of many, if it is installed."""
    tool = shutil.which("ncu")
    if tool is None or bench.trial:
        return [{"skipped": "ncu is not installed"}]
    metrics = "smsp__issue_active.avg.pct_of_peak_sustained_active,"
    metrics += "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active,"
    metrics += "dram__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread"
    names = "regex:multiply_tiles|multiply_warpgroups|matmul_tiles"
    command = [tool, "--metrics", metrics, "--clock-control", "none", "--launch-count", "2"]
    command += ["-k", names, sys.executable, "-m", "soroq.bench.kernels.gpu", "--one", PROFILED]
    return [_run([*command, "--rows", str(M)], f"ncu {PROFILED} M {M}") for M in (1, 256)]


PARTS: dict[str, Callable[[Bench], Entries]] = {
    "check": check,
    "ceilings": ceilings,
    "tuning": tuning,
    "sweep": sweep,
    "float8": floats,
    "step": decode_step,
    "decode": whole_step,
    "w4a8": int4_by_float8,
    "gemlite": gemlite,
    "sanitizer": sanitizer,
    "profile": profile,
}


def run_parts(parts: list[str], out: Path, bench: Bench) -> dict[str, Entries]:
    """Run what isn't there yet; return all entries by part."""
    out.mkdir(parents=True, exist_ok=True)
    if "tuning" in parts and not (out / "tuning.json").is_file() and not bench.trial:
        os.environ["SOROQ_CACHE"] = str(out / "cache")  # what is tuned here stays in OUT
        sms = device_facts(bench.device)[1]
        bench.ahead = multiprocessing.get_context("spawn").Process(
            target=compile_candidates, args=(_tuning_work(bench), sms)
        )
        bench.ahead.start()
    results = {}
    for part in parts:
        path = out / f"{part}.json"
        if not path.is_file():
            _say(f"{part} …")
            begin = time.monotonic()
            found = PARTS[part](bench)
            document = {"part": part, "seconds": time.monotonic() - begin, "entries": found}
            text = json.dumps(facts(bench.device) | document, indent=1, default=str)
            atomic_write(path, text.encode())
        results[part] = json.loads(path.read_text())["entries"]
        _say(f"{part}: {len(results[part])} entries in {path}")
    if results.get("tuning") and not bench.trial:
        name = device_facts(bench.device)[0]
        kept = {k: c for entry in results["tuning"] for k, c in entry["configs"].items()}
        text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
        atomic_write(out / file_name(name), text.encode())
    return results


def facts(device: torch.device) -> dict[str, Any]:
    """Return what it takes to repeat a measurement on this machine."""
    here = str(Path(__file__).parent)
    found: dict[str, Any] = {
        "command": " ".join(["python", "-m", "soroq.bench.kernels.gpu", *sys.argv[1:]]),
        "commit": _run(["git", "-C", here, "rev-parse", "HEAD"], "")["output"].strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {"torch": str(torch.__version__), "triton": triton.__version__},
        "device": "interpreter",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["sms"] = properties.multi_processor_count
        found["l2_bytes"] = properties.L2_cache_size
        found["clocks"] = _run(["nvidia-smi", "-q", "-d", "CLOCK"], "clocks")["output"]
    return found


def _entry(contender: who.Contender, timing: Any, **where: Any) -> dict[str, Any]:
    return where | {
        "name": contender.name,
        "microseconds": timing.median,
        "low": timing.low,
        "high": timing.high,
        "rounds": timing.rounds,
        "calls": timing.calls,
        "bytes": contender.nbytes,
        "GB/s": contender.nbytes / timing.median / 1e3,
    }


def _run(command: list[str], name: str) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"name": name, "code": -1, "output": str(error)}
    return {"name": name, "code": done.returncode, "output": (done.stdout + done.stderr)[-4000:]}


def _say(text: str) -> None:
    print(text, flush=True)


def _once(shape_name: str, M: int, device: torch.device) -> None:
    """Run one product cold, for a profiler."""
    contender = who.contenders(named(shape_name)[0], M, device)[0]
    copies = cold_copies(contender.nbytes, device)
    call = contender.make(copies)
    for copy in range(copies):
        call(copy)
    torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--tuning-seconds", type=float, default=math.inf)
    parser.add_argument("--try", dest="trial", action="store_true")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--picture", type=Path, help="of a folder with sweep and gemlite: an SVG")
    parser.add_argument("--quick-check", action="store_true")
    parser.add_argument("--one")
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(tables(options.table), end="")
        return 0
    if options.picture is not None:
        print(bars(part_of(options.picture, "sweep"), part_of(options.picture, "gemlite")), end="")
        return 0
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        print(f"no part {min(unknown)}; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not (options.trial and interpreted):
        print("no CUDA device; TRITON_INTERPRET=1 … --try runs it in miniature", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.one:
        _once(options.one, options.rows, device)
        return 0
    if options.quick_check:
        return int(any(entry["failed"] for entry in verify(device, quick=True)))
    bench = Bench(device, options.seconds, options.trial, options.tuning_seconds)
    results = run_parts(options.parts.split(","), options.out, bench)
    return int(any(entry["failed"] for entry in results.get("check", [])))


if __name__ == "__main__":
    sys.exit(main())
