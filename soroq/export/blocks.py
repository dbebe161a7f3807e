"""Stored matrices as com.microsoft::MatMulNBits wants them: our codes, bit for bit.

B uint8 (N, blocks, block_size · bits / 8), low bits first; scales (N, blocks); zero points uint8
(N, ⌈blocks · bits / 8⌉), none if symmetric (github.com/microsoft/onnxruntime,
docs/ContribOperators.md). soroq stores codes plus 2^(bits−1), low bits first along K, in
little-endian words: their bytes are B's bytes as they are.

What has no kernel in ONNX Runtime, float8, is rounded anew to int8 in groups of 128.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_rows
from soroq.core.qtensor import QuantizedTensor, round_int
from soroq.core.scheme import QuantArgs
from soroq.io.stored import StoredMatrix, StoredWeights

BLOCK_SIZES = (128, 64, 32, 16)  # for rows with one scale; a row is a multiple of one of them
FALLBACK_GROUP = 128


@dataclass(frozen=True)
class BlockedMatrix:
    """One matrix (N, K), or several with the same K one below the other.

    words: uint8, the parts' codes; scales: their stored scales (N, groups), each of which holds for
    `repeats` blocks. zeros: packed, None if symmetric.
    """

    N: int
    K: int
    bits: int
    block_size: int
    words: list[torch.Tensor]
    scales: list[torch.Tensor]
    zeros: list[torch.Tensor] | None

    @property
    def n_blocks(self) -> int:
        return self.K // self.block_size

    @property
    def repeats(self) -> int:
        """How many blocks share a scale."""
        return self.n_blocks // self.scales[0].shape[1]


def read_blocks(weights: StoredWeights, modules: Sequence[str], largest: int) -> BlockedMatrix:
    """Return quantized matrices as one, in blocks of at most `largest` columns.

    Raises CheckpointError where blocks can't hold them.
    """
    N, words, scales, zeros = 0, [], [], []
    args, K = numbers_of(weights, modules[0])
    assert args is not None
    size = min(_block_size(modules[0], K, args), largest)
    for module in modules:
        matrix = weights.open(module)
        packed, scale, zero = _read(weights, module, matrix)
        N += matrix.shape[0]
        words.append(packed.contiguous().view(torch.uint8))
        scales.append(scale)
        if zero is not None:
            repeats = K // size // zero.shape[1]
            zeros.append(_pack_zeros(zero.repeat_interleave(repeats, 1), args))
    return BlockedMatrix(N, K, args.bits, size, words, scales, zeros or None)


def numbers_of(weights: StoredWeights, module: str) -> tuple[QuantArgs | None, int]:
    """Return the numbers that a matrix is exported with, None for a float one, and its K."""
    matrix = weights.open(module)
    K = matrix.shape[1]
    if matrix.args is None or matrix.args.dtype == "int":
        return matrix.args, K
    group = next((g for g in (FALLBACK_GROUP, 64, 32, 16) if K % g == 0), None)
    return QuantArgs(dtype="int", bits=8, group_size=group), K


def is_rounded_anew(weights: StoredWeights, module: str) -> bool:
    """Tell whether a matrix is float8, which the export turns into int8."""
    args = weights.open(module).args
    return args is not None and args.dtype == "float"


def _read(
    weights: StoredWeights, module: str, matrix: StoredMatrix
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    args, K = numbers_of(weights, module)
    assert args is not None
    if not is_rounded_anew(weights, module):
        words, scales, zeros = matrix.rows(0, matrix.shape[0])
        assert scales is not None
        return words, scales, zeros
    rounded = round_to_int8(weights.load_quantized(module)[0], args)
    return pack_rows(rounded.codes, 8), rounded.scales, None


def round_to_int8(quantized: QuantizedTensor, args: QuantArgs) -> QuantizedTensor:
    """Return float8 weights rounded to int8 by `args`, with float32 scales."""
    dense = quantized.dequantize()
    N, K = dense.shape
    largest = dense.view(N, -1, args.group_size or K).abs().amax(-1)
    scales = torch.where(largest > 0, largest / args.code_max, 1.0)
    return round_int(dense, scales, None, args)


def _block_size(module: str, K: int, args: QuantArgs) -> int:
    if args.group_size is None:
        fits = [size for size in BLOCK_SIZES if K % size == 0]
    else:
        power = args.group_size & -args.group_size  # its largest divisor that is a power of two
        fits = [min(power, 256)] if power >= 16 else []
    if not fits:
        raise CheckpointError(
            f"{module}: in_features {K} in groups of {args.group_size or 'a row'} is no multiple "
            "of 16, which MatMulNBits' blocks are; quantize it with --group-size 32, 64 or 128"
        )
    return fits[0]


def _pack_zeros(zeros: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """Return zero points int8 (N, blocks) packed along the blocks, low bits first."""
    unsigned: torch.Tensor = (zeros.to(torch.int16) + 2 ** (args.bits - 1)).to(torch.uint8)
    if args.bits == 8:
        return unsigned
    if unsigned.shape[1] % 2:
        unsigned = torch.nn.functional.pad(unsigned, (0, 1))
    packed: torch.Tensor = unsigned[:, 0::2] | unsigned[:, 1::2] << 4
    return packed
