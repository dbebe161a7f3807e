"""The ladder: every scheme and every peer against the original, on the same tokens.

    python -m soroq.bench.quality.ladder gemma3-270m --work ladder --windows 16 \
        --text tg=valid.jsonl --text en=valid-en.jsonl --scheme int4 --scheme int4-rtn \
        --peer llmcompressor-gptq=peers/gptq

A scheme is a directory of that name under --work, made by `soroq quantize`; a peer is one that
`soroq quantize --backend` made, or `bench/peers/hqq_model.py`. One record a model and text goes to
bench/records. `--table` prints the newest record of each model on the windows of the last run as
Markdown and `--picture FILE.svg` draws them; both measure nothing.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soroq.bench.quality.compare import compare_text
from soroq.bench.quality.picture import scatter
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.sets import make_set, read_passages
from soroq.bench.quality.tables import QuantTable
from soroq.bench.record import append_record, read_records

BENCH = "quality-ladder"
INTERVALS = ("delta_nll", "kl", "kl_p99", "top1", "top5")
PLAIN = ("n_tokens", "n_windows", "perplexity", "bits_per_byte", "kl_max", "by_kind", "by_position")


def run(options: argparse.Namespace) -> None:
    """Run every model once, compare each with the original."""
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(options.base)
    texts = dict(pair.split("=", 1) for pair in options.text)
    sets = [
        make_set(name, read_passages(Path(path)), tokenizer, limit=options.windows)
        for name, path in texts.items()
    ]
    models = {"bfloat16": Path(options.base)}
    for scheme in options.scheme:
        models[scheme] = options.work / scheme
    models |= {f"peer:{n}": Path(p) for n, p in (pair.split("=", 1) for pair in options.peer)}
    base = Scorer(options.base)
    print(f"running {options.base}", flush=True)
    tables = {one.name: base.base_table(one) for one in sets}
    base.close()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for name, path in models.items():
        print(f"running {name}", flush=True)
        scorer = Scorer(str(path))
        for one in sets:
            table = tables[one.name]
            other: QuantTable = scorer.quant_table(one, base, table)
            result = asdict(compare_text(one, table, other, tokenizer))
            facts = {key: result[key] for key in PLAIN}
            for key in INTERVALS:
                facts[key] = result[key]["estimate"]
                facts[f"{key}_low"], facts[f"{key}_high"] = result[key]["low"], result[key]["high"]
            append_record(
                BENCH,
                {"run": started, "model": name, "text": one.name, "set_sha256": one.sha256}
                | facts
                | _facts(path),
            )
        scorer.close()


def _facts(path: Path) -> dict[str, Any]:
    """Return size, time, memory and calibration of a model directory, as far as it says."""
    facts: dict[str, Any] = {}
    if path.is_dir():
        facts["model_bytes"] = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    for file in ("soroq-run.json", "peer.json"):
        if (path / file).is_file():
            run_facts = json.loads((path / file).read_text())
            facts |= {key: run_facts[key] for key in ("seconds", "peak_rss_bytes")}
    if (path / "soroq.json").is_file():
        manifest = json.loads((path / "soroq.json").read_text())
        facts["source_sha256"] = manifest["source_sha256"]
        facts["recipe"] = manifest["recipe"]
        if manifest["calibration"]:
            facts["calibration_sha256"] = manifest["calibration"]["sha256"]
    return facts


def newest_results() -> dict[str, dict[str, dict[str, Any]]]:
    """Return model → text → newest record, of the texts' windows that the newest run measured.

    A model that was measured in an earlier run on the very same windows (set_sha256) stays: what a
    model says of given tokens doesn't depend on what else ran with it.
    """
    records = sorted((r for r in read_records(BENCH) if "run" in r), key=lambda r: str(r["run"]))
    newest = records[-1]["run"] if records else ""
    windows = {r["text"]: r["set_sha256"] for r in records if r["run"] == newest}
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        if windows.get(record["text"]) == record["set_sha256"]:
            models.setdefault(record["model"], {})[record["text"]] = record
    return models


def table(models: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return model → text → record as a Markdown table."""
    texts = sorted({text for rows in models.values() for text in rows}, reverse=True)
    head = ["model", *(f"{t} {c}" for t in texts for c in ("ppl", "ΔNLL", "KL", "top-1"))]
    lines = [[*head, "MB", "s", "GB peak"]]
    for model, rows in models.items():
        cells = [model]
        for text in texts:
            r = rows.get(text)
            if r is None:
                cells += [""] * 4
                continue
            span = f"[{r['delta_nll_low']:.3f}, {r['delta_nll_high']:.3f}]"
            cells += [f"{r['perplexity']:.2f}", f"{r['delta_nll']:.3f} {span}"]
            cells += [f"{r['kl']:.3f}", f"{r['top1']:.3f}"]
        any_row = next(iter(rows.values()))
        for key, scale in (("model_bytes", 1e6), ("seconds", 1), ("peak_rss_bytes", 1e9)):
            digits = 2 if scale == 1e9 else 0
            cells.append(f"{any_row[key] / scale:.{digits}f}" if key in any_row else "")
        lines.append(cells)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(models: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return an SVG of the losses in Tajik and English of every model but the original."""
    points = {
        model: (rows["tg"]["delta_nll"], rows["en"]["delta_nll"])
        for model, rows in models.items()
        if model != "bfloat16" and {"tg", "en"} <= rows.keys()
    }
    return scatter(points, "Tajik ΔNLL, nats a token", "English ΔNLL, nats a token")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", default="gemma3-270m")
    parser.add_argument("--work", type=Path, default=Path("ladder"))
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--scheme", action="append", default=[])
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.table:
        print(table(newest_results()))
    elif options.picture is not None:
        options.picture.write_text(picture(newest_results()), encoding="utf-8")
    else:
        run(options)


if __name__ == "__main__":
    main()
