"""Exported folders against everybody else who runs such a model on a CPU.

    soroq bench onnx --onnx out-onnx --soroq out --text tg=valid.jsonl --work peers
    soroq bench onnx --table > table.md                  # the newest run, as Markdown

Everybody runs the demo model on the same tokens: exported folders, soroq's C++ decoder and packed
model, llama.cpp and ik_llama.cpp, onnxruntime-genai's own int4 model, OpenVINO's, transformers in
bfloat16. Speed is raced in one process, in turn (`race`); load time, time to the first token and
peak memory are of a fresh process each, in turn (`alone`). Perplexity and KL to the original (the
bfloat16 weights in float32 arithmetic) are of the same windows. A line goes to onnx-decode.jsonl
for each contender, phase and number of threads, and one to onnx-footprint.jsonl.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.bench.kernels.cpu_race import order
from soroq.bench.peers.alone import AloneError, measure_alone
from soroq.bench.peers.decode_cpu import llama_contenders
from soroq.bench.peers.onnx_table import newest_run, table
from soroq.bench.peers.parity import DEMO
from soroq.bench.peers.players import Contender, objection, open_player
from soroq.bench.peers.race import (
    Lengths,
    Row,
    levels,
    race,
    speed_entries,
    summary,
    text_ids,
)
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_records
from soroq.core.errors import CheckError
from soroq.io.demo_model import ensure_demo_model
from soroq.kernels.cpu import ceilings
from soroq.loading import load_tokenizer

DECODE, FOOTPRINT = "onnx-decode", "onnx-footprint"
LLAMA = {
    "llama.cpp": ("Q4_0 e8", "Q4_0 e4", "Q4_K_M"),
    "ik_llama.cpp": ("Q4_0_R8 e8", "Q4_0_R8 e4"),
}
PEERS = ("llama.cpp", "ik_llama.cpp", "genai", "openvino", "transformers", "packed")
FACTS = ("import_s", "load_s", "first_token_s", "peak_rss_bytes", "imports_bytes")
Levels = dict[str, dict[str, dict[str, float]]]  # text → contender → facts


@dataclass(frozen=True)
class Request:
    """What is raced; `peers`: some of PEERS; `work`: where peers' files are made and kept."""

    onnx: tuple[Path, ...] = ()
    soroq: tuple[Path, ...] = ()
    genai: Path | None = None
    openvino: Path | None = None
    peers: tuple[str, ...] = PEERS
    texts: tuple[tuple[str, Path], ...] = ()
    windows: int = 4
    lengths: Lengths = Lengths()
    threads: tuple[int, ...] = (1, 2)
    repeats: int = 7
    alone: int = 5
    work: Path | None = None
    source: str = DEMO
    keep: bool = True


def contenders(request: Request, work: Path, base: Path) -> tuple[list[Contender], list[str]]:
    """Return everybody who may run here, and a line about each who can't."""
    found = [Contender(f"soroq onnx {p.name}", "onnx", "soroq", str(p)) for p in request.onnx]
    found += [Contender(f"soroq c++ {p.name}", "soroq", "soroq", str(p)) for p in request.soroq]
    absent: list[str] = []
    for flavour, names in LLAMA.items():
        if flavour in request.peers:
            try:
                found += llama_contenders(flavour, names, work, max(request.threads))
            except OSError as error:
                absent.append(str(error))
    for kind, name, path in (
        ("genai", "onnxruntime-genai int4", request.genai or work / "genai-int4"),
        ("openvino", "openvino int4", request.openvino or work / "openvino-int4"),
    ):
        if kind in request.peers:
            found.append(Contender(name, kind, kind, str(path)))
    if "packed" in request.peers:
        found += [
            Contender(f"transformers soroq {p.name}", "packed", "soroq", str(p))
            for p in request.soroq
        ]
    if "transformers" in request.peers:
        found.append(Contender("transformers bfloat16", "transformers", "transformers", str(base)))
    objections = {contender.name: objection(contender) for contender in found}
    absent += [f"{name}: left out, {why}" for name, why in objections.items() if why]
    return [c for c in found if not objections[c.name]], absent


@contextmanager
def opened(found: Sequence[Contender], threads: int, window: int) -> Iterator[list[Row]]:
    """Load everybody; who can't be loaded is left out with a line. Closes all in the end."""
    with ExitStack() as stack:
        rows = []
        for contender in found:
            try:
                player = open_player(contender, threads=threads, window=window)
            except Exception as error:  # each library has its own
                say(f"{contender.name}: left out, {type(error).__name__}: {str(error)[:300]}")
                continue
            stack.callback(player.close)
            rows.append(Row(contender, player))
        yield rows


def measure_footprints(
    found: Sequence[Contender], threads: int, prompt: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Return an entry a contender: each alone in a fresh process, in turn, once to warm up."""
    by_name = {contender.name: contender for contender in found}
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in by_name}
    for turn in range(-1, repeats):
        for name in order(list(by_name), max(turn, 0)):
            if name not in samples:
                continue
            try:
                facts = measure_alone(by_name[name], threads=threads, prompt=prompt)
            except AloneError as error:
                say(f"left out, {error}")
                del samples[name]
                continue
            if turn >= 0:  # the first brought its files into the page cache
                samples[name].append(facts)
    return [
        footprint_entry(by_name[name], threads, len(prompt), facts)
        for name, facts in samples.items()
        if facts
    ]


def footprint_entry(
    contender: Contender, threads: int, n_prompt: int, samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return one record: seconds and bytes with their medians and percentiles."""
    entry: dict[str, Any] = {
        "kernel": contender.name,
        "peer": contender.peer,
        "threads": threads,
        "n_prompt": n_prompt,
        "bytes": contender.model_bytes(),
        "disk_bytes": contender.disk_bytes(),
        "unit": "seconds, bytes",
        "warm_up": "one process, discarded; files in the page cache",
    }
    for fact in FACTS:
        digits = 4 if fact.endswith("_s") else 0
        entry[fact] = summary([sample[fact] for sample in samples], digits)
    for fact in ("anonymous_bytes", "file_bytes"):
        entry[fact] = samples[-1][fact]
    return entry


def measure_levels(
    rows: Sequence[Row], base: Path, texts: Mapping[str, EvalSet], threads: int
) -> Levels:
    """Return everybody's perplexity, KL and top-1 agreement with the original, on each text."""
    original = Contender("original", "original", "transformers", str(base))
    with opened([original], threads, 0) as (truth,):
        by_name = {row.contender.name: row.player.logits for row in rows}
        return {
            name: levels(by_name, truth.player.logits, windows) for name, windows in texts.items()
        }


def measure(request: Request) -> int:
    """Run everything, print the table, append records; return the exit code."""
    run_id = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tokenizer = load_tokenizer(request.source)
    texts = {
        name: make_set(name, read_passages(path), tokenizer, limit=request.windows)
        for name, path in request.texts
    }
    ids = text_ids(texts, request.lengths.needed)
    known = Path(request.source)
    base = known if known.is_dir() else ensure_demo_model(request.source)
    speeds: list[dict[str, Any]] = []
    footprints: list[dict[str, Any]] = []
    found_levels: Levels = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = request.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found, absent = contenders(request, work, base)
        for line in absent:
            say(line)
        for threads in request.threads if request.alone else ():
            say(f"{threads} threads: everybody alone, {request.alone + 1} times")
            prompt = ids[: request.lengths.prefill]
            footprints += measure_footprints(found, threads, prompt, request.alone)
        window = max(512, request.lengths.needed)
        for threads in request.threads:
            with opened(found, threads, window) as rows:
                say(f"{threads} threads: {len(rows)} in turn, {request.repeats + 1} times")
                race(rows, ids, request.lengths, request.repeats)
                read_gb_s = ceilings.read_gb_s(threads)
                for row in rows:
                    entries = speed_entries(row, request.lengths, read_gb_s)
                    speeds += [entry | {"threads": threads} for entry in entries]
                if threads == request.threads[-1] and texts:
                    say("perplexity, and KL to the original")
                    found_levels = measure_levels(rows, base, texts, threads)
    _finish(run_id, speeds, footprints, found_levels, texts)
    print(table(speeds, footprints), end="")
    if request.keep and speeds:
        append_records(DECODE, speeds)
    if request.keep and footprints:
        append_records(FOOTPRINT, footprints)
    return 0 if speeds else 1


def _finish(
    run_id: str,
    speeds: Sequence[dict[str, Any]],
    footprints: Sequence[dict[str, Any]],
    found_levels: Levels,
    texts: Mapping[str, EvalSet],
) -> None:
    """Add to entries what belongs to the whole run."""
    hashes = {name: windows.sha256 for name, windows in texts.items()}
    for entry in (*speeds, *footprints):
        entry |= {"run": run_id, "versions": versions()}
    for entry in speeds:
        quality = {text: facts.get(entry["kernel"], {}) for text, facts in found_levels.items()}
        entry |= {"quality": quality, "sets_sha256": hashes}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that took part."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "transformers", "onnxruntime", "onnxruntime-genai", "openvino"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def say(line: str) -> None:
    """Print a line at once, to stderr: stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, action="append", default=[], help="exported folder")
    parser.add_argument("--soroq", type=Path, action="append", default=[], help="checkpoint")
    parser.add_argument("--genai", type=Path, help="default: WORK/genai-int4")
    parser.add_argument("--openvino", type=Path, help="default: WORK/openvino-int4")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of them, or none")
    parser.add_argument("--text", action="append", default=[], help="name=FILE")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--depth", type=int, default=1, help="tokens before the decoded ones")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--alone", type=int, default=5, help="processes a contender")
    parser.add_argument("--work", type=Path, help="where peers' files are made and kept")
    parser.add_argument("--source", default=DEMO, help="the original")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--table", action="store_true", help="the newest run's; measures nothing")
    options = parser.parse_args(arguments)
    if options.table:
        speeds, footprints = newest_run(DECODE, FOOTPRINT)
        if not speeds:
            raise CheckError(f"no records of {DECODE} yet; run it first")
        print(table(speeds, footprints), end="")
        return 0
    peers = tuple(part for part in options.peers.split(",") if part not in ("", "none"))
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise CheckError(f"--peers {unknown[0]!r} is unknown; known: {', '.join(PEERS)}, none")
    request = Request(
        onnx=tuple(options.onnx),
        soroq=tuple(options.soroq),
        genai=options.genai,
        openvino=options.openvino,
        peers=peers,
        texts=tuple(_text(spec) for spec in options.text),
        windows=options.windows,
        lengths=Lengths(options.prefill, options.decode, options.depth),
        threads=_numbers(options.threads),
        repeats=options.repeats,
        alone=options.alone,
        work=options.work,
        source=options.source,
        keep=not options.no_record,
    )
    return measure(request)


def _text(spec: str) -> tuple[str, Path]:
    name, sign, path = spec.partition("=")
    if not sign or not name:
        raise CheckError(f"--text {spec!r} is not name=FILE, e.g. tg=valid.jsonl")
    return name, Path(path)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise CheckError(f"--threads {text!r} is not a list of numbers, e.g. 1,2")
    return found


if __name__ == "__main__":
    sys.exit(main())
