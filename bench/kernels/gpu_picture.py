"""The sweep at one token as bars, an SVG: how fast each library reads the int4 weights it needs."""

from html import escape
from typing import Any

ROW, LEFT, WIDTH, TOP, RIGHT = 15, 150, 760, 40, 90
COLOURS = {
    "soroq int4": "#0b6e4f",
    "marlin float16": "#b04a2f",
    "gemlite": "#8a5fbf",
    "torch _weight_int4pack_mm": "#c98a1b",
}


def bars(sweep: dict[str, Any], gemlite: dict[str, Any], M: int = 1) -> str:
    """Return an SVG of int4 bytes a second by product; a black mark: a kernel that only reads."""
    rates: dict[str, dict[str, float]] = {}
    for entry in [*sweep["entries"], *gemlite["entries"]]:
        if entry.get("M") == M and "microseconds" in entry:
            name = "gemlite" if entry["name"].startswith("gemlite") else entry["name"]
            shape = f"{entry['shape']} {entry['N']}×{entry['K']}"
            rates.setdefault(shape, {}).setdefault(name, float(entry["GB/s"]))
    shapes = sorted(rates, key=lambda shape: -rates[shape]["read the same bytes"])
    most = max(max(found.values()) for found in rates.values())
    block = ROW * len(COLOURS) + 12
    height = TOP + block * len(shapes) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    x = LEFT
    for name, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="10" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="20">{escape(name.removeprefix("torch "))}</text>')
        x += 40 + 7 * len(name.removeprefix("torch "))
    for number, shape in enumerate(shapes):
        y = TOP + number * block
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + ROW * 2}" text-anchor="end">{escape(shape)}</text>'
        )
        for place, (name, colour) in enumerate(COLOURS.items()):
            rate = rates[shape].get(name)
            if rate is None:
                continue
            long = rate / most * (WIDTH - LEFT - RIGHT)
            top = y + place * ROW
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{long:.1f}" height="{ROW - 3}" '
                f'fill="{colour}"/><text x="{LEFT + long + 5:.1f}" y="{top + 11}">'
                f"{rate:.0f}</text>"
            )
        mark = LEFT + rates[shape]["read the same bytes"] / most * (WIDTH - LEFT - RIGHT)
        parts.append(
            f'<path d="M{mark:.1f} {y - 3}V{y + ROW * len(COLOURS)}" stroke="black" '
            'stroke-width="2"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
