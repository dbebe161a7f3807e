"""What a run leaves: a complete Hugging Face directory that `soroq quantize` takes."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soroq import __version__
from soroq.io.checkpoint import Checkpoint
from soroq.io.safetensors_file import TensorInfo
from soroq.io.writer import ShardedWriter, atomic_write, make_folder
from soroq.models.registry import find_layout
from soroq.train.metrics import FILE as METRICS

RECORD = "soroq-train.json"
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "peft")


def write_result(
    out: Path,
    run: Path,
    checkpoint: Checkpoint,
    trained: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    files: Mapping[str, bytes],
    adapter: Path | None = None,
) -> None:
    """Write the checkpoint with its text decoder's tensors replaced, in the dtypes it has, to out.

    trained: by name in the text-only model. Tokenizer, chat template and licence files are copied;
    `files` are added, and the run's metrics and adapter. out appears when all is there.
    """
    building = run / "result"
    shutil.rmtree(building, ignore_errors=True)
    make_folder(building)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    writer = ShardedWriter(building)
    for name in checkpoint.names():
        info = checkpoint.info(name)
        target = layout.text_name(name)
        if target is not None and target in trained:
            value = trained[target]
            writer.add_lazy(
                name,
                TensorInfo(tuple(value.shape), info.dtype, value.numel() * info.dtype.itemsize),
                partial(value.detach().to, info.dtype),
            )
        else:
            writer.add_lazy(name, info, partial(checkpoint.load, name))
    writer.finish(checkpoint.config, {"format": "pt"})
    checkpoint.copy_side_files(building)
    for name, data in files.items():
        atomic_write(building / name, data)
    shutil.copyfile(run / METRICS, building / METRICS)
    for folder in (run / "tensorboard", adapter):
        if folder is not None and folder.is_dir():
            shutil.copytree(folder, building / folder.name)
    versions = {"soroq": __version__} | {
        p: importlib.metadata.version(p) for p in PACKAGES if importlib.util.find_spec(p)
    }
    text = json.dumps({**record, "versions": versions}, indent=1, ensure_ascii=False)
    atomic_write(building / RECORD, text.encode())
    if out.exists():
        out.rmdir()  # empty: it was looked at before the run
    os.replace(building, out)
    shutil.rmtree(run)
