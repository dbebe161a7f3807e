"""Peak memory of `soroq quantize` on a model far larger than it may use, with random weights.

    python -m soroq.bench.memory --work DIR                       # all of Gemma 3 4B's 34 blocks
    python -m soroq.bench.memory --work DIR --stop-after 1        # the first block alone
    python -m soroq.bench.memory --work DIR --blocks 2            # a model of two such blocks
    python -m soroq.bench.memory --work DIR --scheme int4-rtn --distill --samples 2
    python -m soroq.bench.memory --work DIR --scheme int4-rtn --only-distill --stop-after-steps 4
    python -m soroq.bench.memory --work DIR --shape k21504 --samples 16

The weights have Gemma 3 4B's text shape (about 8 GB in bfloat16) and no meaning: only memory and
time are measured. `k21504` is one narrow block around a down projection with as many inputs as the
27B's. The run is a process of its own; its peak resident set, file pages included, goes to
bench/records. Blocks are alike, so the peak of the first is that of all.

`--only-distill` rounds the blocks without calibration and puts random numbers where the original
model's last hidden states would be: distillation needs no more of a calibrated run, which takes
hours here. Token ids are those of the built-in calibration text where the vocabulary holds them.
"""

import argparse
import multiprocessing
import queue
import resource
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soroq.bench.record import append_record

if TYPE_CHECKING:  # loaded by the measured process alone
    from soroq.calib.dataset import CalibrationSet
    from soroq.core.recipe import Recipe
    from soroq.pipeline.run import Listener

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
    """Ends a run after the wanted blocks or steps."""


def measure(options: argparse.Namespace, results: Any) -> None:
    """Quantize, and put what was measured on `results`."""
    from soroq.core.recipe import Recipe
    from soroq.core.schemes import get_scheme
    from soroq.pipeline.run import Progress, quantize

    scheme = get_scheme(options.scheme)
    if options.distill:
        scheme = replace(scheme, distilled=True)
    recipe = Recipe(scheme, n_samples=options.samples, seq_len=options.seq_len)
    calibration = _calibration(recipe, options.vocabulary)
    peaks: dict[str, int] = {}
    said: list[str] = []
    started = time.monotonic()

    def listen(step: Progress) -> None:
        peaks[f"{step.unit} {step.done}"] = _peak()
        print(f"{time.monotonic() - started:7.0f} s  {_peak() / 1e9:.2f} GB  {step}", flush=True)
        if step.unit == "distill":
            said.append(step.module)
        wanted = options.stop_after_steps if step.unit == "distill" else options.stop_after
        if step.done == wanted > 0:
            raise _Enough

    out = options.work / "out"
    if not options.resume:
        shutil.rmtree(out.with_name("out.partial"), ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
    try:
        if options.only_distill:
            _distill_rounded(options, out, recipe, calibration, listen)
        else:
            quantize(
                options.work / "base",
                out,
                recipe=recipe,
                resume=options.resume,
                calibration=calibration,
                listen=listen,
            )
    except _Enough:
        pass
    results.put(
        {
            "calibration": calibration.manifest["name"],
            "peak_rss_bytes": _peak(),
            "seconds": time.monotonic() - started,
            "peaks": peaks,
            "said": said,
        }
    )


def _calibration(recipe: "Recipe", vocabulary: int) -> "CalibrationSet":
    """Return windows of built-in text, or of random ids where the vocabulary is smaller."""
    import torch

    from soroq.calib.dataset import CalibrationSet, ids_sha256
    from soroq.calib.sample import build_calibration
    from soroq.calib.sources import builtin_documents
    from soroq.loading import load_tokenizer

    n, seq_len = recipe.n_samples, recipe.seq_len
    tokenizer = load_tokenizer("gemma3-270m")  # that of all Gemma 3
    text = build_calibration(
        {language: list(builtin_documents(language, "calib")) for language, _ in recipe.mix},
        lambda document: tokenizer.encode(document.plain, add_special_tokens=False),
        bos=tokenizer.bos_token_id,
        n_samples=n,
        seq_len=seq_len,
        mix=dict(recipe.mix),
        seed=recipe.seed,
        name="builtin",
    )
    if int(text.ids.max()) < vocabulary:
        return text
    generator = torch.Generator().manual_seed(recipe.seed)
    ids = torch.randint(4, vocabulary, (n, seq_len), generator=generator)
    ids[:, 0] = 2
    facts = {"name": "random", "n": n, "seq_len": seq_len, "sha256": ids_sha256(ids)}
    return CalibrationSet(ids, ("tg",) * n, facts)


def _distill_rounded(
    options: argparse.Namespace,
    out: Path,
    recipe: "Recipe",
    calibration: "CalibrationSet",
    listen: "Listener",
) -> None:
    """Round all blocks, then distil them towards random hidden states."""
    import torch

    from soroq.io.checkpoint import open_checkpoint
    from soroq.models.registry import find_layout
    from soroq.models.runner import DecoderRunner
    from soroq.pipeline.activations import write_activations
    from soroq.pipeline.distill import distill
    from soroq.pipeline.run import Progress, quantize
    from soroq.pipeline.stage import Stage

    def until_written(step: Progress) -> None:
        listen(step)
        if step.module == "writing":
            raise _Enough

    base = options.work / "base"
    plain = type(recipe)(replace(recipe.scheme, distilled=False))  # whatever the windows are
    try:
        quantize(
            base,
            out,
            recipe=plain,
            calibration=None,
            resume=options.resume,
            listen=until_written,
        )
    except _Enough:
        pass
    stage, checkpoint = Stage(out), open_checkpoint(base)
    runner = DecoderRunner(find_layout(checkpoint.config, set(checkpoint.names())))
    generator = torch.Generator().manual_seed(0)
    n, seq_len = calibration.ids.shape
    path = stage.activation_file(runner.layout.n_blocks, reference=True)
    hidden = (torch.randn(1, seq_len, runner.hidden_size, generator=generator) for _ in range(n))
    reference = write_activations(path, hidden)

    def say(done: int, total: int, what: str) -> None:
        listen(Progress(done, total, what, "distill"))

    distill(stage, checkpoint, runner, recipe, calibration.ids, reference, say)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_model(base: Path, shape: dict[str, Any]) -> None:
    """Write a model of random weights, one tensor in memory at a time."""
    import torch

    from soroq.io.safetensors_file import TensorInfo
    from soroq.io.writer import ShardedWriter
    from soroq.models.runner import build_skeleton
    from soroq.models.tiny import tiny_config

    config = tiny_config(**shape)
    generator = torch.Generator().manual_seed(0)

    def draw(size: torch.Size) -> torch.Tensor:
        values = torch.empty(size, dtype=torch.bfloat16)
        return values.normal_(0, size[-1] ** -0.5, generator=generator)

    base.mkdir(parents=True, exist_ok=True)
    writer = ShardedWriter(base, max_shard_bytes=1 << 30)
    for name, parameter in build_skeleton(config).named_parameters():
        if not name.startswith("lm_head."):  # tied to the embedding
            info = TensorInfo(tuple(parameter.shape), torch.bfloat16, 2 * parameter.numel())
            writer.add_lazy(name, info, partial(draw, parameter.shape))
    writer.finish(config, {})


def main() -> None:
    """Parse the command line, run, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="4b")
    parser.add_argument("--blocks", type=int, default=0, help="of the model; 0: as the shape has")
    parser.add_argument("--scheme", default="int4")
    parser.add_argument("--distill", action="store_true")
    parser.add_argument("--only-distill", action="store_true")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--stop-after", type=int, default=-1, help="blocks")
    parser.add_argument("--stop-after-steps", type=int, default=-1, help="of distillation")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    shape, name = SHAPES[options.shape], options.shape
    if options.blocks:
        shape = {**shape, "num_hidden_layers": options.blocks}
        name = f"{name}, {options.blocks} blocks"
    options.vocabulary = shape["vocab_size"]
    context = multiprocessing.get_context("spawn")
    options.work = options.work / name.replace(", ", "-").replace(" ", "-")
    base = options.work / "base"
    if not (base / "config.json").is_file():
        writer = context.Process(target=_write_model, args=(base, shape))
        writer.start()
        writer.join()
    results = context.Queue()
    run = context.Process(target=measure, args=(options, results))
    run.start()
    while True:
        try:
            facts = results.get(timeout=5)
            break
        except queue.Empty:
            if not run.is_alive():
                raise SystemExit("the measured run failed") from None
    run.join()
    source_bytes = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    append_record(
        BENCH,
        {
            "model": f"random weights, shape {name}",
            "source_bytes": source_bytes,
            "scheme": options.scheme,
            "distill": options.distill or options.only_distill,
            "only_distill": options.only_distill,
            "resumed": options.resume,
            "samples": options.samples,
            "seq_len": options.seq_len,
            "stopped_after_block": options.stop_after,
            "stopped_after_step": options.stop_after_steps,
        }
        | facts,
    )
    print(f"peak {facts['peak_rss_bytes'] / 1e9:.2f} GB, {facts['seconds']:.0f} s")


if __name__ == "__main__":
    main()
