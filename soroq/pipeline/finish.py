"""Assemble the finished blocks and everything that was not touched into one checkpoint."""

import dataclasses
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from soroq.core.recipe import Recipe
from soroq.core.scheme import Scheme
from soroq.io.checkpoint import Checkpoint, TensorInfo
from soroq.io.formats.compressed_tensors import quantization_config
from soroq.io.safetensors_file import SafetensorsFile
from soroq.io.writer import ShardedWriter, atomic_write
from soroq.manifest import MANIFEST, RUN, Manifest
from soroq.models.architecture import DecoderLayout
from soroq.pipeline.card import model_card
from soroq.pipeline.stage import Stage


def write_output(
    out: Path,
    stage: Stage,
    checkpoint: Checkpoint,
    layout: DecoderLayout,
    recipe: Recipe,
    manifest: Manifest,
    run: dict[str, Any],
) -> Manifest:
    """Write the checkpoint beside its final place, then rename it; return the full manifest."""
    building = stage.path / "out"
    if building.exists():
        shutil.rmtree(building)
    building.mkdir()
    schemes = quantized_modules(layout, recipe)
    replaced = {f"{name}.weight" for name in schemes}
    writer = ShardedWriter(building)
    for name in checkpoint.names():
        if name == layout.embedding and recipe.embed is not None:
            embedding = SafetensorsFile(stage.embedding_file)
            for part in embedding.names():
                writer.add_lazy(part, embedding.info(part), partial(embedding.load, part))
        elif not name.startswith(f"{layout.prefix}layers."):
            _copy(writer, checkpoint, name)
    tuned: dict[str, torch.Tensor] = {}
    if stage.distilled() is not None:
        with safe_open(stage.distilled_file, framework="pt") as file:
            tuned = {name: file.get_tensor(name) for name in file.keys()}
    layers: list[dict[str, Any]] = []
    folds: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for index in range(layout.n_blocks):
        block = SafetensorsFile(stage.block_file(index))
        prefix = layout.block(index) + "."
        new = set(block.names()) | {name for name in tuned if name.startswith(prefix)}
        for name in checkpoint.names():
            if name.startswith(prefix) and name not in replaced and name not in new:
                _copy(writer, checkpoint, name)
        for name in sorted(new):
            if name in tuned:
                writer.add(name, tuned[name])
            else:
                writer.add_lazy(name, block.info(name), partial(block.load, name))
        report = stage.report(index)
        for layer in report["layers"]:
            seconds[layer["module"]] = layer.pop("seconds")
            layers.append(layer)
        folds += [{"block": index} | fold for fold in report["folds"]]
    config = dict(checkpoint.config)
    config["quantization_config"] = quantization_config(
        schemes, ignored_modules(checkpoint, layout, schemes), layout.embedding, recipe.embed
    )
    writer.finish(config, {"format": "pt"})
    checkpoint.copy_side_files(building)
    size = sum(f.stat().st_size for f in building.glob("*.safetensors"))
    manifest = dataclasses.replace(
        manifest, layers=layers, folds=folds, output_bytes=size, distilled=stage.distilled()
    )
    atomic_write(building / MANIFEST, manifest.to_json().encode())
    atomic_write(building / "README.md", model_card(manifest).encode())
    atomic_write(building / RUN, json.dumps(run | {"layer_seconds": seconds}, indent=2).encode())
    if out.exists():
        out.rmdir()  # require_empty_dir saw to it that it is empty
    os.replace(building, out)
    stage.close()
    return manifest


def _copy(writer: ShardedWriter, checkpoint: Checkpoint, name: str) -> None:
    info: TensorInfo = checkpoint.info(name)
    writer.add_lazy(name, info, partial(checkpoint.load, name))


def quantized_modules(layout: DecoderLayout, recipe: Recipe) -> dict[str, Scheme]:
    """Return the scheme of each linear that a recipe quantizes."""
    modules = {}
    for index in range(layout.n_blocks):
        for path in layout.architecture.linears:
            name = f"{layout.block(index)}.{path}"
            scheme = recipe.scheme_for(name)
            if scheme is not None:
                modules[name] = scheme
    return modules


def ignored_modules(
    checkpoint: Checkpoint, layout: DecoderLayout, schemes: dict[str, Scheme]
) -> list[str]:
    """Return what a reader must leave alone: the head, skipped linears, the vision side."""
    ignored = ["lm_head"]
    inside = f"{layout.prefix}layers."
    for name in checkpoint.names():
        module = name.removesuffix(".weight")
        if name.startswith(inside) and len(checkpoint.info(name).shape) == 2:
            if name.endswith(".weight") and module not in schemes:
                ignored.append(module)
    if any("vision_tower" in name for name in checkpoint.names()):
        ignored += ["re:.*vision_tower.*", "re:.*multi_modal_projector.*"]
    return ignored
