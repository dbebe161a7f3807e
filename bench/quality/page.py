"""Reports of one or several candidates as one HTML page: no network, no script, light and dark.

    page([report.to_json(), other.to_json()])

Draws quality against size (with the candidates nothing beats), each language's loss with its
interval, the loss by position, the error of every layer, the gate and the worst tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from soroq.pipeline.sensitivity import Sensitivity

Document = Mapping[str, Any]
WIDTH, LEFT, RIGHT = 720, 190, 24
ROW = 30
PART = ("tokens", "perplexity", "ΔNLL", "KL", "top-1", "top-5")
VERDICT_MARK = {"pass": "✓", "fail": "✗", "undecided": "?"}

STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #ffffff; --soft: #5b6570; --line: #d9dee3;
  --card: #f5f7f8; --tg: #0b6e4f; --en: #2f5fb0; --third: #a05a00; --bad: #b3261e;
  --good: #0b6e4f; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e9ec; --bg: #14171a; --soft: #9aa5b0;
  --line: #333a41; --card: #1d2226; --tg: #4fc39a; --en: #86aef0; --third: #e0a94f; --bad: #ff8a80;
  --good: #4fc39a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--bg); color: var(--fg);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.soft, small { color: var(--soft); }
.scroll { overflow-x: auto; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--fg); font: 13px system-ui, sans-serif; } svg text.soft { fill: var(--soft); }
.plot { min-width: 36rem; } .plot + .scroll, .scroll + .scroll { margin-top: .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.verdict { display: inline-block; padding: .2rem .7rem; border-radius: 1rem;
  background: var(--card); border: 1px solid var(--line); font-weight: 600; }
.pass { color: var(--good); } .fail { color: var(--bad); } .undecided { color: var(--third); }
mark { background: none; color: var(--bad); font-weight: 600; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""


def page(reports: Sequence[Document], sensitivity: Sensitivity | None = None) -> str:
    """Return HTML for reports (`Report.to_json()`), of one base, the first one foremost."""
    base = escape(str(reports[0]["base"]))
    names = ", ".join(_short(r["quant"]) for r in reports)
    title = f"{escape(names)} against {base}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        '<p class="soft">ΔNLL and KL in nats a token; whiskers and brackets are '
        f"{reports[0]['settings']['level']:.0%} intervals over windows of text.</p>",
    ]
    if len(reports) > 1:
        parts += ["<h2>Quality against size</h2>", _plot(_pareto(reports))]
    parts += ["<h2>What it cost, by language</h2>", _plot(_bars(reports, "delta_nll", "ΔNLL"))]
    parts += [_plot(_bars(reports, "kl", "KL")), _texts_table(reports)]
    if any(r["tasks"] for r in reports):
        parts += ["<h2>Tasks</h2>", _tasks_table(reports)]
    if any(r["findings"] for r in reports):
        parts += ["<h2>Gate</h2>", *(_gate(r) for r in reports if r["findings"])]
    parts += ["<h2>By position in the window</h2>", _positions(reports)]
    for report in reports:
        if report.get("layers"):
            parts += [f"<h2>Layers of {escape(_short(report['quant']))}</h2>", _layers(report)]
    if sensitivity is not None:
        parts += ["<h2>What each group costs alone, in 4 bits</h2>", _sensitivity(sensitivity)]
    parts += ["<h2>Where they differ most</h2>", *(_worst(r) for r in reports)]
    generation = reports[0].get("generation")
    if generation:
        parts += ["<h2>What it writes</h2>", _generation(generation)]
    parts.append(_colophon(reports))
    return "\n".join(parts) + "</body></html>\n"


def _short(path: str) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _plot(svg: str) -> str:
    return f'<div class="scroll"><div class="plot">{svg}</div></div>'


def _colour(language: str) -> str:
    return f"var(--{language})" if language in ("tg", "en") else "var(--third)"


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers in [low, high]."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 6)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _axis(
    across: Callable[[float], float], low: float, high: float, height: float, title: str
) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        x = across(tick)
        parts += [
            f'<path d="M{x:.1f} 8V{height - 38:.1f}" stroke="var(--line)"/>',
            f'<text class="soft" x="{x:.1f}" y="{height - 22:.1f}" text-anchor="middle">{tick:g}'
            "</text>",
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *parts,
        f'<text class="soft" x="{middle}" y="{height - 4:.1f}" text-anchor="middle">'
        f"{escape(title)}</text>",
    ]


def _bars(reports: Sequence[Document], metric: str, title: str) -> str:
    rows = [(r, t) for t in _names(reports) for r in reports for x in r["texts"] if x["name"] == t]
    cells = [(r, next(x for x in r["texts"] if x["name"] == t)) for r, t in rows]
    values = [_bound(x[metric]) for _, x in cells]
    low = min(0.0, *(v[1] for v in values))
    high = max([0.01, *(v[2] for v in values)]) * 1.05
    height = ROW * len(cells) + 54

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT)

    parts = _axis(across, low, high, height, f"{title}, nats a token")
    for index, ((report, text), (value, lower, upper)) in enumerate(
        zip(cells, values, strict=True)
    ):
        y = 12 + ROW * index
        x0, x1 = sorted((across(0), across(value)))
        label = f"{_short(report['quant'])} · {text['name']}"
        tip = f"{label}: {value:.4f} [{lower:.4f}, {upper:.4f}]"
        parts += [
            f"<g><title>{escape(tip)}</title>",
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(_cut(label))}</text>',
            f'<rect x="{x0:.1f}" y="{y + 2}" width="{max(x1 - x0, 1):.1f}" height="16" rx="2" '
            f'fill="{_colour(text["name"])}" opacity=".8"/>',
            f'<path d="M{across(lower):.1f} {y + 10}H{across(upper):.1f}M{across(lower):.1f} '
            f'{y + 5}v10M{across(upper):.1f} {y + 5}v10" stroke="var(--fg)" stroke-width="1.5"/>'
            "</g>",
        ]
    return _svg(height, parts, f"{title} by language")


def _cut(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _names(reports: Sequence[Document]) -> list[str]:
    names: list[str] = []
    for report in reports:
        names += [t["name"] for t in report["texts"] if t["name"] not in names]
    return names


def _bound(interval: Document) -> tuple[float, float, float]:
    value = interval["estimate"] or 0.0
    low, high = interval["low"], interval["high"]
    return value, value if low is None else low, value if high is None else high


def _pareto(reports: Sequence[Document]) -> str:
    """Size across, loss up on a logarithmic axis; a line joins what nothing beats, by language."""
    sizes = [r["quant_bytes"] / 1e6 for r in reports]
    losses = {
        name: [
            next((x["kl"]["estimate"] for x in r["texts"] if x["name"] == name), None)
            for r in reports
        ]
        for name in _names(reports)
    }
    drawn = [v for row in losses.values() for v in row if v]
    if not drawn:
        return ""
    low_x, high_x = float(min(sizes) * 0.93), float(max(sizes) * 1.07)
    low_y, high_y = math.log(min(drawn) / 1.5), math.log(max(drawn) * 1.5)
    height = 400.0

    def across(value: float) -> float:
        return 90.0 + (value - low_x) / (high_x - low_x) * (WIDTH - RIGHT - 90)

    def up(value: float) -> float:
        return height - 46 - (math.log(value) - low_y) / (high_y - low_y) * (height - 62)

    parts = _axis(across, low_x, high_x, height, "size, MB")
    for power in range(-4, 2):
        for tick in (10.0**power, 3 * 10.0**power):
            if low_y < math.log(tick) < high_y:
                parts += [
                    f'<path d="M90 {up(tick):.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>',
                    f'<text class="soft" x="82" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}'
                    "</text>",
                ]
    parts.append(
        f'<text class="soft" x="18" y="{height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 18 {height / 2})">KL, nats a token</text>'
    )
    for name, row in losses.items():
        points = [(s, v, r) for s, v, r in zip(sizes, row, reports, strict=True) if v]
        front = _front([(s, v) for s, v, _ in points])
        line = " ".join(f"{across(s):.1f},{up(v):.1f}" for s, v in front)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{_colour(name)}" '
            'stroke-dasharray="4 3"/>'
        )
        for size, value, report in points:
            label = f"{_short(report['quant'])} · {name}"
            x, y = across(size), up(value)
            side = ("end", -9) if x > WIDTH * 0.7 else ("start", 9)
            parts += [
                f"<g><title>{escape(label)}: {value:.4f}, {size:.0f} MB</title>"
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_colour(name)}"/>'
                f'<text x="{x + side[1]:.1f}" y="{y + 4:.1f}" text-anchor="{side[0]}">'
                f"{escape(_cut(label))}</text></g>",
            ]
    return _svg(height, parts, "quality against size")


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (size, loss) that no other undercuts in both, by size."""
    front: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; those that begin with a digit or a sign are set as numbers."""
    lines = ["<div class=scroll><table><tr>", *(f"<th>{h}</th>" for h in head), "</tr>"]
    for row in rows:
        cells = (
            f"<td{' class=n' if cell[:1] in '0123456789+-−[' and cell else ''}>{cell}</td>"
            for cell in row
        )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "".join(lines) + "</table></div>"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _between(interval: Document, digits: int = 3) -> str:
    low, high = _number(interval["low"], digits), _number(interval["high"], digits)
    return f"{_number(interval['estimate'], digits)} [{low}, {high}]"


def _texts_table(reports: Sequence[Document]) -> str:
    head = ["model", "text", "tokens", "perplexity", "bits a byte", "KL p99", "top-1", "top-5"]
    rows = [
        [
            escape(_short(r["quant"])),
            escape(t["name"]),
            f"{t['n_tokens']:,}",
            f"{_number(t['perplexity_base'], 2)} → {_number(t['perplexity'], 2)}",
            f"{_number(t['bits_per_byte_base'])} → {_number(t['bits_per_byte'])}",
            _number(t["kl_p99"]["estimate"]),
            _number(t["top1"]["estimate"]),
            _number(t["top5"]["estimate"]),
        ]
        for r in reports
        for t in r["texts"]
    ]
    kinds = [
        [escape(_short(r["quant"])), escape(t["name"]), escape(kind), *_part(part)]
        for r in reports
        for t in r["texts"]
        for kind, part in t["by_kind"].items()
        if len(t["by_kind"]) > 1
    ]
    more = ""
    if kinds:
        table = _table(["model", "text", "kind", *PART], kinds)
        more = f"<details><summary>by kind of text</summary>{table}</details>"
    return _table(head, rows) + more


def _tasks_table(reports: Sequence[Document]) -> str:
    rows = [
        [
            escape(_short(r["quant"])),
            escape(t["name"]),
            t["scoring"],
            f"{t['n']:,}",
            f"{_number(t['base'])} → {_number(t['quant'])}",
            _between(t["recovery"]),
            _number(t["p_adjusted"]),
            _number(t["smallest_visible"]),
        ]
        for r in reports
        for t in r["tasks"]
    ]
    head = ["model", "task", "scoring", "items", "score", "recovery", "p", "visible from"]
    return _table(head, rows)


def _gate(report: Document) -> str:
    verdict = report["verdict"]
    rows = [
        [
            escape(f["name"]),
            f["metric"],
            f'<span class="{f["verdict"]}">{VERDICT_MARK[f["verdict"]]} {f["verdict"]}</span>',
            _between(f["interval"]),
            f"{'≤' if f['at_most'] else '≥'} {f['bound']:g}",
        ]
        for f in report["findings"]
    ]
    return (
        f'<p>{escape(_short(report["quant"]))}: <span class="verdict {verdict}">'
        f"{VERDICT_MARK[verdict]} {verdict}</span></p>"
        + _table(["of", "metric", "verdict", "measured", "limit"], rows)
    )


def _positions(reports: Sequence[Document]) -> str:
    rows = [
        [escape(_short(r["quant"])), escape(t["name"]), place.replace("-", "–"), *_part(part)]
        for r in reports
        for t in r["texts"]
        for place, part in sorted(t["by_position"].items(), key=lambda p: int(p[0].split("-")[0]))
    ]
    return _table(["model", "text", "positions", *PART], rows)


def _part(share: Sequence[Any]) -> list[str]:
    """Return the cells of PART; reports of the first versions have no more than ΔNLL and KL."""
    n, delta, kl, top1, top5, ppl_base, ppl = (list(share) + [None] * 6)[:7]
    perplexity = f"{_number(ppl_base, 2)} → {_number(ppl, 2)}" if ppl_base else "–"
    return [f"{n:,}", perplexity, *(_number(value) for value in (delta, kl, top1, top5))]


def _layers(report: Document) -> str:
    """Bars of each layer's relative error; a tick marks what plain rounding would have done."""
    layers = [layer for layer in report["layers"] if layer["error"] is not None]
    if not layers:
        return "<p class=soft>No calibration, so no errors were measured.</p>"
    worst = sorted(layers, key=lambda layer: -layer["error"])[:24]
    high = float(max(max(x["error"], x["error_rtn"] or 0) for x in worst) * 1.05)
    height = 22 * len(worst) + 54.0

    def across(value: float) -> float:
        return 250 + value / high * (WIDTH - RIGHT - 250)

    label = "error relative to the layer's output; a line marks plain rounding's"
    parts = _axis(across, 0.0, high, height, label)
    for index, layer in enumerate(worst):
        y = 10 + 22 * index
        parts += [
            f"<g><title>{escape(layer['module'])}: {layer['error']:.5f}, plain rounding "
            f"{_number(layer['error_rtn'], 5)}</title>"
            f'<text x="242" y="{y + 12}" text-anchor="end">'
            f"{escape(layer['module'].removeprefix('model.'))}</text>"
            f'<rect x="250" y="{y + 1}" width="{max(across(layer["error"]) - 250, 1):.1f}" '
            'height="13" rx="2" fill="var(--tg)" opacity=".8"/>',
        ]
        if layer["error_rtn"] is not None:
            parts.append(f'<path d="M{across(layer["error_rtn"]):.1f} {y}v15" stroke="var(--fg)"/>')
        parts.append("</g>")
    return _plot(_svg(height, parts, "error of the worst layers"))


def _sensitivity(found: Sensitivity) -> str:
    """Bars of the groups that cost most, one a language."""
    groups = sorted(found.groups, key=lambda g: -sum(g.kl.values()))[:24]
    languages = sorted(groups[0].kl)
    step = 10 * len(languages) + 8
    height = step * len(groups) + 54.0
    high = max(kl for g in groups for kl in g.kl.values()) * 1.05

    def across(value: float) -> float:
        return 250 + max(value, 0.0) / high * (WIDTH - RIGHT - 250)

    parts = _axis(
        across, 0.0, high, height, "KL in nats a token; from above: " + ", ".join(languages)
    )
    for index, group in enumerate(groups):
        y = 10 + step * index
        label = group.modules[0].removeprefix("model.") + (", …" if len(group.modules) > 1 else "")
        told = ", ".join(f"{language} {group.kl[language]:.4f}" for language in languages)
        parts.append(
            f"<g><title>{escape(', '.join(group.modules))}: {told}</title>"
            f'<text x="242" y="{y + step / 2}" text-anchor="end">{escape(label)}</text>'
        )
        parts += [
            f'<rect x="250" y="{y + 10 * place}" rx="2" height="9" '
            f'width="{max(across(group.kl[language]) - 250, 1):.1f}" fill="{_colour(language)}"/>'
            for place, language in enumerate(languages)
        ]
        parts.append("</g>")
    return _plot(_svg(height, parts, "divergence of each group quantized alone"))


def _worst(report: Document) -> str:
    parts = []
    for text in report["texts"]:
        rows = [
            [
                _number(w["kl"], 2),
                f"…{escape(w['context'][-80:])}<mark>{escape(w['token'])}</mark>",
                escape(w["base_expected"]),
                f"{_number(w['nll_base'], 2)} → {_number(w['nll'], 2)}",
            ]
            for w in text["worst"]
        ]
        table = _table(["KL", "text", "base expected", "NLL"], rows)
        label = f"{escape(_short(report['quant']))}, {escape(text['name'])}"
        parts.append(f"<details open><summary>{label}</summary>{table}</details>")
    return "".join(parts)


def _generation(generation: Document) -> str:
    rows = [
        [escape(prompt), escape(text)]
        for prompt, text in zip(generation["prompts"], generation["texts"], strict=True)
    ]
    shares = [
        [what, _number(generation["base"][what]), _number(generation["quant"][what])]
        for what in ("repetition", "cyrillic", "foreign", "empty")
        if what in generation["base"]  # older reports have no "foreign"
    ]
    return _table(["share", "base", "quantized"], shares) + (
        f"<details><summary>texts</summary>{_table(['prompt', 'went on'], rows)}</details>"
    )


def _colophon(reports: Sequence[Document]) -> str:
    s = reports[0]["settings"]
    noise = "".join(
        f" {escape(n['name'])}, {escape(n['how'])}: KL {n['kl']:.1e}, top-1 {n['top1']:.4f}."
        for n in reports[0]["noise"]
    )
    told = f" The base against itself, computed another way:{noise}" if noise else ""
    return (
        f"<p class=soft><small>soroq {s['soroq']}, torch {s['torch']}, windows of {s['seq_len']} "
        f"tokens.{told}</small></p>"
    )
