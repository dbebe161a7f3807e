"""convert: the same codes, scales and zero points in another format, exactly or not at all.

    convert("OUT", "OUT-gptq", "gptq")

Every weight is encoded twice, once to learn what doesn't fit, before anything is written, and once
while its shard is written: memory holds one weight, and all reasons come at once.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from soroq.core.errors import CheckpointError
from soroq.io.checkpoint import Checkpoint, TensorInfo, open_stored
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import Format, Numbers, get_format
from soroq.io.stored import StoredWeights
from soroq.io.writer import ShardedWriter, atomic_write, require_disk_space, require_empty_dir
from soroq.manifest import MANIFEST, read_manifest
from soroq.models.registry import find_layout

SHOWN = 3  # reasons in one error
Listener = Callable[[int, int, str], None]


def convert(
    source: str | Path,
    out: str | Path,
    format_name: str,
    *,
    listen: Listener = lambda done, total, module: None,
) -> None:
    """Write the quantized checkpoint `source` in another format into the new directory `out`.

    Raises FormatError, with one reason a kind of obstacle, when the format can't hold it exactly.
    """
    target = get_format(format_name)
    out = Path(out)
    checkpoint = open_stored(source)
    if not checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            f"{checkpoint.path} is not quantized; use soroq quantize --format {format_name}"
        )
    stored = StoredWeights(checkpoint)
    if not stored.quantized:
        raise CheckpointError(f"{checkpoint.path}: no tensor named *.{stored.format.mark}")
    require_empty_dir(out)
    modules = sorted(stored.quantized)
    numbers: Numbers = {module: stored.arguments(module) for module in modules}
    parts = _check(checkpoint, stored, numbers, target, listen)
    # what is copied is at most what the source holds
    require_disk_space(
        out, checkpoint.total_bytes + sum(i.nbytes for p in parts.values() for i in p.values())
    )
    building = out.with_name(f"{out.name}.converting")
    if building.exists():
        shutil.rmtree(building)  # a killed run's
    building.mkdir(parents=True)
    writer = ShardedWriter(building)
    inside = stored.parts()
    for name in checkpoint.names():
        if name not in inside or name.endswith(".input_scale"):
            writer.add_lazy(name, checkpoint.info(name), partial(checkpoint.load, name))
    encode = Encoder(stored, target)
    for module in modules:
        for name, info in parts[module].items():
            writer.add_lazy(name, info, partial(encode, module, name))
    config = dict(checkpoint.config)
    config["quantization_config"] = target.config(numbers, _ignored(checkpoint, stored))
    config.pop("quantization", None)
    if target.name == "mlx":  # where mlx-lm looks
        config["quantization"] = config["quantization_config"]
    listen(len(modules), len(modules), "writing")
    writer.finish(config, {"format": "pt"})
    checkpoint.copy_side_files(building)
    _carry_manifest(checkpoint, stored.format.name, target.name, building)
    if out.exists():
        out.rmdir()  # require_empty_dir saw to it that it is empty
    os.replace(building, out)


class Encoder:
    """Encodes the module asked for and keeps it, since its parts are asked for one by one."""

    def __init__(self, stored: StoredWeights, target: Format) -> None:
        self._stored, self._target = stored, target
        self._module = ""
        self._tensors: dict[str, torch.Tensor] = {}

    def __call__(self, module: str, name: str) -> torch.Tensor:
        if module != self._module:
            weight = self._stored.load_quantized(module)[0]
            self._module, self._tensors = module, self._target.encode(module, weight)
        return self._tensors[name]


def _check(
    checkpoint: Checkpoint,
    stored: StoredWeights,
    numbers: Numbers,
    target: Format,
    listen: Listener,
) -> dict[str, dict[str, TensorInfo]]:
    """Return what each module will be stored as. Raises FormatError with all reasons."""
    reasons: dict[str, list[str]] = {}
    if target.uniform and len({weight for weight, _ in numbers.values()}) > 1:
        reasons[f"{target.name} has one set of numbers for all modules"] = ["the model"]
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    found: dict[str, dict[str, TensorInfo]] = {}
    for done, (module, (_, activation)) in enumerate(numbers.items()):
        listen(done, len(numbers), module)
        weight = stored.load_quantized(module)[0]
        reason = target.refuses(weight.args, activation, weight.shape)
        if f"{module}.weight" == layout.embedding and target.name != stored.format.name:
            reason = "a quantized embedding can only stay in the format it is in"
        if reason is not None:
            reasons.setdefault(reason, []).append(module)
            continue
        try:
            encoded = target.encode(module, weight)
        except FormatError as error:
            text = str(error).removeprefix(f"{module}: ")
            reasons.setdefault(text, []).append(module)
            continue
        found[module] = {
            n: TensorInfo(tuple(t.shape), t.dtype, t.nbytes) for n, t in encoded.items()
        }
    if reasons:
        lines = [
            f"{where[0]}" + (f" and {len(where) - 1} more" if len(where) > 1 else "") + f": {why}"
            for why, where in list(reasons.items())[:SHOWN]
        ]
        more = len(reasons) - SHOWN
        raise FormatError(
            f"{checkpoint.path} can't be {target.name}: "
            + "; ".join(lines)
            + (f"; and {more} other reasons" if more > 0 else "")
        )
    return found


def _ignored(checkpoint: Checkpoint, stored: StoredWeights) -> list[str]:
    """Return the matrices inside blocks that aren't quantized."""
    inside = f"{find_layout(checkpoint.config, set(checkpoint.names())).prefix}layers."
    return [
        name.removesuffix(".weight")
        for name in checkpoint.names()
        if name.startswith(inside)
        and name.endswith(".weight")
        and name.removesuffix(".weight") not in stored.quantized
        and len(checkpoint.info(name).shape) == 2
    ]


def _carry_manifest(checkpoint: Checkpoint, before: str, after: str, out: Path) -> None:
    manifest = read_manifest(checkpoint.path)
    if manifest is None:
        return
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    step = {"from": before, "to": after, "source_sha256": checkpoint.sha256()}
    manifest = dataclasses.replace(
        manifest, output_bytes=size, converted=[*manifest.converted, step]
    )
    atomic_write(out / MANIFEST, manifest.to_json().encode())
