"""Benchmark records: one JSON line a measurement, appended, with what it takes to repeat it."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
_NOT_RECORDS = ":(top,exclude)bench/records"  # a run's own lines don't make its commit dirty


def device_name() -> str:
    """Return a directory name for this machine: architecture and its widest vector unit."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        flags = next((ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("flags")), "")
    for flag in ("avx512_bf16", "avx512f", "avx2"):
        if f" {flag}" in flags:
            return f"cpu-{platform.machine()}-{flag}"
    return f"cpu-{platform.machine()}"


def append_record(bench: str, values: dict[str, Any]) -> Path:
    """Append one measurement to records/<device>/<bench>.jsonl; return the file.

    Commit, command, time, versions and threads are added to `values`.
    """
    return append_records(bench, [values])


def append_records(bench: str, many: Sequence[Mapping[str, Any]]) -> Path:
    """Append measurements that were taken together, a line each; see `append_record`."""
    import torch
    import transformers

    path = RECORDS / device_name() / f"{bench}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", _NOT_RECORDS)
    facts = {
        "bench": bench,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(changed),
        "command": command_line(sys.argv),
        "device": device_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
    }
    with path.open("a", encoding="utf-8") as file:
        for values in many:
            line = json.dumps(facts | dict(values), sort_keys=True, ensure_ascii=False)
            file.write(line + "\n")
    return path


def command_line(argv: Sequence[str]) -> str:
    """Return a command as typed, with the folders of absolute paths left out: they are private."""

    def shorten(text: str) -> str:
        head, sign, tail = text.rpartition("=")
        runtime, colon, path = tail.rpartition(":")
        return f"{head}{sign}{runtime}{colon}{Path(path).name if path.startswith('/') else path}"

    return " ".join([Path(argv[0]).name, *(shorten(argument) for argument in argv[1:])])


def read_records(bench: str) -> list[dict[str, Any]]:
    """Return all records of a benchmark, oldest first within each device."""
    records: list[dict[str, Any]] = []
    for path in sorted(RECORDS.glob(f"*/{bench}.jsonl")):
        records += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return records


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip()
