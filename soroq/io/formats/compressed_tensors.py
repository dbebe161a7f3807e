"""compressed-tensors: the names and numbers that vLLM, SGLang and transformers read.

`pack-quantized` (integers): weight_packed int32 (N, K·bits/32), weight_scale (N, K // G),
weight_zero_point int32 (N·bits/32, K // G) if asymmetric, weight_shape int64 (2,).
`float-quantized`: weight float8_e4m3fn (N, K), weight_scale (N, 1) or tiles, input_scale if static.
`config.json` gets `quantization_config` (fields of compressed-tensors 0.20, QuantizationConfig).
"""

from collections.abc import Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_columns, pack_rows, unpack_columns, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs, Scheme
from soroq.io.formats.shared import refuse_real_zeros

PACK = "pack-quantized"
FLOAT = "float-quantized"
PARTS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "input_scale",
)


def encode(module: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear, by their full names.

    Raises FormatError when zero points are no integers.
    """
    refuse_real_zeros(module, quantized)
    if quantized.args.dtype == "float":
        return {
            f"{module}.weight": quantized.codes,
            f"{module}.weight_scale": quantized.scales,
        }
    bits = quantized.args.bits
    stored = {
        f"{module}.weight_packed": pack_rows(quantized.codes, bits),
        f"{module}.weight_scale": quantized.scales,
        f"{module}.weight_shape": torch.tensor(quantized.shape, dtype=torch.int64),
    }
    if quantized.zeros is not None:
        stored[f"{module}.weight_zero_point"] = pack_columns(quantized.zeros, bits)
    return stored


def decode(module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> QuantizedTensor:
    """Invert `encode`. Raises CheckpointError when a tensor is missing or has another shape."""
    try:
        scales = tensors[f"{module}.weight_scale"]
        if args.dtype == "float":
            return QuantizedTensor(tensors[f"{module}.weight"], scales, None, args)
        N, K = (int(v) for v in tensors[f"{module}.weight_shape"])
        codes = unpack_rows(tensors[f"{module}.weight_packed"], args.bits, K)
        zeros = None
        if not args.symmetric:
            zeros = unpack_columns(tensors[f"{module}.weight_zero_point"], args.bits, N)
        return QuantizedTensor(codes, scales, zeros, args)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{module}: not a {PACK} weight: {error}") from error


def quantization_config(
    schemes: Mapping[str, Scheme],
    ignore: list[str],
    embedding: str = "",
    embed: QuantArgs | None = None,
) -> dict[str, Any]:
    """Return config.json's `quantization_config` for module name → scheme.

    One group alone targets every Linear, several name their modules. `ignore` lists what stays.
    embed: numbers of the tensor `embedding`, which the tied head shares.
    """
    groups: dict[tuple[QuantArgs, QuantArgs | None, str], list[str]] = {}
    for module, scheme in schemes.items():
        groups.setdefault((scheme.weight, scheme.activation, scheme.layout), []).append(module)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    formats = {layout for (_, _, layout), _ in ordered}
    config_groups: dict[str, Any] = {}
    if embed is not None:
        formats.add(PACK)
        config_groups["group_embedding"] = {
            "targets": spellings([embedding.removesuffix(".weight")]),
            "weights": _arguments(embed, activation=False),
            "input_activations": None,
            "output_activations": None,
            "format": PACK,
        }
    for index, ((weight, activation, layout), modules) in enumerate(ordered):
        config_groups[f"group_{index}"] = {
            "targets": ["Linear"] if len(ordered) == 1 else spellings(sorted(modules)),
            "weights": _arguments(weight, activation=False),
            "input_activations": _arguments(activation, activation=True) if activation else None,
            "output_activations": None,
            "format": layout,
        }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": config_groups,
        "ignore": spellings(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def spellings(modules: list[str]) -> list[str]:
    """Return module names in every spelling that readers use.

    A multimodal Gemma 3 is stored, and built by vLLM, as language_model.model.…, and built by
    transformers 5 as model.language_model.…: a name in one spelling only would be overlooked.
    """
    stored, built = "language_model.model.", "model.language_model."
    names = []
    for name in modules:
        names.append(name)
        for one, other in ((stored, built), (built, stored)):
            if name.startswith(one):
                names.append(other + name.removeprefix(one))
    return names


def parse_config(config: Mapping[str, Any]) -> list[tuple[list[str], QuantArgs, QuantArgs | None]]:
    """Return (targets, weight, activation) per group of a `quantization_config`.

    Raises CheckpointError for numbers that soroq can't represent.
    """
    if config.get("quant_method") not in ("compressed-tensors", "soroq"):
        raise CheckpointError(
            f"quant_method {config.get('quant_method')!r} is not readable; compressed-tensors is"
        )
    result = []
    for name, group in config.get("config_groups", {}).items():
        try:
            activation = group.get("input_activations")
            result.append(
                (
                    list(group["targets"]),
                    _parse(group["weights"]),
                    _parse(activation) if activation else None,
                )
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"quantization_config {name}: {error!r} is missing") from error
    return result


def _parse(raw: Mapping[str, Any]) -> QuantArgs:
    strategy = raw["strategy"]
    block = None
    if strategy == "block":
        block = (int(raw["block_structure"][0]), int(raw["block_structure"][1]))
    return QuantArgs(
        dtype="float" if raw["type"] == "float" else "int",
        bits=int(raw["num_bits"]),
        group_size=int(raw["group_size"]) if strategy == "group" else None,
        symmetric=bool(raw["symmetric"]),
        block=block,
        dynamic=bool(raw.get("dynamic")),
    )


def _arguments(args: QuantArgs, *, activation: bool) -> dict[str, Any]:
    if args.block is not None:
        strategy = "block"
    elif args.group_size is not None:
        strategy = "group"
    elif activation:
        strategy = "token" if args.dynamic else "tensor"
    else:
        strategy = "channel"
    return {
        "num_bits": args.bits,
        "type": args.dtype,
        "symmetric": args.symmetric,
        "strategy": strategy,
        "group_size": args.group_size,
        "block_structure": list(args.block) if args.block else None,
        "dynamic": args.dynamic,
        "actorder": None,
        "observer": None if args.dynamic else "minmax",
        "observer_kwargs": {},
    }
