"""Turn what another quantizer saved into a soroq checkpoint: its codes, scales and zero points.

Every weight is read twice, once to check that it is what was asked for, and once while its shard is
written: memory holds one weight.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import BackendError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.recipe import Recipe
from soroq.core.scheme import Scheme
from soroq.io.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from soroq.io.formats.compressed_tensors import quantization_config
from soroq.io.formats.registry import FORMATS
from soroq.io.stored import StoredWeights
from soroq.io.writer import ShardedWriter
from soroq.methods.rtn import quantize_rtn
from soroq.models.architecture import DecoderLayout
from soroq.pipeline.convert import Encoder
from soroq.pipeline.finish import ignored_modules, quantized_modules

TARGET = FORMATS["compressed-tensors"]


def collect(
    result: Path,
    building: Path,
    checkpoint: Checkpoint,
    layout: DecoderLayout,
    recipe: Recipe,
    *,
    folded: bool,
) -> list[dict[str, Any]]:
    """Write the tool's checkpoint `result` into `building` as soroq's; return a report a layer.

    Linears come from the tool; vectors (norms, which folds change, and biases) too, rounded to the
    original's dtype; all other tensors from the original `checkpoint`. folded: scale was moved
    between norms and weights, which then aren't the original's any more. Raises BackendError when
    the tool left a linear out, or stored it with other numbers than it was asked for.
    """
    theirs = open_checkpoint(result)
    stored = StoredWeights(theirs)
    schemes = quantized_modules(layout, recipe)
    _refuse_other_modules(set(schemes), stored.quantized)
    writer = ShardedWriter(building)
    for name in checkpoint.names():
        if name.removesuffix(".weight") not in schemes:
            _copy(writer, checkpoint, theirs, name)
    encode = Encoder(stored, TARGET)
    layers = []
    for module, scheme in schemes.items():
        weight, activation, input_scale = stored.load_quantized(module)
        _refuse_other_numbers(module, scheme, weight, activation)
        original = checkpoint.load(f"{module}.weight", dtype=torch.float32)
        if weight.shape != tuple(original.shape):
            raise BackendError(
                f"{module}: the tool stored {weight.shape}, the original is {tuple(original.shape)}"
            )
        layers.append(_report(module, scheme, weight, None if folded else original))
        for name, tensor in TARGET.encode(module, weight).items():
            info = TensorInfo(tuple(tensor.shape), tensor.dtype, tensor.nbytes)
            writer.add_lazy(name, info, partial(encode, module, name))
        if input_scale is not None:
            writer.add(f"{module}.input_scale", input_scale.reshape(1))
    config = dict(checkpoint.config)
    ignored = ignored_modules(checkpoint, layout, schemes)
    config["quantization_config"] = quantization_config(schemes, ignored)
    writer.finish(config, {"format": "pt"})
    return layers


def _refuse_other_modules(asked: set[str], found: set[str]) -> None:
    for what, names in (("left", asked - found), ("quantized", found - asked)):
        if names:
            first = min(names)
            raise BackendError(
                f"{first}: the tool {what} it"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + (" as it was" if what == "left" else ", which it was not asked for")
            )


def _refuse_other_numbers(
    module: str, scheme: Scheme, weight: QuantizedTensor, activation: Any
) -> None:
    if weight.args.group_size == 1:
        raise BackendError(f"{module}: the tool permuted columns (desc_act), kernels can't read it")
    for what, asked, got in (
        ("weights", scheme.weight, weight.args),
        ("activations", scheme.activation, activation),
    ):
        if asked != got:
            raise BackendError(f"{module}: {what} asked for as {asked}, the tool stored {got}")


def _changed(checkpoint: Checkpoint, theirs: Checkpoint, name: str) -> torch.Tensor | None:
    """Return a vector as the tool left it, in the original's dtype; None if it is the same."""
    before = checkpoint.load(name)
    after = theirs.load(name).to(before.dtype)
    return None if torch.equal(before, after) else after


def _copy(writer: ShardedWriter, checkpoint: Checkpoint, theirs: Checkpoint, name: str) -> None:
    """Add a tensor that isn't quantized: of the original, but for vectors that the tool changed."""
    if len(checkpoint.info(name).shape) == 1 and name in theirs.names():
        changed = _changed(checkpoint, theirs, name)
        if changed is not None:
            writer.add(name, changed)
            return
    writer.add_lazy(name, checkpoint.info(name), partial(checkpoint.load, name))


def _report(
    module: str,
    scheme: Scheme,
    weight: QuantizedTensor,
    original: torch.Tensor | None,
) -> dict[str, Any]:
    """Return a layer's entry of the manifest.

    weight_error: ‖W − Ŵ‖² / ‖W‖², and weight_error_rtn of plain rounding with the same numbers;
    None when scale was folded into the weight. Errors of outputs would take the tool's activations.
    """
    report: dict[str, Any] = {
        "module": module,
        "scheme": scheme.name,
        "method": scheme.method,
        "bits_per_weight": scheme.weight.bits_per_weight(
            weight.shape, 8 * weight.scales.element_size()
        ),
        "error": None,
        "error_rtn": None,
        "weight_error": None,
        "weight_error_rtn": None,
    }
    if original is not None:
        report["weight_error"] = _distance(original, weight)
        if scheme.weight.dtype == "int":
            report["weight_error_rtn"] = _distance(original, quantize_rtn(original, scheme.weight))
    return report


def _distance(original: torch.Tensor, weight: QuantizedTensor) -> float:
    return float((original - weight.dequantize()).square().sum() / original.square().sum())
