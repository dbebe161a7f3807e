"""Peak memory of `soroq train corpus` over growing input.

    python -m soroq.bench.corpus_memory --megabytes 1 4 16 --record

The text is made of the built-in Tajik passages, their sentences in a new order in every document,
so that no two are near-duplicates. Each build is a process of its own.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from soroq.bench.record import append_records

BENCH = "corpus-memory"
SENTENCES = 12  # of a document


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Yield documents of so many megabytes of UTF-8 in all."""
    from soroq.calib.sources import builtin_documents

    found = [s for d in builtin_documents("tg", "calib") for s in re.split(r"(?<=[.!?]) ", d.plain)]
    sentences = sorted({s.strip() for s in found if len(s.split()) > 4})
    random_ = random.Random(seed)
    left = megabytes * 1e6
    while left > 0:
        text = " ".join(random_.sample(sentences, SENTENCES))
        left -= len(text.encode())
        yield text


def build_alone(source: Path, out: Path, model: str) -> dict[str, float]:
    """Build a corpus in this process; return its size, seconds and peak memory in bytes."""
    from soroq.loading import load_tokenizer
    from soroq.train.corpus.build import Request, build

    started = time.perf_counter()
    build(Request((("tg", source),), license="Apache-2.0"), out, load_tokenizer(model))
    card = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    parts = [split["tg"] for split in card["splits"].values() if "tg" in split]
    shards = [shard for part in parts for shard in part["shards"]]
    return {
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 4, 16])
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--alone", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        source, out = options.alone
        print(json.dumps(build_alone(source, out, options.model)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in options.megabytes:
            source = Path(folder) / f"{megabytes:g}.jsonl"
            with source.open("w", encoding="utf-8") as file:
                for text in documents(megabytes):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            command = [sys.executable, "-m", "soroq.bench.corpus_memory", "--model", options.model]
            command += ["--alone", str(source), str(Path(folder) / f"corpus-{megabytes:g}")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = {"megabytes": megabytes, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.record:
        append_records(BENCH, [{"bench": BENCH, **row} for row in rows])


if __name__ == "__main__":
    main()
