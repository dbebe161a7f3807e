"""The check's report as Markdown, for people and for the model card."""

import math
from pathlib import Path

from soroq.bench.quality.check import Report
from soroq.bench.quality.compare import Share
from soroq.io.writer import atomic_write

BEGIN, END = "<!-- soroq check -->", "<!-- /soroq check -->"


def markdown(report: Report) -> str:
    """Return the whole report."""
    parts = [f"# {report.quant} against {report.base}", card_section(report)]
    for text in report.texts:
        if len(text.by_kind) > 1:
            parts.append(_grouped(f"{text.name} by kind of text", text.by_kind))
        parts.append(_grouped(f"{text.name} by position", text.by_position))
    for text in report.texts:
        rows = [
            [f"{w.kl:.2f}", _quote(w.context[-60:]), _quote(w.token), _quote(w.base_expected)]
            + [f"{w.nll_base:.2f}", f"{w.nll:.2f}"]
            for w in text.worst
        ]
        head = ["KL", "…context", "token", "base expected", "NLL base", "NLL"]
        parts.append(f"### {text.name}: where they differ most\n\n{_table(head, rows)}")
    if report.noise:
        rows = [
            [n.name, n.how, f"{n.delta_nll:+.6f}", f"{n.kl:.1e}", f"{n.top1:.4f}"]
            for n in report.noise
        ]
        parts.append(
            "### Noise floor\n\nThe base against itself, computed another way.\n\n"
            + _table(["text", "how", "ΔNLL", "KL", "top-1"], rows)
        )
    return "\n\n".join(parts) + "\n"


def card_section(report: Report) -> str:
    """Return what belongs on the model card: texts, tasks and the verdict."""
    level = f"{report.settings['level']:.0%}"
    rows = [
        [
            t.name,
            f"{t.n_tokens:,}",
            f"{t.perplexity_base:.2f}",
            f"{t.perplexity:.2f}",
            str(t.delta_nll),
            str(t.kl),
            f"{t.top1.estimate:.3f}",
            f"{t.bits_per_byte_base:.3f} → {t.bits_per_byte:.3f}",
        ]
        for t in report.texts
    ]
    head = ["text", "tokens", "ppl base", "ppl", "ΔNLL", "KL", "top-1", "bits a byte"]
    parts = [f"Against `{report.base}`; brackets are {level} intervals.", _table(head, rows)]
    if report.tasks:
        rows = [
            [t.name, t.scoring, str(t.n), f"{t.base:.3f}", f"{t.quant:.3f}", str(t.recovery)]
            for t in report.tasks
        ]
        parts.append(_table(["task", "scoring", "items", "base", "quant", "recovery"], rows))
    if report.findings:
        rows = [
            [f.name, f.metric, str(f.interval), f"{'≤' if f.at_most else '≥'} {f.bound:g}"]
            + [f.verdict]
            for f in report.findings
        ]
        parts.append(_table(["gate", "metric", "measured", "limit", "verdict"], rows))
        parts.append(f"**Verdict: {report.verdict}.**")
    return "\n\n".join(parts)


def write_card(directory: Path, section: str) -> None:
    """Put the section into a model card, in place of an older one."""
    file = directory / "README.md"
    text = file.read_text(encoding="utf-8")
    block = f"{BEGIN}\n## Measured\n\n{section}\n{END}"
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        text = before + block + rest.partition(END)[2]
    else:
        text = text.rstrip() + "\n\n" + block + "\n"
    atomic_write(file, text.encode())


def _grouped(title: str, groups: dict[str, Share]) -> str:
    whole = all(math.isfinite(part.bits_per_byte_base) for part in groups.values())
    rows = [
        [name, f"{p.n_tokens:,}", f"{p.perplexity_base:.2f}", f"{p.perplexity:.2f}"]
        + ([f"{p.bits_per_byte_base:.3f} → {p.bits_per_byte:.3f}"] if whole else [])
        + [f"{p.delta_nll:+.4f}", f"{p.kl:.4f}", f"{p.top1:.3f}", f"{p.top5:.3f}"]
        for name, p in groups.items()
    ]
    head = ["", "tokens", "ppl base", "ppl", *(["bits a byte"] if whole else [])]
    return f"### {title}\n\n" + _table([*head, "ΔNLL", "KL", "top-1", "top-5"], rows)


def _quote(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("`", "'")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
