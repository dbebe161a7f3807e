"""A run's state on disk: whole or not there, and enough to go on bit for bit.

    checkpoints/step-00000100/   learned.safetensors (what is trained), optimizer.pt, state.json

A checkpoint is written under another name, flushed and renamed; older ones are deleted only then.
So a kill or a full disk leaves the one before.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from soroq.core.errors import CheckpointError, OutputError
from soroq.io.safetensors_file import fsync_directory
from soroq.io.writer import atomic_save, atomic_write, make_folder

FOLDER = "checkpoints"


def save_checkpoint(
    run: Path,
    step: int,
    learned: Mapping[str, torch.Tensor],
    optimizer: Any,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write what a run is at `step`, then delete all but the last `keep`; return its folder.

    Raises OutputError where it can't be written; the checkpoint before it stays.
    """
    root = run / FOLDER
    make_folder(root)
    final = root / f"step-{step:08d}"
    building = root / f".{final.name}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    make_folder(building)
    try:
        tensors = {name: tensor.detach().contiguous() for name, tensor in learned.items()}
        save_file(tensors, building / "learned.safetensors")
        fsync_file(building / "learned.safetensors")
        atomic_save(building / "optimizer.pt", lambda file: torch.save(optimizer, file))
        atomic_write(building / "state.json", json.dumps(state, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(building, final)
        fsync_directory(root)
    except (OSError, RuntimeError, SafetensorError, OutputError) as error:
        shutil.rmtree(building, ignore_errors=True)
        last = latest_checkpoint(run)
        kept = f"the checkpoint before it is whole: {last}" if last else "there is none before it"
        raise OutputError(f"can't write {final}: {error}; {kept}") from error
    for old in _steps(run)[:-keep]:
        shutil.rmtree(old)
    return final


def fsync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def latest_checkpoint(run: Path) -> Path | None:
    """Return the folder of the last whole checkpoint of a run, None if there is none."""
    steps = _steps(run)
    return steps[-1] if steps else None


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], Any, dict[str, Any]]:
    """Return what is learned, the optimizers' state, and the run's. Raises CheckpointError."""
    try:
        learned = load_file(folder / "learned.safetensors")
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except Exception as error:  # safetensors and torch raise errors of many kinds
        raise CheckpointError(
            f"{folder} can't be read ({error}); delete it to go on from the one before"
        ) from error
    return learned, optimizer, state


def _steps(run: Path) -> list[Path]:
    return sorted(p for p in (run / FOLDER).glob("step-*") if (p / "state.json").is_file())
