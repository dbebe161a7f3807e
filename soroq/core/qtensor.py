"""The canonical, unpacked quantized matrix: what every layout packs and every kernel means."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soroq.core.scheme import FP8_MAX, QuantArgs


@dataclass(frozen=True)
class QuantizedTensor:
    """One matrix W (N, K) ≈ (codes − zeros) · scales.

    codes: int8 (N, K), or float8_e4m3fn (N, K) for float schemes.
    scales: (N, K // G), or (⌈N/bn⌉, ⌈K/bk⌉) with `args.block`; the dtype is the stored one.
    zeros: int8 (N, K // G) in code units, None if symmetric; float64 where they are no integers
    (HQQ), which neither kernels nor other formats take.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    args: QuantArgs

    def __post_init__(self) -> None:
        N, K = self.codes.shape
        if self.args.block is not None:
            bn, bk = self.args.block
            want = (-(-N // bn), -(-K // bk))
        else:
            want = (N, K // (self.args.group_size or K))
        if tuple(self.scales.shape) != want:
            raise ValueError(f"scales are {tuple(self.scales.shape)}, codes {N, K} need {want}")
        if self.zeros is not None and self.zeros.shape != self.scales.shape:
            raise ValueError(f"zeros are {tuple(self.zeros.shape)}, scales {want}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def has_real_zeros(self) -> bool:
        """Whether zero points are held as numbers between the integers."""
        return self.zeros is not None and self.zeros.is_floating_point()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return W (N, K): the product is taken in float32 and rounded once, to `dtype`.

        codes − zeros is rounded to float32 before, which changes only real zero points.
        """
        codes = self.codes.float()
        if self.args.block is not None:
            return (codes * expand_blocks(self.scales.float(), self.shape, self.args)).to(dtype)
        group = self.codes.shape[1] // self.scales.shape[1]
        codes = codes.view(codes.shape[0], -1, group)
        if self.zeros is not None and self.has_real_zeros:
            codes = (codes.double() - self.zeros[..., None]).float()
        elif self.zeros is not None:
            codes = codes - self.zeros.float()[..., None]
        return (codes * self.scales.float()[..., None]).view(self.shape).to(dtype)


def take_rows(whole: QuantizedTensor, rows: slice | torch.Tensor) -> QuantizedTensor:
    """Return some rows of a matrix: a slice, without a copy, or indices (n,).

    A matrix of blocks gives only slices that begin where a block does; ValueError for others.
    """
    scales: slice | torch.Tensor = rows
    if whole.args.block is not None:
        bn = whole.args.block[0]
        if not isinstance(rows, slice) or rows.step is not None or (rows.start or 0) % bn:
            raise ValueError(f"{rows} does not begin with a block of {bn} rows")
        scales = slice(rows.start and rows.start // bn, rows.stop and -(-rows.stop // bn))
    zeros = None if whole.zeros is None else whole.zeros[scales]
    return QuantizedTensor(whole.codes[rows], whole.scales[scales], zeros, whole.args)


def stack_rows(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Return one matrix with the rows of all parts, one part behind the other.

    Raises ValueError unless all have the same arguments and zero points or none.
    """
    _refuse_unlike(parts)
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedTensor(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        parts[0].args,
    )


def interleave_rows(even: QuantizedTensor, odd: QuantizedTensor) -> QuantizedTensor:
    """Return one matrix whose rows 2i are those of `even` and 2i + 1 those of `odd`, both (N, K).

    Raises ValueError when they differ in more than their values.
    """
    _refuse_unlike((even, odd))
    if even.shape != odd.shape:
        raise ValueError(f"rows of {even.shape} and {odd.shape} can't alternate")
    zeros = None
    if even.zeros is not None and odd.zeros is not None:
        zeros = torch.stack([even.zeros, odd.zeros], 1).flatten(0, 1)
    return QuantizedTensor(
        torch.stack([even.codes, odd.codes], 1).flatten(0, 1),
        torch.stack([even.scales, odd.scales], 1).flatten(0, 1),
        zeros,
        even.args,
    )


def _refuse_unlike(parts: Sequence[QuantizedTensor]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.args != first.args or (part.zeros is None) != (first.zeros is None):
            raise ValueError(f"{first.args} and {part.args} can't be one matrix")
        if part.shape[1] != first.shape[1]:
            raise ValueError(f"rows of {first.shape[1]} and {part.shape[1]} can't be one matrix")


def expand_blocks(scales: torch.Tensor, shape: tuple[int, int], args: QuantArgs) -> torch.Tensor:
    """Repeat block scales (⌈N/bn⌉, ⌈K/bk⌉) to a full (N, K) matrix."""
    assert args.block is not None
    bn, bk = args.block
    full = scales.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    return full[: shape[0], : shape[1]]


def round_int(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, args: QuantArgs
) -> QuantizedTensor:
    """Round W (N, K) to the nearest code of given scales and zeros, half to even."""
    N, K = weight.shape
    group = K // scales.shape[1]
    codes = (weight.float().view(N, -1, group) / scales.float()[..., None]).round()
    if zeros is not None:
        codes = codes + zeros.float()[..., None]
    codes = codes.clamp(args.code_min, args.code_max).to(torch.int8).view(N, K)
    return QuantizedTensor(codes, scales, zeros, args)


def round_float8(weight: torch.Tensor, scales: torch.Tensor, args: QuantArgs) -> QuantizedTensor:
    """Round W (N, K) to float8_e4m3fn after division by its scales, saturating at ±448."""
    if args.block is not None:
        full = expand_blocks(scales.float(), (weight.shape[0], weight.shape[1]), args)
    else:
        full = scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    codes = (weight.float() / full).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return QuantizedTensor(codes, scales, None, args)
