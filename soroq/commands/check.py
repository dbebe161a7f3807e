"""check: run the checker, print tables, write reports, exit by the verdict."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq import console
from soroq.bench.quality.check import SCHEMA, CheckRequest, Report, check
from soroq.bench.quality.decoder_model import split_runtime
from soroq.bench.quality.gate import EXIT_CODES
from soroq.bench.quality.report import card_section, markdown, write_card
from soroq.core.errors import CheckError, OutputError
from soroq.io.writer import atomic_write

SAME_BASE = 0.02  # nats a token: more than other attention, threads or bfloat16 make


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
        if name in files:
            raise CheckError(f"{option} {name!r} is given twice; give each file a name of its own")
        files[name] = Path(path)
    return files


def run_check(request: CheckRequest, outputs: Outputs) -> int:
    """Check, print, write; return the exit code."""
    directory = Path(split_runtime(request.quant)[1])
    if outputs.card and not (directory / "README.md").is_file():
        raise CheckError(f"{directory} has no README.md to write the results to")
    for file in (outputs.json_file, outputs.markdown, outputs.html):
        _refuse_no_place(file)
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


def _refuse_no_place(file: Path | None) -> None:
    """Raise OutputError when a file can't be written where it shall be, before hours are spent."""
    if file is not None and file.is_dir():
        raise OutputError(f"{file} is a directory; give the name of a file")
    if file is not None and not file.absolute().parent.is_dir():
        raise OutputError(f"can't write {file}: {file.parent} is no directory; make it first")


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
        [t.name, kind, str(part.n_tokens), f"{part.delta_nll:+.4f}", f"{part.kl:.4f}"]
        for t in report.texts
        for kind, part in t.by_kind.items()
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
            for what in ("repetition", "cyrillic", "foreign", "empty")
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


def _read_report(file: Path) -> dict[str, Any]:
    """Return a report that the page can show. Raises CheckError for anything else."""
    from soroq.bench.quality.page import page

    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckError(f"{file}: not a report of soroq check: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise CheckError(f"{file}: not a report of soroq check (schema {schema!r}, not {SCHEMA!r})")
    assert isinstance(document, dict)
    try:
        page([document])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckError(
            f"{file}: a report of soroq check that is not whole: {error!r}; write it again with "
            "soroq check --out"
        ) from error
    return document


def _refuse_other_measure(
    first: Path, one: Mapping[str, Any], file: Path, other: Mapping[str, Any]
) -> None:
    """Raise CheckError unless two reports are of the same windows of each text, and of one base.

    Of one base: the same loss on them, within SAME_BASE (its hash says versions too).
    """
    texts = {text["name"]: text for text in one["texts"]}
    for text in (t for t in other["texts"] if t["name"] in texts):
        name = text["name"]
        if one["settings"]["sets"].get(name) != other["settings"]["sets"].get(name):
            raise CheckError(
                f"{file} and {first} measured {name!r} on other windows; check them with the same "
                "--text, --windows, --seq-len and --stride"
            )
        a, b = (t["perplexity_base"] or math.inf for t in (texts[name], text))
        if not abs(math.log(a / b)) < SAME_BASE:
            raise CheckError(
                f"{file} is against {other['base']} with perplexity {b:.2f} on {name!r}, {first} "
                f"against {one['base']} with {a:.2f}; a page compares candidates of one base"
            )


def page_of(files: Sequence[Path], out: Path, sensitivity: Path | None = None) -> None:
    """Write one page over several reports (JSON files of `soroq check --out`).

    sensitivity: a file of `soroq sensitivity`, to be shown too.
    """
    from soroq.bench.quality.page import page
    from soroq.pipeline.sensitivity import load_sensitivity

    _refuse_no_place(out)
    found = load_sensitivity(sensitivity) if sensitivity is not None else None
    reports = [_read_report(file) for file in files]
    for file, document in zip(files, reports, strict=True):
        _refuse_other_measure(files[0], reports[0], file, document)
    atomic_write(out, page(reports, found).encode())
    console.out.print(f"wrote {out}", highlight=False)
