"""The ladder as a picture: loss in Tajik across, loss in English up, one point a model, as SVG."""

import math
from collections.abc import Mapping, Sequence
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
    order = sorted(points, key=lambda name: points[name])
    dots = {name: (across(points[name][0]), up(points[name][1])) for name in order}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots.values()]
    for name, (x, y) in dots.items():
        colour = PEER if name.startswith("peer:") else OURS
        label = name.removeprefix("peer:")
        box = _free_box(x, y, 7.2 * len(label), taken)
        taken.append(box)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        edge_x, edge_y = min(max(x, box[0]), box[2]), min(max(y, box[1] + 3), box[3] - 3)
        if math.hypot(edge_x - x, edge_y - y) > 12:
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}L{edge_x:.1f} {edge_y:.1f}" stroke="{colour}"/>'
            )
        parts.append(
            f'<text x="{box[0]:.1f}" y="{box[3] - 3:.1f}" fill="{colour}">{escape(label)}</text>'
        )
    parts += [
        f'<circle cx="{WIDTH - 150}" cy="{TOP + 14}" r="5" fill="{OURS}"/>'
        f'<text x="{WIDTH - 140}" y="{TOP + 18}">soroq</text>',
        f'<circle cx="{WIDTH - 90}" cy="{TOP + 14}" r="5" fill="{PEER}"/>'
        f'<text x="{WIDTH - 80}" y="{TOP + 18}">others</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free_box(x: float, y: float, width: float, taken: Sequence[Box]) -> Box:
    """Return the nearest place for a label beside (x, y) that covers nothing."""
    height = 14.0
    nearest: Box | None = None
    for distance in range(9, 120, 6):
        for turn in range(16):
            angle = math.pi * turn / 8
            dx, dy = distance * math.cos(angle), distance * math.sin(angle)
            left = x + dx - (width if dx < -1 else width / 2 if dx <= 1 else 0)
            box = (left, y + dy - height / 2, left + width, y + dy + height / 2)
            nearest = nearest or box
            inside = LEFT < box[0] and box[2] < WIDTH and TOP < box[1] and box[3] < HEIGHT - BOTTOM
            if inside and not any(_meet(box, other) for other in taken):
                return box
    assert nearest is not None
    return nearest


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
