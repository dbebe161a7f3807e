"""Peak memory of `soroq quantize` on a model far larger than it may use, with random weights.

    python -m soroq.bench.memory --work DIR                       # all of Gemma 3 4B's 34 blocks
    python -m soroq.bench.memory --work DIR --stop-after 1        # the first block alone
    python -m soroq.bench.memory --work DIR --scheme int4-rtn --distill --samples 2
    python -m soroq.bench.memory --work DIR --shape k21504 --samples 16

The weights have Gemma 3 4B's text shape (about 8 GB in bfloat16) and no meaning: only memory and
time are measured. `k21504` is one narrow block around a down projection with as many inputs as the
27B's. The run is a process of its own; its peak resident set, file pages included, goes to
bench/records. Blocks are alike, so the peak of the first is that of all.
"""

import argparse
import multiprocessing
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from soroq.bench.record import append_record

BENCH = "quantize-memory"
SHAPES: dict[str, dict[str, Any]] = {
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "k21504": {
        "hidden_size": 256,
        "intermediate_size": 21504,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 8192,
        "max_position_embeddings": 131072,
    },
}


class _Enough(Exception):
    """Ends a run after the wanted blocks."""


def measure(options: argparse.Namespace, results: Any) -> None:
    """Quantize, and put what was measured on `results`."""
    import torch

    from soroq.calib.dataset import CalibrationSet, ids_sha256
    from soroq.core.recipe import Recipe
    from soroq.core.schemes import get_scheme
    from soroq.pipeline.run import Progress, quantize

    generator = torch.Generator().manual_seed(0)
    shape = (options.samples, options.seq_len)
    ids = torch.randint(4, options.vocabulary, shape, generator=generator)
    ids[:, 0] = 2
    facts = {"name": "random", "n": shape[0], "seq_len": shape[1], "sha256": ids_sha256(ids)}
    scheme = get_scheme(options.scheme)
    if options.distill:
        scheme = replace(scheme, distilled=True)
    recipe = Recipe(scheme, n_samples=shape[0], seq_len=shape[1])
    peaks: dict[str, int] = {}
    started = time.monotonic()

    def listen(step: Progress) -> None:
        peaks[f"{step.unit} {step.done}"] = _peak()
        print(f"{time.monotonic() - started:7.0f} s  {_peak() / 1e9:.2f} GB  {step}", flush=True)
        if step.unit == "block" and step.done == options.stop_after:
            raise _Enough

    out = options.work / "out"
    if not options.resume:
        shutil.rmtree(out.with_name("out.partial"), ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
    try:
        quantize(
            options.work / "base",
            out,
            recipe=recipe,
            resume=options.resume,
            calibration=CalibrationSet(ids, ("tg",) * shape[0], facts),
            listen=listen,
        )
    except _Enough:
        pass
    results.put({"peak_rss_bytes": _peak(), "seconds": time.monotonic() - started, "peaks": peaks})


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_model(base: Path, shape: dict[str, Any]) -> None:
    from soroq.models.tiny import write_tiny_model

    write_tiny_model(base, shards=8, **shape)


def main() -> None:
    """Parse the command line, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="4b")
    parser.add_argument("--scheme", default="int4")
    parser.add_argument("--distill", action="store_true")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--stop-after", type=int, default=-1)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    options.vocabulary = shape["vocab_size"]
    context = multiprocessing.get_context("spawn")
    options.work = options.work / options.shape
    base = options.work / "base"
    if not (base / "config.json").is_file():
        writer = context.Process(target=_write_model, args=(base, shape))
        writer.start()
        writer.join()
    results = context.Queue()
    run = context.Process(target=measure, args=(options, results))
    run.start()
    facts = results.get()
    run.join()
    source_bytes = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    append_record(
        BENCH,
        {
            "model": f"random weights, shape {options.shape}",
            "source_bytes": source_bytes,
            "scheme": options.scheme,
            "distill": options.distill,
            "resumed": options.resume,
            "samples": options.samples,
            "seq_len": options.seq_len,
            "stopped_after_block": options.stop_after,
        }
        | facts,
    )
    print(f"peak {facts['peak_rss_bytes'] / 1e9:.2f} GB, {facts['seconds']:.0f} s")


if __name__ == "__main__":
    main()
