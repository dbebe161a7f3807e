"""Tokens a second of the demo model on a CPU: soroq beside llama.cpp, on the same tokens.

    python -m soroq.bench.peers.decode_cpu --soroq OUT --text tg=valid.jsonl --threads 1,2

llama.cpp's files are made here by its own quantizer, from a float32 GGUF of the demo model's
bfloat16 values: Q4_0 with an 8-bit ("e8") and with a 4-bit ("e4") embedding, which is the head too.
Prefill is one call with all tokens, for the last one's logits; decode is a call a token, for that
token's logits, behind `--depth` others. Everybody gets the same tokens whatever they would have
said, in turn, in one process. Perplexity is of whole windows or, with --stepwise, token by token:
the paths of prefill and of decoding. The floor of a token is the time that reading all weights
takes at the measured bandwidth. How to get llama.cpp: README.md here.
"""

import argparse
import importlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soroq import decoder
from soroq.bench.kernels.cpu_race import order, rest, summarize
from soroq.bench.kernels.ggml import TYPES, directory
from soroq.bench.peers.llama import FTYPES, Llama, LlamaModel
from soroq.bench.peers.parity import DEMO, write_float_gguf
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_records, read_records
from soroq.io.demo_model import DEMO_MODELS
from soroq.kernels.cpu import ceilings
from soroq.loading import load_tokenizer

BENCH = "cpu-decode"
# name: type of the linears, type of the embedding and head
FILES = {
    "Q4_0 e8": ("Q4_0", "Q8_0"),
    "Q4_0 e4": ("Q4_0", "Q4_0"),
    "Q8_0": ("Q8_0", "Q8_0"),
    "Q4_0_R8 e8": ("Q4_0_R8", "Q8_0"),
    "Q4_0_R8 e4": ("Q4_0_R8", "Q4_0"),
}
DEFAULT_FILES = {"llama.cpp": ("Q4_0 e8", "Q4_0 e4"), "ik_llama.cpp": ("Q4_0_R8 e8", "Q4_0_R8 e4")}


@dataclass(frozen=True)
class Speed:
    """Seconds of one prefill and of one run of decoding."""

    prefill_s: float
    decode_s: float


@dataclass
class Row:
    """One model in one program: `run` times it once; `logits` are of tokens that begin anew."""

    name: str
    peer: str
    nbytes: int
    run: Callable[[], Speed]
    logits: Callable[[Sequence[int]], torch.Tensor]
    speeds: list[Speed] = field(default_factory=list)


def run_soroq(decoder: Any, ids: Sequence[int], n_prefill: int, n_decode: int, depth: int) -> Speed:
    """Time soroq's decoder once; a step hands back the likeliest token, as generation has it."""
    tokens = torch.tensor(ids)
    decoder.rewind()
    begin = time.perf_counter()
    decoder.prefill(tokens[:n_prefill])
    prefill_s = time.perf_counter() - begin
    decoder.rewind()
    decoder.prefill(tokens[:depth])
    begin = time.perf_counter()
    for place in range(depth, depth + n_decode):
        decoder.best(tokens[place : place + 1])
    return Speed(prefill_s, time.perf_counter() - begin)


def run_llama(
    model: LlamaModel, ids: Sequence[int], n_prefill: int, n_decode: int, depth: int
) -> Speed:
    """Time llama.cpp once; a step leaves all logits behind."""
    model.clear()
    begin = time.perf_counter()
    model.evaluate(ids[:n_prefill])
    prefill_s = time.perf_counter() - begin
    model.clear()
    model.evaluate(ids[:depth])
    begin = time.perf_counter()
    for token in ids[depth : depth + n_decode]:
        model.evaluate([token])
    return Speed(prefill_s, time.perf_counter() - begin)


def soroq_logits(decoder: Any, ids: Sequence[int], stepwise: bool) -> torch.Tensor:
    """Return logits (n, vocabulary) of tokens that begin anew."""
    decoder.rewind()
    tokens = torch.tensor(ids)
    if not stepwise:
        return torch.as_tensor(decoder.prefill(tokens, all_logits=True))
    return torch.stack([decoder.prefill(token).flatten() for token in tokens.split(1)])


def llama_logits(model: LlamaModel, ids: Sequence[int], stepwise: bool) -> torch.Tensor:
    """Return logits (n, vocabulary) of tokens that begin anew."""
    model.clear()
    if not stepwise:
        return model.evaluate(ids, every=True)
    return torch.cat([model.evaluate([token]).clone() for token in ids])


def perplexity(logits: Callable[[Sequence[int]], torch.Tensor], windows: EvalSet) -> float:
    """Return exp of the nats a token, each window begun anew."""
    total = 0.0
    for row in windows.ids.tolist():
        rows = logits(row[:-1])
        for likely, target in zip(rows, row[1:], strict=True):
            total -= float(likely[target].double() - likely.double().logsumexp(0))
    return math.exp(total / windows.n_tokens)


def make_files(llama: Llama, names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return name → GGUF, made in `folder` where it isn't there yet."""
    floats = folder / "float32.gguf"
    found = {}
    for name in names:
        found[name] = folder / f"{name.replace(' ', '-')}.gguf"
        if found[name].is_file():
            continue
        if not floats.is_file():
            packed = folder / "package.gguf"
            package: Any = importlib.import_module(DEMO_MODELS[DEMO])
            package.assemble(packed)
            write_float_gguf(packed, floats)
            packed.unlink()
        linears, embedding = FILES[name]
        llama.quantize(floats, found[name], FTYPES[linears], TYPES[embedding])
    return found


def collect(
    options: argparse.Namespace, ids: Sequence[int], threads: int, folder: Path, stack: ExitStack
) -> tuple[list[Row], list[str]]:
    """Return everybody who can run here, loaded, and a line about each who can't."""
    given = (ids, options.prefill, options.decode, options.depth)
    window = max(512, options.prefill, options.depth + options.decode)
    rows: list[Row] = []
    absent: list[str] = []
    for path in options.soroq:
        decoder = _load_soroq(path, threads, window)
        run = partial(run_soroq, decoder, *given)
        logits = partial(soroq_logits, decoder, stepwise=options.stepwise)
        rows.append(Row(f"soroq {path.name}", "soroq", decoder.weight_bytes, run, logits))
    for flavour, default in DEFAULT_FILES.items():
        where = directory(flavour)
        if where is None:
            absent.append(f"{flavour}: not here, see README.md beside this file")
            continue
        llama = Llama(flavour, where, threads)
        print(f"{flavour}: {' '.join(llama.ggml.features)}", flush=True)
        for name, path in make_files(llama, options.files or default, folder).items():
            model = stack.enter_context(llama.open(path, window))
            speed = partial(run_llama, model, *given)
            logits = partial(llama_logits, model, stepwise=options.stepwise)
            rows.append(Row(f"{flavour} {name}", flavour, path.stat().st_size, speed, logits))
    return rows, absent


def _load_soroq(path: Path, threads: int, window: int) -> Any:
    from soroq import _cpu

    _cpu.set_num_threads(threads)  # of the one team that all decoders share
    return decoder.load(path, context=window)


def race(rows: Sequence[Row], repeats: int) -> None:
    """Run everybody once to warm up, then in turn."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        row.run()
    for turn in range(repeats):
        for name in order(list(by_name), turn):
            rest()
            by_name[name].speeds.append(by_name[name].run())


def records(
    rows: Sequence[Row], options: argparse.Namespace, threads: int, texts: Mapping[str, EvalSet]
) -> list[dict[str, Any]]:
    """Return two records a row, of prefill and of decode; perplexities stand in both."""
    read_gb_s = ceilings.read_gb_s(threads)
    found = []
    for row in rows:
        level = {name: perplexity(row.logits, windows) for name, windows in texts.items()}
        for phase, n_tokens in (("prefill", options.prefill), ("decode", options.decode)):
            samples = [n_tokens / getattr(speed, f"{phase}_s") for speed in row.speeds]
            summary = summarize(samples)
            entry = {
                "kernel": row.name,
                "peer": row.peer,
                "phase": phase,
                "n_tokens": n_tokens,
                "depth": options.depth if phase == "decode" else 0,
                "threads": threads,
                "unit": "tokens/s",
                "samples": [round(sample, 2) for sample in samples],
                "median": round(summary.median, 2),
                "p20": round(summary.p20, 2),
                "p80": round(summary.p80, 2),
                "bytes": row.nbytes,
                "read_gb_s": round(read_gb_s, 2),
                "perplexity": level,
                "stepwise": options.stepwise,
                "sets_sha256": {name: windows.sha256 for name, windows in texts.items()},
            }
            if phase == "decode":
                floor = read_gb_s * 1e9 / row.nbytes  # tokens a second
                entry |= {"floor": round(floor, 1), "fraction": round(summary.median / floor, 4)}
            found.append(entry)
    return found


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: tokens a second, and the size and perplexity beside them."""
    texts = list(entries[0]["perplexity"]) if entries else []
    head = ["", "threads", "MB", "prefill", "decode", "of the floor", *(f"ppl {t}" for t in texts)]
    lines = [_line(head), "| --- " * len(head) + "|"]
    for entry in entries:
        if entry["phase"] != "decode":
            continue
        same = ("kernel", "threads")
        prefill = next(
            e for e in entries if e["phase"] == "prefill" and all(e[k] == entry[k] for k in same)
        )
        lines.append(
            _line(
                [
                    entry["kernel"],
                    str(entry["threads"]),
                    f"{entry['bytes'] / 1e6:.0f}",
                    f"{prefill['median']:.0f} ({prefill['p20']:.0f}–{prefill['p80']:.0f})",
                    f"{entry['median']:.1f} ({entry['p20']:.1f}–{entry['p80']:.1f})",
                    f"{entry['fraction']:.2f}",
                    *(f"{entry['perplexity'][text]:.2f}" for text in texts),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def newest_run() -> list[dict[str, Any]]:
    """Return the entries that the last run recorded."""
    recorded = read_records(BENCH)
    last = max((entry["time"] for entry in recorded), default="")
    return [entry for entry in recorded if entry["time"] == last]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Parse the command line, race, print the table, append records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soroq", type=Path, action="append", default=[], help="a quantized model")
    parser.add_argument("--files", action="append", choices=list(FILES), help="for llama.cpp")
    parser.add_argument("--text", action="append", default=[], help="name=FILE")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--stepwise", action="store_true", help="perplexity token by token")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--depth", type=int, default=1, help="tokens before the decoded ones")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--work", type=Path, help="where GGUF files are kept")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--table", action="store_true", help="the newest run's; measures nothing")
    options = parser.parse_args()
    if options.table:
        print(table(newest_run()), end="")
        return
    tokenizer = load_tokenizer(DEMO)
    pairs = (pair.split("=", 1) for pair in options.text)
    texts = {
        name: make_set(name, read_passages(Path(path)), tokenizer, limit=options.windows)
        for name, path in pairs
    }
    n_ids = max(options.prefill, options.depth + options.decode)
    ids = _ids(texts, n_ids)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for threads in (int(part) for part in options.threads.split(",")):
            with ExitStack() as stack:
                rows, absent = collect(options, ids, threads, folder, stack)
                for line in absent:
                    print(line, flush=True)
                race(rows, options.repeats)
                entries += records(rows, options, threads, texts)
    print(table(entries), end="")
    if not options.no_record:
        append_records(BENCH, entries)


def _ids(texts: Mapping[str, EvalSet], n: int) -> list[int]:
    """Return n token ids: running text if there is one."""
    found = [int(token) for windows in texts.values() for token in windows.ids.flatten()]
    random = torch.Generator().manual_seed(0)
    found += torch.randint(1000, 200_000, (n,), generator=random).tolist()
    return [2, *found[1:n]]


if __name__ == "__main__":
    main()
