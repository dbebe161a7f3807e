"""The losses of `soroq train demo` as a picture, and its numbers as a record.

python -m soroq.bench.train_curves train-demo --record     # docs/train.svg, train-demo.jsonl
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from soroq.bench.record import append_record
from soroq.io.writer import atomic_write

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 110, 20, 50
COLOURS = ("#0b6e4f", "#b04a2f", "#5560a8", "#8a6d1b")
PICTURE = Path(__file__).parents[1] / "docs" / "train.svg"
Curve = Sequence[tuple[float, float]]


def curves(lines: Mapping[str, Curve], x_title: str, y_title: str) -> str:
    """Return an SVG of name → points (x, y), joined; a name beginning with '·' has no dots."""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    room = 0.05 * (max(ys) - min(ys) or 1.0)
    low, high = min(ys) - room, max(ys) + room
    last = max(xs) or 1.0

    def across(x: float) -> float:
        return LEFT + x / last * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for number in range(5):
        x, y = last * number / 4, low + (high - low) * number / 4
        parts += [
            f'<path d="M{LEFT} {up(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>',
            f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{x:,.0f}</text>",
        ]
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        points = [(across(x), up(y)) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        thin = name.startswith("·")
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{1 if thin else 2.5}"/>'
        )
        if not thin:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points
            ]
        x, y = points[-1]
        label = escape(name.removeprefix("·"))
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{label}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(y_title)}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def read_run(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says: configuration, losses by step, validation by language.

    Of paths in the configuration only names are left: folders are private.
    """
    record = json.loads((folder / "soroq-train.json").read_text(encoding="utf-8"))
    for table, key in (("model", "source"), ("data", "corpus")):
        given = record["config"].get(table, {})
        given[key] = Path(given.get(key, "")).name
    data = record["config"]["data"]
    data["files"] = [Path(file).name for file in data.get("files", ())]
    keys = ("config", "losses", "validation", "rounds", "learned_parameters", "versions")
    return {key: record[key] for key in keys}


def read_check(file: Path) -> dict[str, Any]:
    """Return a check's numbers by text: perplexities, and differences with their intervals."""
    report = json.loads(file.read_text(encoding="utf-8"))
    keys = ("n_tokens", "perplexity_base", "perplexity", "delta_nll", "kl")
    return {text["name"]: {key: text[key] for key in keys} for text in report["texts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="of `soroq train demo`")
    parser.add_argument("--record", action="store_true", help="append to bench/records")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    runs = {name: read_run(given.folder / name) for name in ("pretrained", "tuned")}
    run = runs["pretrained"]
    tokens = run["config"]["train"]["batch"] * run["config"]["data"]["seq_len"]
    lines: dict[str, Curve] = {
        f"{language}, validation": [
            (int(step) * tokens, losses[language]) for step, losses in run["validation"].items()
        ]
        for language in next(iter(run["validation"].values()))
    }
    lines["·training"] = [(n * tokens, loss) for n, loss in enumerate(run["losses"], 1)]
    atomic_write(given.picture, curves(lines, "tokens", "loss, nats a token").encode())
    if given.record:
        card = json.loads((given.folder / "corpus" / "corpus.json").read_text(encoding="utf-8"))
        checks = {
            name: read_check(given.folder / f"check-{name}.json")
            for name in ("trained", "quantized")
        }
        seconds = json.loads((given.folder / "seconds.json").read_text(encoding="utf-8"))
        corpus = {
            split: {language: entry["tokens"] for language, entry in languages.items()}
            for split, languages in card["splits"].items()
        }
        append_record(
            "train-demo", {"corpus": corpus, "runs": runs, "checks": checks, "seconds": seconds}
        )


if __name__ == "__main__":
    main()
