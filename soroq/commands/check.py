"""check: run the checker, print tables, write reports, exit by the verdict."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq import console
from soroq.bench.quality.check import CheckRequest, Report, check
from soroq.bench.quality.decoder_model import split_runtime
from soroq.bench.quality.gate import EXIT_CODES
from soroq.bench.quality.report import card_section, markdown, write_card
from soroq.core.errors import CheckError
from soroq.io.writer import atomic_write


@dataclass(frozen=True)
class Outputs:
    """Where the report goes besides the terminal."""

    json_out: bool = False
    json_file: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    card: bool = False


def parse_files(given: Sequence[str], option: str) -> dict[str, Path]:
    """Parse 'name=FILE' options. Raises CheckError."""
    files = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise CheckError(f"{option} {text!r} is not name=FILE, e.g. tg=valid.jsonl")
        files[name] = Path(path)
    return files


def run_check(request: CheckRequest, outputs: Outputs) -> int:
    """Check, print, write; return the exit code."""
    directory = Path(split_runtime(request.quant)[1])
    if outputs.card and not (directory / "README.md").is_file():
        raise CheckError(f"{directory} has no README.md to write the results to")
    try:
        with console.check_progress() as listen:
            report = check(request, listen)
    except KeyboardInterrupt:
        print(
            "soroq: interrupted; what was measured is kept, the same command goes on there",
            file=sys.stderr,
        )
        raise
    document = json.dumps(report.to_json(), ensure_ascii=False, indent=2, sort_keys=True)
    if outputs.json_file is not None:
        atomic_write(outputs.json_file, document.encode())
    if outputs.markdown is not None:
        atomic_write(outputs.markdown, markdown(report).encode())
    if outputs.html is not None:
        from soroq.bench.quality.page import page

        atomic_write(outputs.html, page([report.to_json()]).encode())
    if outputs.card:
        write_card(directory, card_section(report))
    if outputs.json_out:
        print(document)
    else:
        _print(report)
    return EXIT_CODES.get(report.verdict, 0)


def _print(report: Report) -> None:
    rows = [
        [
            t.name,
            str(t.n_tokens),
            f"{t.perplexity_base:.2f}",
            f"{t.perplexity:.2f}",
            f"{t.bits_per_byte:.3f}",
            str(t.delta_nll),
            str(t.kl),
            f"{t.kl_p99.estimate:.3f}",
            f"{t.top1.estimate:.3f}",
        ]
        for t in report.texts
    ]
    columns = ["text", "tokens", "ppl base", "ppl", "bits/byte", "ΔNLL", "KL", "KL p99", "top-1"]
    console.table(f"{report.quant} against {report.base}", columns, rows)
    kinds = [
        [t.name, kind, str(n), f"{delta:+.4f}", f"{kl:.4f}"]
        for t in report.texts
        for kind, (n, delta, kl) in t.by_kind.items()
        if len(t.by_kind) > 1
    ]
    if kinds:
        console.table("by kind of text", ["text", "kind", "tokens", "ΔNLL", "KL"], kinds)
    if report.tasks:
        rows = [
            [
                t.name,
                t.scoring,
                str(t.n),
                f"{t.base:.3f}",
                f"{t.quant:.3f}",
                str(t.recovery),
                "" if t.p_adjusted != t.p_adjusted else f"{t.p_adjusted:.3f}",
                f"{t.smallest_visible:.3f}",
            ]
            for t in report.tasks
        ]
        columns = ["task", "scoring", "items", "base", "quant", "recovery", "p", "visible from"]
        console.table("tasks", columns, rows)
    if report.noise:
        rows = [
            [n.name, n.how, f"{n.delta_nll:+.6f}", f"{n.kl:.2e}", f"{n.top1:.3f}"]
            for n in report.noise
        ]
        console.table(
            f"noise floor: {report.base} against itself",
            ["text", "how", "ΔNLL", "KL", "top-1"],
            rows,
        )
    if report.generation is not None:
        b, q = report.generation.base, report.generation.quant
        rows = [
            [what, f"{getattr(b, what):.3f}", f"{getattr(q, what):.3f}"]
            for what in ("repetition", "cyrillic", "empty")
        ]
        console.table("generated text", ["share", "base", "quant"], rows)
    if report.findings:
        rows = [
            [
                f.name,
                f.metric,
                str(f.interval),
                ("≤ " if f.at_most else "≥ ") + f"{f.bound:g}",
                f.verdict,
            ]
            for f in report.findings
        ]
        console.table("gate", ["of", "metric", "measured", "limit", "verdict"], rows)
        console.out.print(f"verdict: {report.verdict}", highlight=False)


def page_of(files: Sequence[Path], out: Path, sensitivity: Path | None = None) -> None:
    """Write one page over several reports (JSON files of `soroq check --out`).

    sensitivity: a file of `soroq sensitivity`, to be shown too.
    """
    from soroq.bench.quality.page import page
    from soroq.pipeline.sensitivity import load_sensitivity

    found = load_sensitivity(sensitivity) if sensitivity is not None else None

    reports: list[dict[str, Any]] = []
    for file in files:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(document, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise CheckError(f"{file}: not a report of soroq check: {error}") from error
        if not str(document.get("schema", "")).startswith("soroq-check/"):
            raise CheckError(f"{file}: not a report of soroq check")
        reports.append(document)
    atomic_write(out, page(reports, found).encode())
    console.out.print(f"wrote {out}", highlight=False)
