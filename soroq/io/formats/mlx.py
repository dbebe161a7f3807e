"""MLX checkpoints, for Apple's processors, as mlx-lm reads them.

weight uint32 (N, K · bits / 32): unsigned codes along K, the first in the lowest bits; scales and
biases (N, K / G), G one of 32, 64 and 128.

    W[n, k] = q[n, k] · scales[n, k // G] + biases[n, k // G]

A zero point z is the bias −(z + half) · scale, half = 2^(bits − 1): the same number only where that
product is one of its dtype, so asymmetric weights have both in float32 where it isn't. MLX's own
quantizer also makes biases that are no multiple of their scale; those soroq can't represent.
"""

from collections.abc import Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_rows, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.shared import Group, read_args, take, zero_points

PARTS = ("weight", "scales", "biases")
GROUPS = (32, 64, 128)


def encode(module: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear. Raises FormatError for scales without a bias."""
    half = 2 ** (quantized.args.bits - 1)
    scales = quantized.scales
    exact = -(zero_points(module, quantized).double() + half) * scales.double()
    biases = exact.to(scales.dtype)
    if not torch.equal(biases.double(), exact):
        scales, biases = scales.float(), exact.float()
    if not torch.equal(biases.double(), exact):
        raise FormatError(f"{module}: zero points times scales are no float32 numbers")
    return {
        f"{module}.weight": pack_rows(quantized.codes, quantized.args.bits).view(torch.uint32),
        f"{module}.scales": scales.contiguous(),
        f"{module}.biases": biases.contiguous(),
    }


def decode(module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> QuantizedTensor:
    """Invert `encode`. Raises CheckpointError when tensors are missing or don't fit each other."""
    words, scales = take(module, tensors, "weight", 2), take(module, tensors, "scales", 2)
    biases = take(module, tensors, "biases", 2)
    K = words.shape[1] * 32 // args.bits
    group = args.group_size or K
    if K % group or scales.shape != (words.shape[0], K // group) or biases.shape != scales.shape:
        raise CheckpointError(
            f"{module}: scales {tuple(scales.shape)} and biases {tuple(biases.shape)} don't fit "
            f"weight {tuple(words.shape)} in groups of {group}; the file is damaged or its "
            "config.json is another's"
        )
    half = 2 ** (args.bits - 1)
    middles = (-biases.double() / scales.double()).nan_to_num().round()
    if not torch.equal(-middles * scales.double(), biases.double()) or not bool(
        ((middles >= 0) & (middles < 2 * half)).all()
    ):
        raise CheckpointError(
            f"{module}: biases that are no multiples of their scales, as MLX's own quantizer makes "
            "them, are not readable; quantize the original with soroq and convert that"
        )
    zeros: torch.Tensor | None = (middles - half).to(torch.int8)
    if args.symmetric:
        if bool((middles != half).any()):
            raise CheckpointError(f"{module}: {args.bits}-bit codes with zero points, not readable")
        zeros = None
    return QuantizedTensor(unpack_rows(words.view(torch.int32), args.bits, K), scales, zeros, args)


def refuses(args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]) -> str | None:
    """Return why such a weight can't be stored, None if it can."""
    if args.dtype == "float":
        return "mlx holds integers, not float8"
    if activation is not None:
        return "mlx can't say how activations are rounded"
    if args.group_size not in GROUPS:
        size = "the row" if args.group_size is None else args.group_size
        return f"mlx has groups of 32, 64 or 128, not of {size}"
    if shape[1] % args.group_size:
        return f"in_features {shape[1]} is not a multiple of its group, {args.group_size}"
    return None


def config(args: QuantArgs) -> dict[str, Any]:
    """Return what config.json says under `quantization`, and again under `quantization_config`."""
    return {"group_size": args.group_size, "bits": args.bits, "mode": "affine"}


def parse(config: Mapping[str, Any]) -> list[Group]:
    """Return the one group of numbers. Raises CheckpointError for what soroq can't represent."""
    mode = config.get("mode", "affine")
    if mode != "affine":
        raise CheckpointError(f"MLX mode {mode!r} is not readable; affine is")
    named = [key for key, value in config.items() if isinstance(value, (dict, bool))]
    if named:
        raise CheckpointError(f"MLX numbers of single modules ({named[0]}) are not readable")
    args = read_args(config, symmetric=config.get("bits") == 8)  # soroq's 8 bits always are
    if args.bits not in (4, 8):
        raise CheckpointError(f"MLX with bits {args.bits} is not readable; 4 and 8 are")
    return [(["Linear"], args, None)]
