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
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from soroq.bench.kernels.ggml import TYPES
from soroq.bench.peers.llama import FTYPES, Llama
from soroq.bench.peers.parity import DEMO, write_float_gguf
from soroq.bench.peers.players import Contender, open_llama, open_player
from soroq.bench.peers.race import (
    Lengths,
    Row,
    markdown,
    perplexity,
    race,
    speed_entries,
    spread,
    text_ids,
)
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_records, read_records
from soroq.io.demo_model import DEMO_MODELS
from soroq.kernels.cpu import ceilings
from soroq.loading import load_tokenizer

BENCH = "cpu-decode"
# name: type of the linears, type of the embedding and head ("": llama.cpp's own choice)
FILES = {
    "Q4_0 e8": ("Q4_0", "Q8_0"),
    "Q4_0 e4": ("Q4_0", "Q4_0"),
    "Q4_K_M": ("Q4_K_M", ""),
    "Q8_0": ("Q8_0", "Q8_0"),
    "Q4_0_R8 e8": ("Q4_0_R8", "Q8_0"),
    "Q4_0_R8 e4": ("Q4_0_R8", "Q4_0"),
}
DEFAULT_FILES = {"llama.cpp": ("Q4_0 e8", "Q4_0 e4"), "ik_llama.cpp": ("Q4_0_R8 e8", "Q4_0_R8 e4")}


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
        kind = TYPES[embedding] if embedding else None
        llama.quantize(floats, found[name], FTYPES[linears], kind)
    return found


def llama_contenders(
    flavour: str, names: Sequence[str], folder: Path, threads: int
) -> list[Contender]:
    """Return llama.cpp's contenders, files made where they aren't there yet.

    Raises OSError when the flavour is not here.
    """
    llama = open_llama(flavour, threads)
    print(f"{flavour}: {' '.join(llama.ggml.features)}", flush=True)
    return [
        Contender(f"{flavour} {name}", flavour, flavour, str(path))
        for name, path in make_files(llama, names, folder).items()
    ]


def collect(
    options: argparse.Namespace, lengths: Lengths, threads: int, folder: Path, stack: ExitStack
) -> tuple[list[Row], list[str]]:
    """Return everybody who can run here, loaded, and a line about each who can't."""
    found = [Contender(f"soroq {p.name}", "soroq", "soroq", str(p)) for p in options.soroq]
    absent: list[str] = []
    for flavour, default in DEFAULT_FILES.items():
        try:
            found += llama_contenders(flavour, options.files or default, folder, threads)
        except OSError as error:
            absent.append(str(error))
    rows = []
    for contender in found:
        player = open_player(contender, threads=threads, window=max(512, lengths.needed))
        stack.callback(player.close)
        rows.append(Row(contender, player))
    return rows, absent


def records(
    rows: Sequence[Row],
    lengths: Lengths,
    threads: int,
    texts: Mapping[str, EvalSet],
    stepwise: bool = False,
) -> list[dict[str, Any]]:
    """Return two records a row, of prefill and of decode; perplexities stand in both."""
    read_gb_s = ceilings.read_gb_s(threads)
    found = []
    for row in rows:
        logits = partial(row.player.logits, stepwise=stepwise)
        common = {
            "threads": threads,
            "perplexity": {name: perplexity(logits, windows) for name, windows in texts.items()},
            "stepwise": stepwise,
            "sets_sha256": {name: windows.sha256 for name, windows in texts.items()},
        }
        found += [entry | common for entry in speed_entries(row, lengths, read_gb_s)]
    return found


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: tokens a second, and the size and perplexity beside them."""
    texts = list(entries[0]["perplexity"]) if entries else []
    head = ["", "threads", "MB", "prefill", "decode", "of the floor", *(f"ppl {t}" for t in texts)]
    rows = []
    for entry in entries:
        if entry["phase"] != "decode":
            continue
        same = ("kernel", "threads")
        prefill = next(
            e for e in entries if e["phase"] == "prefill" and all(e[k] == entry[k] for k in same)
        )
        rows.append(
            [
                entry["kernel"],
                str(entry["threads"]),
                f"{entry['bytes'] / 1e6:.0f}",
                spread(prefill, 0),
                spread(entry, 1),
                f"{entry['fraction']:.2f}",
                *(f"{entry['perplexity'][text]:.2f}" for text in texts),
            ]
        )
    return markdown(head, rows)


def newest_run() -> list[dict[str, Any]]:
    """Return the entries that the last run recorded."""
    recorded = read_records(BENCH)
    last = max((entry["time"] for entry in recorded), default="")
    return [entry for entry in recorded if entry["time"] == last]


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
    lengths = Lengths(options.prefill, options.decode, options.depth)
    ids = text_ids(texts, lengths.needed)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for threads in (int(part) for part in options.threads.split(",")):
            with ExitStack() as stack:
                rows, absent = collect(options, lengths, threads, folder, stack)
                for line in absent:
                    print(line, flush=True)
                race(rows, ids, lengths, options.repeats)
                entries += records(rows, lengths, threads, texts, options.stepwise)
    print(table(entries), end="")
    if not options.no_record:
        append_records(BENCH, entries)


if __name__ == "__main__":
    main()
