"""What `soroq plan` multiplies bandwidths with, out of the records.

python -m soroq.bench.measured > soroq/planning/measured.json
"""

import json
import statistics
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
H100_GB_S = 3350  # of the datasheet


def measured(records: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Return name → value and source."""
    return {
        "cpu kernels of read": _cpu_decode(records),
        "gpu read of datasheet": _gpu_read(records),
        "gpu kernels of read": _gpu_step(records),
    }


def _cpu_decode(records: Path) -> dict[str, Any]:
    """Our decoder's share of reading its bytes, on Gemma 3 270M: the median of its records."""
    shares = []
    for path in sorted(records.glob("cpu-*/cpu-decode.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["peer"] == "soroq" and entry["phase"] == "decode" and "fraction" in entry:
                shares.append(float(entry["fraction"]))
    return {
        "value": round(statistics.median(shares), 3),
        "source": f"measured: Gemma 3 270M decoding on a server's CPU, {len(shares)} records",
    }


def _gpu_read(records: Path) -> dict[str, Any]:
    entries = _entries(records, "gpu-ceilings")
    best = max(e["GB/s"] for e in entries if e["name"] == "read the same bytes")
    return {
        "value": round(best / H100_GB_S, 3),
        "source": "measured: a plain read on an H100; other cards assumed alike",
    }


def _gpu_step(records: Path) -> dict[str, Any]:
    one = {e["name"]: e["microseconds"] for e in _entries(records, "gpu-step") if e["M"] == 1}
    return {
        "value": round(one["read the same bytes"] / one["soroq int4"], 3),
        "source": "measured: the products of a Gemma 3 4B step on an H100, norms and attention "
        "left out; other cards assumed alike",
    }


def _entries(records: Path, name: str) -> list[dict[str, Any]]:
    path = records / "nvidia-h100-80gb-hbm3" / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return found


if __name__ == "__main__":
    print(json.dumps(measured(), indent=1))
