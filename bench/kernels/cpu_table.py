"""The last run of `soroq bench cpu` as Markdown, from its records."""

from collections.abc import Iterable, Sequence
from typing import Any

from soroq.bench.kernels.shapes import SHAPES

Entry = dict[str, Any]
OURS = "soroq"
FAMILIES = ("onnxruntime", "torch", "llama.cpp", "ik_llama.cpp", "openvino")


def last_run(records: Sequence[Entry]) -> list[Entry]:
    """Return the newest record of each contender, shape, M, threads and temperature.

    Only of the device and commit that were recorded last: what is compared was measured together.
    """
    timed = [record for record in records if "median" in record]
    if not timed:
        return []
    newest = max(timed, key=lambda record: str(record["time"]))
    same = [r for r in timed if r["device"] == newest["device"] and r["commit"] == newest["commit"]]
    latest: dict[tuple[Any, ...], Entry] = {}
    for record in sorted(same, key=lambda record: str(record["time"])):
        latest[(*_cell(record), record["kernel"])] = record
    # a cell raced anew without some of its contenders keeps none of their old times
    times: dict[tuple[Any, ...], str] = {}
    for record in latest.values():
        times[_cell(record)] = max(times.get(_cell(record), ""), record["time"])
    return [record for record in latest.values() if record["time"] == times[_cell(record)]]


def table(records: Sequence[Entry]) -> str:
    """Return a table for each of our kernels, number of threads and temperature."""
    newest = max(records, key=lambda record: str(record["time"]))
    versions = ", ".join(f"{k} {v}" for k, v in newest["versions"].items() if "AVX" not in v)
    lines = [f"{newest['device']}, commit {newest['commit'][:8]}, {newest['time']}; {versions}."]
    lines += ["", *_explain(), ""]
    for threads in sorted({record["threads"] for record in records}):
        for cold in (True, False):
            part = [r for r in records if r["threads"] == threads and r["cold"] == cold]
            for kernel in dict.fromkeys(r["kernel"] for r in part if r["peer"] == OURS):
                lines += _section(part, kernel, threads, cold)
    return "\n".join(lines).rstrip() + "\n"


def _explain() -> list[str]:
    return [
        "µs: median (20th–80th percentile). Of the ceiling: weight bytes a second of a plain",
        "read's, or operations a second of the int8 peak, whichever share is larger. The others:",
        "how many times as long each library's fastest kernel takes, of all its formats, 4-bit or",
        "not, and which one is the fastest of all.",
    ]


def _section(part: Sequence[Entry], kernel: str, threads: int, cold: bool) -> list[str]:
    present = [f for f in FAMILIES if any(record["peer"] == f for record in part)]
    title = f"### {kernel}, {threads} thread{'s' * (threads > 1)}, {'cold' if cold else 'hot'}"
    bounds = (
        f"Ceilings: reads {_middle(part, 'read_gb_s'):.1f} GB/s, "
        f"int8 {_middle(part, 'int8_gop_s'):.0f} GOP/s, "
        f"float32 {_middle(part, 'fma_gflop_s'):.0f} GFLOP/s."
    )
    head = ["N × K", "M", "µs", "GB/s", "GOP/s", "of the ceiling", *present, "best peer"]
    lines = [title, "", bounds, "", _row(head), "| --- " * len(head) + "|"]
    for cell in sorted({_cell(record) for record in part}, key=_place):
        rivals = [record for record in part if _cell(record) == cell]
        ours = next((record for record in rivals if record["kernel"] == kernel), None)
        if ours is None:
            continue
        row = [
            f"{ours['shape']} {ours['N']} × {ours['K']}",
            str(ours["M"]),
            f"{ours['median']:.0f} ({ours['p20']:.0f}–{ours['p80']:.0f})",
            f"{ours['gb_s']:.1f}",
            f"{ours['gop_s']:.0f}",
            f"{ours['fraction']:.2f} {ours['bound']}",
        ]
        row += [_times(ours, [r for r in rivals if r["peer"] == family]) for family in present]
        others = [record for record in rivals if record["peer"] != OURS]
        row.append(min(others, key=_median)["kernel"] if others else "–")
        lines.append(_row(row))
    return [*lines, ""]


def _times(ours: Entry, theirs: Sequence[Entry]) -> str:
    return f"{_median(min(theirs, key=_median)) / _median(ours):.2f}" if theirs else "–"


def _median(entry: Entry) -> float:
    return float(entry["median"])


def _middle(part: Sequence[Entry], key: str) -> float:
    values = sorted(float(record[key]) for record in part)
    return values[len(values) // 2]


def _cell(record: Entry) -> tuple[Any, ...]:
    return (record["threads"], not record["cold"], record["shape"], record["M"])


def _place(cell: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return where a cell stands in its table: shapes as in `shapes`, then M."""
    *_, shape, M = cell
    names = [known.name for known in SHAPES]
    return (names.index(shape) if shape in names else len(names), shape, M)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
