"""A QuantizedTensor as GGUF blocks and back: which block type holds which numbers.

    int4, symmetric → Q4_0, exactly      d = scale
    int8            → Q8_0, exactly      d = scale
    int4, asymmetric → Q4_1              d = scale, m = −scale · (zero + 8) rounded to float16

Groups of any multiple of 32 fit: a group's scale is written into each of its blocks. Scales must be
float16 numbers. Rounding m moves all weights of a block together by at most 2^-11 · |m|, 1 / 137 of
a step between two codes; from such a block the zero point comes back exactly. Blocks whose minimum
is no whole number of steps (llama.cpp's own Q4_1) and the other types have no QuantizedTensor.
"""

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats import gguf_blocks as blocks
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.shared import as_float16, zero_points

READABLE = ("Q4_0", "Q4_1", "Q8_0")


def kind_of(args: QuantArgs, activation: QuantArgs | None, columns: int) -> str | FormatError:
    """Return the block type for a weight with so many columns, or why there is none."""
    if args.dtype == "float":
        return FormatError("GGUF holds integers, not float8")
    if activation is not None:
        return FormatError("GGUF can't say how activations are rounded")
    group = args.group_size or columns
    if group % blocks.BLOCK or columns % blocks.BLOCK:
        return FormatError(
            f"its groups of {group} are not a multiple of GGUF's {blocks.BLOCK}; quantize it with "
            f"--group-size {blocks.BLOCK}"
        )
    if args.bits == 8:
        return "Q8_0"
    return "Q4_0" if args.symmetric else "Q4_1"


def encode(module: str, quantized: QuantizedTensor) -> torch.Tensor:
    """Return the rows of a weight (N, K) as blocks, uint8 (N, row bytes).

    Raises FormatError for a weight without a block type, or scales that are no float16 numbers.
    """
    args = quantized.args
    columns = quantized.shape[1]
    kind = kind_of(args, None, columns)
    if isinstance(kind, FormatError):
        raise FormatError(f"{module}: {kind}")
    repeats = columns // quantized.scales.shape[1] // blocks.BLOCK
    d = as_float16(module, quantized.scales).repeat_interleave(repeats, 1)
    if kind == "Q8_0":
        return blocks.pack_q8_0(quantized.codes, d)
    if kind == "Q4_0":
        return blocks.pack_q4_0(quantized.codes, d)
    steps = zero_points(module, quantized).float().repeat_interleave(repeats, 1) + 8
    return blocks.pack_q4_1(quantized.codes + 8, d, _minimum(d, steps))


def decode(kind: str, raw: torch.Tensor) -> QuantizedTensor | None:
    """Return the weight of rows of blocks uint8 (N, row bytes), groups of 32.

    None where the blocks mean what no QuantizedTensor can.
    """
    if kind == "Q4_0":
        return QuantizedTensor(*blocks.unpack_q4_0(raw), None, _args(4, symmetric=True))
    if kind == "Q8_0":
        return QuantizedTensor(*blocks.unpack_q8_0(raw), None, _args(8, symmetric=True))
    if kind != "Q4_1":
        return None
    codes, d, m = blocks.unpack_q4_1(raw)
    steps = torch.where(d == 0, 0.0, -m.float() / d.float()).round()
    whole = (steps >= 0) & (steps <= 15) & (_minimum(d, steps) == m)
    if not bool(whole.all()):
        return None
    zeros = (steps - 8).to(torch.int8)
    return QuantizedTensor(codes - 8, d, zeros, _args(4, symmetric=False))


def _minimum(d: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return (-d.float() * steps).to(torch.float16)


def _args(bits: int, *, symmetric: bool) -> QuantArgs:
    return QuantArgs(bits=bits, group_size=blocks.BLOCK, symmetric=symmetric)
