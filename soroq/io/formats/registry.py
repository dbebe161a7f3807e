"""FORMATS: what can be read and written, by name; one file a format, one entry each here.

    format_of(config).decode("model.layers.0.mlp.up_proj", tensors, args)

`gguf` is a file of its own kind and is not among them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from soroq.core.errors import CheckpointError, SchemeError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs, Scheme
from soroq.io.formats import awq, awq_gemv, compressed_tensors, gptq, hqq, mlx
from soroq.io.formats.shared import Group

Numbers = Mapping[str, tuple[QuantArgs, QuantArgs | None]]


@dataclass(frozen=True)
class Format:
    """One layout on disk.

    mark: the part that says a module is quantized. parts: names of all parts of a module.
    config: (numbers by module, names that stay) → `quantization_config`. refuses: (weight,
    activation, (N, K)) → a reason, or None. uniform: one set of numbers for the whole model.
    """

    name: str
    mark: str
    parts: tuple[str, ...]
    encode: Callable[[str, QuantizedTensor], dict[str, torch.Tensor]]
    decode: Callable[[str, Mapping[str, torch.Tensor], QuantArgs], QuantizedTensor]
    config: Callable[[Numbers, list[str]], dict[str, Any]]
    parse: Callable[[Mapping[str, Any]], list[Group]]
    refuses: Callable[[QuantArgs, QuantArgs | None, tuple[int, int]], str | None]
    uniform: bool = True


def _compressed_config(numbers: Numbers, ignore: list[str]) -> dict[str, Any]:
    schemes = {}
    for module, (weight, activation) in numbers.items():
        layout = compressed_tensors.PACK if weight.dtype == "int" else compressed_tensors.FLOAT
        schemes[module] = Scheme("converted", "", weight, "rtn", layout, activation)
    return compressed_tensors.quantization_config(schemes, ["lm_head", *ignore])


def _compressed_refuses(
    args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]
) -> str | None:
    if args.group_size == 1:
        return "its groups are not neighbours (desc_act), which QuantizedTensor can't keep"
    return None


def _first(numbers: Numbers) -> QuantArgs:
    return next(iter(numbers.values()))[0]


def _gptq(name: str, v2: bool) -> Format:
    return Format(
        name,
        "qweight",
        gptq.PARTS,
        partial(gptq.encode, v2=v2),
        partial(gptq.decode, v2=v2),
        lambda numbers, ignore: gptq.config(_first(numbers), ignore, v2=v2),
        gptq.parse,
        gptq.refuses,
    )


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "compressed-tensors",
            "weight_scale",
            compressed_tensors.PARTS,
            compressed_tensors.encode,
            compressed_tensors.decode,
            _compressed_config,
            compressed_tensors.parse_config,
            _compressed_refuses,
            uniform=False,
        ),
        _gptq("gptq", v2=False),
        _gptq("gptq-v2", v2=True),
        Format(
            "awq",
            "qweight",
            awq.PARTS,
            awq.encode,
            awq.decode,
            lambda numbers, ignore: awq.config(_first(numbers), ignore),
            awq.parse,
            awq.refuses,
        ),
        Format(
            "awq-gemv",
            "qweight",
            awq_gemv.PARTS,
            awq_gemv.encode,
            awq_gemv.decode,
            lambda numbers, ignore: awq_gemv.config(_first(numbers), ignore),
            awq_gemv.parse,
            awq_gemv.refuses,
        ),
        Format(
            "hqq",
            hqq.MARK,
            hqq.PARTS,
            hqq.encode,
            hqq.decode,
            lambda numbers, ignore: hqq.config(_first(numbers), ignore),
            hqq.parse,
            hqq.refuses,
        ),
        Format(
            "mlx",
            "biases",
            mlx.PARTS,
            mlx.encode,
            mlx.decode,
            lambda numbers, ignore: mlx.config(_first(numbers)),
            mlx.parse,
            mlx.refuses,
        ),
    )
}


def get_format(name: str) -> Format:
    """Return a format by its name. Raises SchemeError for an unknown one."""
    if name not in FORMATS:
        raise SchemeError(f"unknown format {name!r}; known: {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


def format_of(config: Any) -> Format:
    """Return the format that a `quantization_config` speaks of.

    Raises CheckpointError for one that soroq doesn't read.
    """
    method = config.get("quant_method") if isinstance(config, dict) else None
    if isinstance(config, dict) and "quant_method" not in config and "group_size" in config:
        return FORMATS["mlx"]  # names no method
    if method == "gptq":
        stored = config.get("checkpoint_format") or "gptq"
        names = {"gptq": "gptq", "gptq_v2": "gptq-v2"}
        if stored not in names:
            raise CheckpointError(
                f"checkpoint_format {stored!r} is not readable; gptq, gptq_v2 are"
            )
        return FORMATS[names[stored]]
    if method == "soroq":  # the same tensors and fields; transformers knows who is to open it
        return FORMATS["compressed-tensors"]
    if method not in ("compressed-tensors", "awq", "hqq"):
        raise CheckpointError(
            f"quant_method {method!r} is not readable; awq, compressed-tensors, gptq, hqq, soroq "
            "and mlx, which names none, are"
        )
    if method == "awq" and str(config.get("version", "")).lower() == awq_gemv.VERSION:
        return FORMATS["awq-gemv"]
    return FORMATS[str(method)]
