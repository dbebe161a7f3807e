"""quantize: stream a checkpoint block by block through calibration, folds and solvers.

    from soroq.pipeline.run import quantize
    quantize("gemma3-270m", "out", recipe=Recipe(get_scheme("int4")), calibration=load_builtin(...))

Memory holds one block, one Hessian and one batch of activations. The output appears under its name
only when it is whole; until then `<out>.partial` holds the finished blocks (see `stage`).
"""

import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import soroq
from soroq.calib.dataset import CalibrationSet
from soroq.core.errors import CalibrationError, CheckpointError
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.formats.compressed_tensors import encode
from soroq.io.writer import atomic_write, require_disk_space, require_empty_dir
from soroq.manifest import Manifest
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout
from soroq.models.runner import DecoderRunner
from soroq.pipeline.activations import ActivationFile, write_activations
from soroq.pipeline.block import BlockJob, BlockResult, advance, changed_norms, quantize_block_
from soroq.pipeline.distill import distill
from soroq.pipeline.embed import quantize_embedding
from soroq.pipeline.finish import write_output
from soroq.pipeline.order import ReorderedCheckpoint, reordered
from soroq.pipeline.plan import make_plan
from soroq.pipeline.stage import Stage

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Progress:
    """One step of a run: `done` of `total` units ("block" or "distill"), and what is being done."""

    done: int
    total: int
    module: str
    unit: str = "block"


Listener = Callable[[Progress], None]
# hidden states behind the quantized blocks, and behind the original ones if they are wanted
Streams = tuple[ActivationFile | None, ActivationFile | None]


def quantize(
    source: str | Path,
    out: str | Path,
    *,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    resume: bool = False,
    listen: Listener = lambda progress: None,
) -> Manifest:
    """Quantize `source` by `recipe` into the new directory `out`; return its manifest.

    `calibration` may be None for schemes that need none. `resume` goes on with an unfinished run of
    the same job. Raises SoroqError subclasses for whatever the user can mend.
    """
    started = time.monotonic()
    out = Path(out)
    checkpoint = open_checkpoint(source)
    refuse_quantized(checkpoint)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    plan = make_plan(checkpoint, layout, recipe)
    require_empty_dir(out)
    require_disk_space(out, plan.output_bytes * 2 + plan.staging_bytes)
    if plan.calibrated:
        calibration = checked_calibration(calibration, recipe, layout)
    else:
        calibration = None
    _check_outside_blocks(checkpoint, layout)
    stage = Stage(out)
    source_sha256 = checkpoint.sha256()
    job = {
        "source_sha256": source_sha256,
        "recipe": recipe.to_json(),
        "calibration": calibration.sha256 if calibration else None,
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }
    stage.open(job, resume=resume)
    checkpoint = reordered(checkpoint, layout, recipe)
    torch.manual_seed(recipe.seed)
    runner = DecoderRunner(layout)
    done = stage.blocks_done()
    streams = _first_streams(stage, done, runner, checkpoint, calibration, plan.referenced)
    weight = _token_weight(calibration, recipe)
    for index in range(done, layout.n_blocks):
        streams = _run_block(stage, index, runner, checkpoint, recipe, streams, weight, listen)
    if recipe.embed is not None and not stage.embedding_file.exists():
        _quantize_embedding(stage, runner, checkpoint, recipe, recipe.embed, streams[0], listen)
    if recipe.scheme.distilled and calibration is not None and stage.distilled() is None:
        _distill(stage, runner, checkpoint, recipe, calibration.ids, listen)
    listen(Progress(layout.n_blocks, layout.n_blocks, "writing"))
    manifest = Manifest(
        soroq_version=soroq.__version__,
        source=Path(checkpoint.path).name,
        source_sha256=source_sha256,
        recipe=asdict(recipe),
        calibration=calibration.manifest if calibration else None,
        versions=library_versions(),
        layers=[],
        folds=[],
        source_bytes=checkpoint.total_bytes,
        output_bytes=plan.output_bytes,
        reordered=(
            checkpoint.order.sha256() if isinstance(checkpoint, ReorderedCheckpoint) else None
        ),
    )
    run = {
        "seconds": time.monotonic() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "resumed_at_block": done,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    return write_output(out, stage, checkpoint, layout, recipe, manifest, run)


def needs_outputs(recipe: Recipe) -> bool:
    """Whether the hidden states behind the last block are wanted: they calibrate the head."""
    return recipe.embed is not None


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint that is quantized already."""
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            f"{checkpoint.path} is quantized already (config.json has quantization_config); start "
            "from the original weights"
        )


def _check_outside_blocks(checkpoint: Checkpoint, layout: DecoderLayout) -> None:
    """Raise NumericsError for NaN or infinity outside the blocks, which is read at the end only."""
    blocks = tuple(layout.block(index) + "." for index in range(layout.n_blocks))
    for name in checkpoint.names():
        if not name.startswith(blocks):
            checkpoint.load(name)


def _run_block(
    stage: Stage,
    index: int,
    runner: DecoderRunner,
    checkpoint: Checkpoint,
    recipe: Recipe,
    streams: Streams,
    weight: torch.Tensor | None,
    listen: Listener,
) -> Streams:
    """Quantize one block, commit it, and return the hidden states in front of the next."""
    layout = runner.layout
    prefix = layout.block(index) + "."
    original = {
        name.removeprefix(prefix): checkpoint.load(name)
        for name in checkpoint.names()
        if name.startswith(prefix)
    }
    activations, reference = streams
    batch = max(1, BATCH_TOKENS // activations.seq_len) if activations else 1
    norm_dtype = original[layout.architecture.edges[0].source + ".weight"].dtype
    last = index + 1 == layout.n_blocks
    reference_output = None
    if not last or recipe.scheme.distilled:
        reference_output = stage.activation_file(index + 1, reference=True)
    job = BlockJob(
        runner,
        index,
        recipe,
        activations,
        reference,
        weight,
        batch,
        norm_dtype,
        stage.original_file,
        reference_output,
    )
    block = runner.build_block(index, original)

    def say(module: str) -> None:
        listen(Progress(index, layout.n_blocks, f"{layout.block(index)}.{module}"))

    say("start")
    result = quantize_block_(job, block, say)
    following: ActivationFile | None = None
    if activations is not None and (not last or needs_outputs(recipe)):
        say("forward")
        path = stage.activation_file(index + 1)
        following = write_activations(path, advance(job, block, activations))
    tensors: dict[str, torch.Tensor] = {}
    for linear, quantized in result.quantized.items():
        tensors |= encode(prefix + linear, quantized)
    for linear, scale in result.input_scales.items():
        tensors[f"{prefix}{linear}.input_scale"] = scale
    for name, tensor in changed_norms(block, original, set(result.quantized)).items():
        tensors[prefix + name] = tensor
    stage.commit_block(index, tensors, _report(result))
    return following, result.reference_output


def _quantize_embedding(
    stage: Stage,
    runner: DecoderRunner,
    checkpoint: Checkpoint,
    recipe: Recipe,
    args: QuantArgs,
    outputs: ActivationFile | None,
    listen: Listener,
) -> None:
    from safetensors.torch import save

    layout = runner.layout
    quantized = quantize_embedding(
        checkpoint,
        runner,
        args,
        outputs,
        recipe.damp_ratio,
        lambda what: listen(Progress(layout.n_blocks, layout.n_blocks, f"embedding {what}")),
    )
    tensors = encode(layout.embedding.removesuffix(".weight"), quantized)
    atomic_write(stage.embedding_file, save({k: v.contiguous() for k, v in tensors.items()}))


def _distill(
    stage: Stage,
    runner: DecoderRunner,
    checkpoint: Checkpoint,
    recipe: Recipe,
    ids: torch.Tensor,
    listen: Listener,
) -> None:
    path = stage.activation_file(runner.layout.n_blocks, reference=True)
    reference = ActivationFile(path, ids.shape[0], ids.shape[1], runner.hidden_size)

    def say(done: int, total: int, what: str) -> None:
        listen(Progress(done, total, what, "distill"))

    tensors, report = distill(stage, checkpoint, runner, recipe, ids, reference, say)
    stage.commit_distilled(tensors, asdict(report))


def _report(result: BlockResult) -> dict[str, Any]:
    return {
        "layers": [asdict(layer) for layer in result.layers],
        "folds": [asdict(fold) for fold in result.folds],
    }


def _first_streams(
    stage: Stage,
    done: int,
    runner: DecoderRunner,
    checkpoint: Checkpoint,
    calibration: CalibrationSet | None,
    referenced: bool,
) -> Streams:
    """Return the hidden states in front of block `done`: embedded now, or left by a former run."""
    finished = done >= runner.layout.n_blocks
    if calibration is None or (finished and not stage.activation_file(done).exists()):
        return None, None
    n, seq_len = calibration.ids.shape

    def embedded() -> Iterator[torch.Tensor]:
        for ids in calibration.ids.split(8):
            yield runner.embed(ids, checkpoint.load_rows(runner.layout.embedding, ids.flatten()))

    if done == 0:
        write_activations(stage.activation_file(0), embedded())
    shape = (n, seq_len, runner.hidden_size)
    activations = ActivationFile(stage.activation_file(done), *shape)
    if not referenced or finished:
        return activations, None
    return activations, ActivationFile(stage.activation_file(done, reference=True), *shape)


def checked_calibration(
    calibration: CalibrationSet | None, recipe: Recipe, layout: DecoderLayout
) -> CalibrationSet:
    """Return the set. Raises CalibrationError when there is none or it is of another tokenizer."""
    if calibration is None:
        raise CalibrationError(f"{recipe.scheme.name} needs calibration text; give --calib")
    largest = int(calibration.ids.max())
    vocabulary = int(layout.text_config.get("vocab_size", largest + 1))
    if largest >= vocabulary:
        raise CalibrationError(
            f"calibration has token id {largest}, the model's vocabulary has {vocabulary}: they "
            "were made with another tokenizer; build the set again with this model's"
        )
    return calibration


def _token_weight(calibration: CalibrationSet | None, recipe: Recipe) -> torch.Tensor | None:
    if calibration is None or recipe.bos_weight == 1.0:
        return None
    weight = torch.ones(calibration.ids.shape)
    weight[:, 0] = recipe.bos_weight
    return weight


def library_versions() -> dict[str, str]:
    """Return what decides the bytes beside the recipe."""
    import transformers

    return {
        "soroq": soroq.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
