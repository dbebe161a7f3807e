"""AWQ checkpoints in AutoAWQ's other layout (`version: gemv`), rows as they are multiplied by.

qweight int32 (N, K/8): eight unsigned 4-bit codes a word along K, the first in the lowest bits;
qzeros int32 (N, Z) and scales float16 (N, 8·Z), groups along K in the same order, Z words as wide
as the kernels read: ⌈K/G / 8⌉, rounded up to 2 for groups of 64 and to 4 for 32; the rest is 0.

    W[n, k] = (q[n, k] − z[n, k // G]) · scales[n, k // G]

The layout is that of awq/modules/linear/gemv.py in AutoAWQ 0.2.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_rows, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats import awq
from soroq.io.formats.shared import Group, as_float16, read_args, take, zero_points

PARTS = awq.PARTS
VERSION = "gemv"
_HALF = 8  # what a code of 0 is stored as


def encode(module: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear. Raises FormatError for scales beyond float16."""
    zeros = zero_points(module, quantized)
    missing = 8 * _width(quantized.shape[1], quantized.args.group_size) - zeros.shape[1]
    scales = as_float16(module, quantized.scales)
    return {
        f"{module}.qweight": pack_rows(quantized.codes, 4),
        f"{module}.qzeros": pack_rows(pad(zeros, (0, missing), value=-_HALF), 4),
        f"{module}.scales": pad(scales, (0, missing)).contiguous(),
    }


def decode(module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> QuantizedTensor:
    """Invert `encode`. Raises CheckpointError when tensors are missing or don't fit each other."""
    qweight, scales = take(module, tensors, "qweight", 2), take(module, tensors, "scales", 2)
    qzeros = take(module, tensors, "qzeros", 2)
    N, K = qweight.shape[0], qweight.shape[1] * 8
    group = args.group_size or K
    groups = K // group if group else 0
    width = _width(K, args.group_size) if groups else 0
    fits = groups * group == K and groups > 0
    if not fits or qzeros.shape != (N, width) or scales.shape != (N, 8 * width):
        raise CheckpointError(
            f"{module}: scales {tuple(scales.shape)} and qzeros {tuple(qzeros.shape)} don't fit "
            f"qweight {tuple(qweight.shape)} in groups of {group}; the file is damaged or its "
            "config.json is another's"
        )
    zeros = unpack_rows(qzeros, 4, groups)
    return QuantizedTensor(unpack_rows(qweight, 4, K), scales[:, :groups].contiguous(), zeros, args)


def _width(K: int, group_size: int | None) -> int:
    """Return how many words hold the zero points of a row."""
    words = -(-(K // (group_size or K)) // 8)
    multiple = {32: 4, 64: 2}.get(group_size or K, 1)
    return -(-words // multiple) * multiple


def refuses(args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]) -> str | None:
    """Return why such a weight can't be stored, None if it can."""
    if reason := awq.refuses(args, activation, shape):
        return reason
    if args.group_size is not None and args.group_size < 128 and args.group_size not in (32, 64):
        return f"AWQ's gemv layout has groups of 32, 64 or from 128 on, not of {args.group_size}"
    return None


def config(args: QuantArgs, ignore: list[str]) -> dict[str, Any]:
    """Return `quantization_config`, fields as AutoAWQ 0.2 wrote them."""
    return awq.config(args, ignore) | {"version": VERSION}


def parse(config: Mapping[str, Any]) -> list[Group]:
    """Return the one group of numbers. Raises CheckpointError for what soroq can't represent."""
    if config.get("zero_point") is False:
        raise CheckpointError("AWQ without zero points is not readable; zero_point true is")
    args = read_args(config, symmetric=False)
    if args.bits != 4:
        raise CheckpointError(f"AWQ with bits {args.bits} is not readable; 4 is")
    return [(["Linear"], args, None)]
