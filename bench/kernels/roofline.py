"""The last run of `soroq bench cpu` as a roofline, an SVG: one panel for each number of threads.

Across: operations a byte of packed weights, which grows with M. Up: operations a second. The roof
is what the measured plain read and the measured int8 peak allow; dashed: the float32 peak. A point
is the fastest kernel of a library on one shape and M.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Entry = dict[str, Any]
WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 150, 34, 52
COLOURS = {
    "soroq": "#0b6e4f",
    "onnxruntime": "#b04a2f",
    "torch": "#8a5fbf",
    "llama.cpp": "#c98a1b",
    "ik_llama.cpp": "#7a6a4f",
    "openvino": "#2f6fb0",
}
LEAST, MOST = 1.0, 4096.0  # operations a byte


def roofline(records: Sequence[Entry]) -> str:
    """Return an SVG of the cold records; hot ones don't read from memory."""
    cold = [record for record in records if record["cold"]]
    panels = sorted({record["threads"] for record in cold})
    height = max(1, len(panels)) * PANEL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, threads in enumerate(panels):
        part = [record for record in cold if record["threads"] == threads]
        parts.append(f'<g transform="translate(0 {number * PANEL})">')
        parts += _panel(part, f"{threads} thread{'s' * (threads > 1)}, weights from memory")
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def fastest(records: Sequence[Entry]) -> list[Entry]:
    """Return each library's fastest record of a shape and M, ours last, so that it is on top."""
    best: dict[tuple[Any, ...], Entry] = {}
    for record in records:
        key = (record["peer"], record["shape"], record["M"])
        if key not in best or record["median"] < best[key]["median"]:
            best[key] = record
    return sorted(best.values(), key=lambda record: record["peer"] == "soroq")


def _panel(records: Sequence[Entry], title: str) -> list[str]:
    read = _middle([float(record["read_gb_s"]) for record in records])
    int8 = _middle([float(record["int8_gop_s"]) for record in records])
    points = fastest(records)
    slowest = min(float(point["gop_s"]) for point in points)
    low = 10 ** math.floor(math.log10(max(1.0, min(slowest, read * LEAST))))
    high = int8 * 1.6

    def across(value: float) -> float:
        return _place(value, LEAST, MOST, LEFT, WIDTH - RIGHT)

    def up(value: float) -> float:
        return _place(value, low, high, PANEL - BOTTOM, TOP)

    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{escape(title)}</text>']
    for tick in (4.0**power for power in range(7)):
        x = across(tick)
        parts.append(_line(x, TOP, x, PANEL - BOTTOM, "#ddd"))
        parts.append(_text(x, PANEL - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in _decades(low, high):
        y = up(tick)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#ddd"))
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    ridge = int8 / read
    parts.append(
        f'<path d="M{across(LEAST):.1f} {up(read * LEAST):.1f}L{across(ridge):.1f} {up(int8):.1f}'
        f'H{WIDTH - RIGHT}" stroke="black" stroke-width="1.5" fill="none"/>'
    )
    parts.append(_text(WIDTH - RIGHT + 6, up(int8) + 4, f"int8 {int8:.0f}"))
    parts.append(_text(across(LEAST) + 8, up(read * LEAST) + 18, f"reads {read:.0f} GB/s"))
    floats = _middle([float(record["fma_gflop_s"]) for record in records])
    y = up(floats)
    parts.append(
        f'<path d="M{across(max(LEAST, floats / read)):.1f} {y:.1f}H{WIDTH - RIGHT}" '
        'stroke="black" stroke-dasharray="4 4" fill="none"/>'
    )
    parts.append(_text(WIDTH - RIGHT + 6, y + 4, f"float32 {floats:.0f}"))
    for point in points:
        x, y = across(float(point["ops"]) / float(point["bytes"])), up(float(point["gop_s"]))
        radius = 5 if point["peer"] == "soroq" else 3.5
        note = f"{point['kernel']}, {point['shape']}, M {point['M']}: {point['gop_s']:.0f} GOP/s"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{_colour(point["peer"])}" '
            f'fill-opacity="0.75"><title>{escape(note)}</title></circle>'
        )
    present = [family for family in COLOURS if any(p["peer"] == family for p in points)]
    for number, family in enumerate(present):
        y = PANEL - BOTTOM - 20 * (len(present) - number)
        parts.append(
            f'<circle cx="{WIDTH - RIGHT + 16}" cy="{y}" r="4" fill="{_colour(family)}"/>'
            + _text(WIDTH - RIGHT + 26, y + 4, family)
        )
    middle = (TOP + PANEL - BOTTOM) / 2
    parts.append(
        _text((LEFT + WIDTH - RIGHT) / 2, PANEL - 12, "operations a byte of weights", "middle")
    )
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "GOP/s</text>"
    )
    return parts


def _place(value: float, low: float, high: float, first: float, last: float) -> float:
    """Return where `value` lies between the coordinates of `low` and `high`, logarithmically."""
    share = math.log(min(max(value, low), high) / low) / math.log(high / low)
    return first + share * (last - first)


def _decades(low: float, high: float) -> list[float]:
    count = int(math.log10(high / low)) + 1
    return [low * 10**power for power in range(count)]


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _colour(family: str) -> str:
    return COLOURS.get(family, "#777")


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" fill="none"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
