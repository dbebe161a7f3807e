"""What a GPU run measured, as Markdown: one row a product, each peer as a ratio to ours."""

import json
from pathlib import Path
from typing import Any

PEERS = (
    ("read the same bytes", "of the reader"),
    ("torch bfloat16", "× torch bf16"),
    ("marlin float16", "× Marlin"),
    ("torch _weight_int4pack_mm", "× int4pack"),
    ("dequantize, then cuBLAS", "× dequantized"),
)
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


def sweep_table(document: dict[str, Any], shapes: tuple[str, ...] = ()) -> str:
    """Return the sweep: µs, GB/s of int4 bytes, and how many times as long each peer takes."""
    lines = ["| W | M | µs | GB/s | " + " | ".join(title for _, title in PEERS) + " |"]
    lines.append("| --- | " + "---: | " * (len(PEERS) + 3))
    for (shape, M), by_name in _by_product(document).items():
        if M not in ROWS or (shapes and shape not in shapes):
            continue
        ours = by_name["soroq int4"]
        us = ours["microseconds"]
        ratios = [
            f"{by_name[name]['microseconds'] / us:.2f}" if name in by_name else ""
            for name, _ in PEERS
        ]
        size = f"{shape} {ours['N']}×{ours['K']}"
        lines.append(f"| {size} | {M} | {us:.1f} | {ours['GB/s']:.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def products_table(document: dict[str, Any]) -> str:
    """Return µs of everyone by product."""
    products = _by_product(document)
    names = list(dict.fromkeys(name for found in products.values() for name in found))
    lines = ["| W | M | " + " | ".join(names) + " |", "| --- | " + "---: | " * (len(names) + 1)]
    for (shape, M), found in products.items():
        cells = [f"{found[n]['microseconds']:.1f}" if n in found else "" for n in names]
        lines.append(f"| {shape} | {M} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gemlite_table(document: dict[str, Any]) -> str:
    """Return ours beside gemlite: µs of both, and the ratio."""
    lines = ["| W | M | soroq, µs | gemlite, µs | × gemlite |", "| --- | " + "---: | " * 4]
    for (shape, M), found in _by_product(document).items():
        peer = next((entry for name, entry in found.items() if name.startswith("gemlite")), None)
        if peer is None:
            continue
        us, other = found["soroq int4"]["microseconds"], peer["microseconds"]
        lines.append(f"| {shape} | {M} | {us:.1f} | {other:.1f} | {other / us:.2f} |")
    return "\n".join(lines) + "\n"


def tables(out: Path) -> str:
    """Return every table that OUT has the parts for."""
    text = []
    for part, make in (
        ("sweep", sweep_table),
        ("float8", products_table),
        ("w4a8", products_table),
        ("gemlite", gemlite_table),
    ):
        document = part_of(out, part)
        if document["entries"]:
            text.append(f"{document['device']}, torch {document['versions']['torch']}\n")
            text.append(make(document))
    return "\n".join(text)


def part_of(out: Path, part: str) -> dict[str, Any]:
    """Return a part of a run in OUT, or of a record; without entries when it isn't there."""
    for path in (out / f"{part}.json", out / f"gpu-{part}.json"):
        if path.is_file():
            document: dict[str, Any] = json.loads(path.read_text())
            return document
    return {"entries": []}


def _by_product(document: dict[str, Any]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for entry in document["entries"]:
        if "microseconds" in entry:
            found.setdefault((entry["shape"], entry["M"]), {})[entry["name"]] = entry
    return found
