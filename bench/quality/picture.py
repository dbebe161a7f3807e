"""The ladder as a picture: loss in Tajik across, loss in English up, one point a model, as SVG."""

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT = 760, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 30, 60
FLOOR = 0.01  # smaller losses are drawn here: they are within the noise
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
OURS, PEER = "#0b6e4f", "#b04a2f"


def scatter(points: Mapping[str, tuple[float, float]], x_title: str, y_title: str) -> str:
    """Return an SVG of name → (x, y), both on logarithmic axes; names in 'peer:…' are peers."""
    top = max([1.0, *(v for point in points.values() for v in point)]) * 1.3

    def place(value: float, low: float, high: float) -> float:
        share = math.log(max(value, FLOOR) / FLOOR) / math.log(top / FLOOR)
        return low + share * (high - low)

    def across(value: float) -> float:
        return place(value, LEFT, WIDTH - RIGHT)

    def up(value: float) -> float:
        return place(value, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in (t for t in TICKS if t <= top):
        x, y = across(tick), up(tick)
        label = ("≤ " if tick == FLOOR else "") + f"{tick:g}"
        parts += [
            f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y:.1f}H{WIDTH - RIGHT}" '
            'stroke="#ddd" fill="none"/>',
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
        ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 15}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        f"{escape(y_title)}</text>",
    ]
    taken: list[tuple[float, float]] = []
    for name, (x_value, y_value) in sorted(points.items(), key=lambda item: item[1]):
        x, y = across(x_value), up(y_value)
        peer = name.startswith("peer:")
        colour = PEER if peer else OURS
        label = name.removeprefix("peer:")
        left = x > WIDTH * 0.72
        text_y = y + 4
        while any(abs(text_y - ty) < 14 and abs(x - tx) < 150 for tx, ty in taken):
            text_y += 14
        taken.append((x, text_y))
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            f'<text x="{x + (-9 if left else 9):.1f}" y="{text_y:.1f}" fill="{colour}" '
            f'text-anchor="{"end" if left else "start"}">{escape(label)}</text>',
        ]
    parts += [
        f'<circle cx="{WIDTH - 150}" cy="{TOP + 14}" r="5" fill="{OURS}"/>'
        f'<text x="{WIDTH - 140}" y="{TOP + 18}">soroq</text>',
        f'<circle cx="{WIDTH - 90}" cy="{TOP + 14}" r="5" fill="{PEER}"/>'
        f'<text x="{WIDTH - 80}" y="{TOP + 18}">others</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
