"""AWQ checkpoints as AutoAWQ laid them out (`version: gemm`), read by gptqmodel and vLLM.

qweight int32 (K, N/8): eight unsigned 4-bit codes a word along N, in the order 0 2 4 6 1 3 5 7 from
the lowest bits; qzeros int32 (K/G, N/8) in the same order; scales float16 (K/G, N).

    W[n, k] = (q[k, n] − z[k // G, n]) · scales[k // G, n]

There is no symmetric form: symmetric weights are stored, and read back, with the
zero point 8.
"""

from collections.abc import Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_rows, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.shared import (
    Group,
    as_float16,
    check_groups,
    read_args,
    refuse_beyond_integers,
    take,
    zero_points,
)

PARTS = ("qweight", "qzeros", "scales")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours lies in each nibble, lowest first


def encode(module: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear. Raises FormatError for scales beyond float16."""
    return {
        f"{module}.qweight": _pack(quantized.codes.t()),
        f"{module}.qzeros": _pack(zero_points(module, quantized).t()),
        f"{module}.scales": as_float16(module, quantized.scales).t().contiguous(),
    }


def decode(module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> QuantizedTensor:
    """Invert `encode`. Raises CheckpointError when tensors are missing or don't fit each other."""
    qweight, scales = take(module, tensors, "qweight", 2), take(module, tensors, "scales", 2)
    qzeros = take(module, tensors, "qzeros", 2)
    K, N = qweight.shape[0], qweight.shape[1] * 8
    check_groups(module, qweight, scales, qzeros, (K, N), args)
    zeros = _unpack(qzeros).t().contiguous()
    return QuantizedTensor(_unpack(qweight).t().contiguous(), scales.t().contiguous(), zeros, args)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Pack signed codes int8 (rows, N) along N into int32 (rows, N/8)."""
    ordered = codes.reshape(codes.shape[0], -1, 8)[..., list(ORDER)]
    return pack_rows(ordered.flatten(1), 4)


def _unpack(words: torch.Tensor) -> torch.Tensor:
    ordered = unpack_rows(words, 4, words.shape[1] * 8).view(words.shape[0], -1, 8)
    codes = torch.empty_like(ordered)
    codes[..., list(ORDER)] = ordered
    return codes.flatten(1)


def refuses(args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]) -> str | None:
    """Return why such a weight can't be stored, None if it can."""
    if args.dtype == "int" and args.bits != 4:
        return f"AWQ holds 4-bit weights, not {args.bits}-bit ones"
    return refuse_beyond_integers("AWQ", args, activation, shape)


def config(args: QuantArgs, ignore: list[str]) -> dict[str, Any]:
    """Return `quantization_config`, fields as AutoAWQ 0.2 wrote them."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": -1 if args.group_size is None else args.group_size,
        "zero_point": True,
        "modules_to_not_convert": ignore or None,
    }


def parse(config: Mapping[str, Any]) -> list[Group]:
    """Return the one group of numbers. Raises CheckpointError for what soroq can't represent."""
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise CheckpointError(f"AWQ version {version!r} is not readable; gemm and gemv are")
    if config.get("zero_point") is False:
        raise CheckpointError("AWQ without zero points is not readable; zero_point true is")
    args = read_args(config, symmetric=False)
    if args.bits != 4:
        raise CheckpointError(f"AWQ with bits {args.bits} is not readable; 4 is")
    return [(["Linear"], args, None)]
