"""quantize_with: another quantizer on soroq's calibration, its result as a soroq checkpoint.

    quantize_with("gptqmodel", "gemma3-270m", "out", recipe=recipe, calibration=calibration)

Everything is under `<out>.partial` until it is whole: the calibration file, the job, the tool's own
checkpoint (`result`), its output (`peer.log`). Tools can't go on where they were stopped:
`--resume` runs a stopped one anew, and takes a finished one's result as it is.
"""

import dataclasses
import json
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import soroq
from soroq.backends.collect import collect
from soroq.backends.process import find_python, run_tool
from soroq.backends.tools import Job, get_tool, translate
from soroq.calib.dataset import CalibrationSet
from soroq.core.errors import BackendError
from soroq.core.recipe import Recipe
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.writer import atomic_write, require_disk_space, require_empty_dir
from soroq.manifest import MANIFEST, RUN, Manifest
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout
from soroq.pipeline.card import model_card
from soroq.pipeline.plan import make_plan, refuse_long_windows
from soroq.pipeline.run import checked_calibration, library_versions, refuse_quantized
from soroq.pipeline.stage import Stage

PEER = Path(__file__).absolute().with_name("peer.py")  # runs in another Python: never imported


def plan_job(tool: str, source: str | Path, recipe: Recipe) -> Job:
    """Return what a tool would be given. Raises SoroqError for what can't be run."""
    checkpoint, layout = _open(source)
    make_plan(checkpoint, layout, recipe)
    return translate(tool, recipe, _linears(layout))


def quantize_with(
    tool: str,
    source: str | Path,
    out: str | Path,
    *,
    recipe: Recipe,
    calibration: CalibrationSet | None,
    python: Path | None = None,
    resume: bool = False,
) -> Manifest:
    """Quantize `source` with another tool into the new directory `out`; return its manifest.

    python: of the environment that has the tool. Raises SchemeError for a recipe that the tool
    can't run, BackendError when it isn't installed, fails or leaves something else.
    """
    started = time.monotonic()
    out = Path(out)
    checkpoint, layout = _open(source)
    plan = make_plan(checkpoint, layout, recipe)
    job = translate(tool, recipe, _linears(layout))
    interpreter = find_python(get_tool(tool), python)
    require_empty_dir(out)
    # the tool saves what it leaves alone in float32
    require_disk_space(out, plan.output_bytes + 2 * checkpoint.total_bytes)
    if job.calibrated:
        refuse_long_windows(checkpoint.config, recipe.seq_len)
        calibration = checked_calibration(calibration, recipe, layout)
    else:
        calibration = None
    source_sha256 = checkpoint.sha256()
    stage = Stage(out)
    asked = {
        "source_sha256": source_sha256,
        "backend": asdict(job),
        "recipe": recipe.to_json(),
        "calibration": calibration.sha256 if calibration else None,
    }
    stage.open(asked, resume=resume)
    result = stage.path / "result"
    finished = (result / "peer.json").is_file()
    if not finished:
        _run(job, interpreter, stage.path, checkpoint.path, recipe, calibration)
    facts = _facts(result)
    building = stage.path / "out"
    shutil.rmtree(building, ignore_errors=True)  # a killed run's
    building.mkdir()
    version = facts["versions"].get(get_tool(tool).requirements[0].partition("==")[0], "unknown")
    ran = _as_run(recipe, job, version)
    layers = collect(result, building, checkpoint, layout, ran, folded=job.what == "AWQ")
    checkpoint.copy_side_files(building)
    manifest = Manifest(
        soroq_version=soroq.__version__,
        source=checkpoint.path.name,
        source_sha256=source_sha256,
        recipe=asdict(ran),
        calibration=calibration.manifest if calibration else None,
        versions=library_versions(),
        layers=layers,
        folds=[],
        source_bytes=checkpoint.total_bytes,
        output_bytes=sum(file.stat().st_size for file in building.glob("*.safetensors")),
        backend={
            "tool": tool,
            "version": version,
            "method": job.what,
            "versions": facts["versions"],
            "arguments": job.arguments,
            "calibration_sha256": calibration.sha256 if calibration else None,
        },
    )
    run = {
        "seconds": time.monotonic() - started,
        "backend_seconds": facts["seconds"],
        "peak_rss_bytes": facts["peak_rss_bytes"],
        "device": facts["device"],
        "resumed": finished,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    atomic_write(building / MANIFEST, manifest.to_json().encode())
    atomic_write(building / "README.md", model_card(manifest).encode())
    atomic_write(building / RUN, json.dumps(run, indent=2).encode())
    if out.exists():
        out.rmdir()  # require_empty_dir saw to it that it is empty
    os.replace(building, out)
    stage.close()
    return manifest


def _open(source: str | Path) -> tuple[Checkpoint, DecoderLayout]:
    """Return a source that other tools can open too. Raises BackendError for those they can't."""
    checkpoint = open_checkpoint(source)
    refuse_quantized(checkpoint)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    if not checkpoint.path.is_dir():
        raise BackendError(
            f"{checkpoint.path}: other tools get a directory with config.json, not a .gguf"
        )
    if layout.prefix != "model.":
        raise BackendError(
            f"{checkpoint.path}: a multimodal model; other tools are run on text models here"
        )
    return checkpoint, layout


def _linears(layout: DecoderLayout) -> list[str]:
    paths = layout.architecture.linears
    return [f"{layout.block(index)}.{path}" for index in range(layout.n_blocks) for path in paths]


def _run(
    job: Job,
    interpreter: str,
    folder: Path,
    base: Path,
    recipe: Recipe,
    calibration: CalibrationSet | None,
) -> None:
    """Run the tool; what a stopped run left of its result is deleted first."""
    result, text = folder / "result", folder / "calibration.safetensors"
    shutil.rmtree(result, ignore_errors=True)
    if calibration is not None:
        calibration.save(text)
    order: dict[str, Any] = {
        "tool": job.tool,
        "base": str(base.absolute()),
        "calibration": str(text.absolute()) if calibration is not None else None,
        "result": str(result.absolute()),
        "arguments": job.arguments,
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
    }
    file = folder / "peer-job.json"
    atomic_write(file, json.dumps(order, indent=2).encode())
    command = [interpreter, str(PEER), str(file.absolute())]
    run_tool(command, job.tool, folder, torch.get_num_threads())


def _facts(result: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((result / "peer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(
            f"the tool ended without a result (no readable {result / 'peer.json'}); see "
            f"{result.parent / 'peer.log'}"
        ) from error
    return facts


def _as_run(recipe: Recipe, job: Job, version: str) -> Recipe:
    """Return the recipe with what really ran in the place of soroq's own method."""
    scheme = dataclasses.replace(
        recipe.scheme,
        summary=f"{job.what} of {job.tool} {version}, run by soroq",
        method=f"{job.tool}-{job.what}",
        folds=(),
        corrected=False,
        distilled=False,
        reordered=False,
    )
    return dataclasses.replace(recipe, scheme=scheme)
