"""What the layouts of GPTQ and AWQ have in common: float16 scales, zero points always there."""

from collections.abc import Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError, SchemeError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.refusal import FormatError

# names of modules, their weights' numbers, their inputs' numbers
Group = tuple[list[str], QuantArgs, QuantArgs | None]


def as_float16(module: str, scales: torch.Tensor) -> torch.Tensor:
    """Return scales in float16. Raises FormatError unless every one is the same number there."""
    half = scales.to(torch.float16)
    changed = int((half.double() != scales.double()).sum())
    if changed:
        raise FormatError(
            f"{module}: {changed} of {scales.numel()} scales are no float16 numbers, which this "
            "format stores; keep it as compressed-tensors"
        )
    return half


def zero_points(module: str, quantized: QuantizedTensor) -> torch.Tensor:
    """Return zero points int8 (N, K // G) in signed code units: 0 where there are none.

    Raises FormatError when they are no integers.
    """
    if quantized.zeros is not None:
        refuse_real_zeros(module, quantized)
        return quantized.zeros
    return torch.zeros(quantized.scales.shape, dtype=torch.int8)


def refuse_real_zeros(module: str, quantized: QuantizedTensor) -> None:
    """Raise FormatError when zero points are real numbers (HQQ's), not integers."""
    if quantized.has_real_zeros:
        raise FormatError(
            f"{module}: zero points between the integers (HQQ's), which only hqq stores"
        )


def refuse_beyond_integers(
    format_name: str, args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]
) -> str | None:
    """Return why integer words along N and K can't hold such a weight, None if they can."""
    if args.dtype == "float":
        return f"{format_name} holds integers, not float8"
    if activation is not None:
        return f"{format_name} can't say how activations are rounded"
    if args.group_size == 1:
        return "its groups are not neighbours (desc_act), which QuantizedTensor can't keep"
    per_word = 32 // args.bits
    for what, size in (("out_features", shape[0]), ("in_features", shape[1])):
        if size % per_word:
            return f"{what} {size} is not a multiple of {per_word}, which {format_name} packs by"
    return None


def read_args(config: Mapping[str, Any], *, symmetric: bool) -> QuantArgs:
    """Return the numbers of a GPTQ or AWQ `quantization_config`.

    Raises CheckpointError when they are missing or ones soroq can't represent.
    """
    try:
        bits, group = config["bits"], config["group_size"]
        if type(bits) is not int or type(group) is not int:
            raise TypeError(f"bits {bits!r} and group_size {group!r} are not integers")
        return QuantArgs(bits=bits, group_size=None if group == -1 else group, symmetric=symmetric)
    except (KeyError, TypeError, SchemeError) as error:
        raise CheckpointError(f"quantization_config can't be read: {error}") from error


def take(
    module: str, tensors: Mapping[str, torch.Tensor], part: str, dimensions: int
) -> torch.Tensor:
    """Return one stored tensor. Raises CheckpointError when it is missing or has other axes."""
    tensor = tensors.get(f"{module}.{part}")
    if tensor is None:
        raise CheckpointError(f"{module}.{part} is missing, the module's other parts are there")
    if tensor.dim() != dimensions:
        raise CheckpointError(f"{module}.{part}: shape {tuple(tensor.shape)} is not a matrix")
    return tensor


def check_groups(
    module: str,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    qzeros: torch.Tensor,
    columns_rows: tuple[int, int],
    args: QuantArgs,
) -> int:
    """Return the number of groups of a weight of K columns and N rows.

    Raises CheckpointError unless K is whole groups and scales and qzeros are (K/G, N), (K/G, N/P).
    """
    K, N = columns_rows
    group = args.group_size or K
    groups = K // group if group else 0
    words = -(-N // (32 // args.bits))
    fits = groups * group == K and groups > 0
    if not fits or scales.shape != (groups, N) or qzeros.shape != (groups, words):
        raise CheckpointError(
            f"{module}: scales {tuple(scales.shape)} and qzeros {tuple(qzeros.shape)} don't fit "
            f"qweight {tuple(qweight.shape)} in groups of {group}; the file is damaged or its "
            "config.json is another's"
        )
    return groups
