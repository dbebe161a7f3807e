"""`soroq-p64`: weights in panels of 64 rows that a CPU reads in a straight line, for every M.

    W (N, K) = (codes − zeros) · scales, int4 or int8 in groups along K, or plain bfloat16

The bytes are the same on every instruction set; kernels/cpu/csrc/panels.h writes each of them out.
Packing is exact: `unpack` gives back the codes, scales and zero points bit for bit.

    >>> weight = pack(quantized)                      # a QuantizedTensor, or a bfloat16 matrix
    >>> y = soroq.kernels.dispatch.matmul_panels(x, weight, precision="int8")
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch

from soroq.core.packing import pack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs

PANEL = 64
MAX_CHUNK = 128
LAYOUT = "soroq-p64"
_SLICE_ROWS = 4096  # rows packed at a time: a multiple of PANEL


@cache
def is_built() -> bool:
    """Tell whether soroq._cpu was compiled: a bare checkout runs without it."""
    import importlib.util

    return importlib.util.find_spec("soroq._cpu") is not None


@dataclass(frozen=True)
class PanelWeight:
    """W (N, K) in the layout above, in memory of its own.

    data: uint8 (bytes,), on a 64-byte boundary, in huge pages where the system gives them. bits: 4,
    8 or 16 (bfloat16, no scales). group: columns that share a scale. gated: the columns of a gated
    product, for a gate and an up projection whose panels alternate; otherwise None.
    """

    data: torch.Tensor
    N: int
    K: int
    bits: int
    group: int
    symmetric: bool
    scale_dtype: torch.dtype
    gated: int | None = None
    handle: Any = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of the weight."""
        return self.data.numel()

    @property
    def chunk(self) -> int:
        """Columns of a chunk, padding included."""
        parts = -(-self.group // MAX_CHUNK)
        return (-(-self.group // parts) + 7) // 8 * 8

    def chunks(self) -> list[tuple[int, int]]:
        """Return each chunk's first column and the one behind its last."""
        parts = -(-self.group // MAX_CHUNK)
        spans = []
        for group in range(-(-self.K // self.group)):
            for part in range(parts):
                start = min(group * self.group + part * self.chunk, self.K)
                end = min((group + 1) * self.group, start + self.chunk, self.K)
                spans.append((start, end))
        return spans


class RowSource(Protocol):
    """A matrix (N, K) that hands out its rows as they are stored.

    args: None for bfloat16 values. scale_dtype: of the scales, if there are any.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def args(self) -> QuantArgs | None: ...

    @property
    def scale_dtype(self) -> torch.dtype: ...

    def rows(
        self, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return rows start to stop: words as `core.packing.pack_rows`, scales, int8 zeros or None.

        Without args: floating values and None twice.
        """
        ...


Packable = RowSource | QuantizedTensor | torch.Tensor


@dataclass(frozen=True)
class _Quantized:
    weight: QuantizedTensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @property
    def args(self) -> QuantArgs:
        return self.weight.args

    @property
    def scale_dtype(self) -> torch.dtype:
        return self.weight.scales.dtype

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        part = slice(start, stop)
        zeros = None if self.weight.zeros is None else self.weight.zeros[part]
        words = pack_rows(self.weight.codes[part], self.weight.args.bits)
        return words, self.weight.scales[part], zeros


@dataclass(frozen=True)
class _Values:
    weight: torch.Tensor
    args: None = None
    scale_dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, None, None]:
        return self.weight[start:stop], None, None


def _source(weight: Packable) -> RowSource:
    if isinstance(weight, torch.Tensor):
        return _Values(weight)
    return _Quantized(weight) if isinstance(weight, QuantizedTensor) else weight


def pack(weight: Packable) -> PanelWeight:
    """Return int4, int8 or bfloat16 W (N, K) in panels; floating values are rounded to bfloat16.

    Raises ValueError for float8.
    """
    source = _source(weight)
    N, K = source.shape
    panels = _empty_for(source, N, K)
    for start in range(0, N, _SLICE_ROWS):  # a head's rows at once would take gigabytes
        _copy_rows(source, start, min(start + _SLICE_ROWS, N), panels, start)
    return panels


def pack_pair(gate: Packable, up: Packable) -> PanelWeight:
    """Return gate and up (F, K), alike but for their values, as one weight for a gated product.

    Raises ValueError when they aren't alike.
    """
    first, second = _source(gate), _source(up)
    if first.shape != second.shape or first.args != second.args:
        raise ValueError(
            f"gate {first.shape} {first.args} and up {second.shape} {second.args} aren't alike"
        )
    F, K = first.shape
    panels = _empty_for(first, 2 * -(-F // PANEL) * PANEL, K, gated=F)
    for start in range(0, F, PANEL):
        stop = min(start + PANEL, F)
        _copy_rows(first, start, stop, panels, 2 * start)
        _copy_rows(second, start, stop, panels, 2 * start + PANEL)
    return panels


def _empty_for(source: RowSource, N: int, K: int, *, gated: int | None = None) -> PanelWeight:
    args = source.args
    if args is None:
        return empty_panels(N, K, 16, None, True, torch.bfloat16, gated=gated)
    if args.dtype != "int" or args.bits not in (4, 8):
        raise ValueError(f"{LAYOUT} holds int4, int8 and bfloat16, not {args.dtype}{args.bits}")
    return empty_panels(
        N, K, args.bits, args.group_size, args.symmetric, source.scale_dtype, gated=gated
    )


def _copy_rows(source: RowSource, start: int, stop: int, panels: PanelWeight, first: int) -> None:
    words, scales, zeros = source.rows(start, stop)
    if scales is None:
        panels.handle.fill(first, words.to(torch.bfloat16).contiguous())
        return
    panels.handle.fill(
        first,
        words.contiguous(),
        scales.to(panels.scale_dtype).contiguous(),
        None if zeros is None else zeros.contiguous(),
    )


def empty_panels(
    N: int,
    K: int,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    scale_dtype: torch.dtype,
    *,
    gated: int | None = None,
) -> PanelWeight:
    """Return panels of zeros; scales in float16 are kept in float32."""
    from soroq import _cpu

    group = group_size or K
    kept = torch.bfloat16 if scale_dtype == torch.bfloat16 else torch.float32
    shape = (N, K, bits, group, symmetric, kept == torch.bfloat16)
    data = torch.from_numpy(_cpu.allocate(_cpu.panel_bytes(*shape)))
    handle = _cpu.Panels(data, *shape)
    # Packing comes in slices, which other threads may write than will read them.
    handle.touch(gated is not None)
    return PanelWeight(data, N, K, bits, group, symmetric, kept, gated, handle)


def unpack(weight: PanelWeight) -> QuantizedTensor:
    """Invert `pack` for int4 and int8; rows that only fill a panel of a pair come back as zeros."""
    from soroq import _cpu

    codes = torch.empty(weight.N, weight.K, dtype=torch.int8)
    shape = (weight.N, -(-weight.K // weight.group))
    scales = torch.empty(shape, dtype=weight.scale_dtype)
    zeros = None if weight.symmetric else torch.empty(shape, dtype=torch.int8)
    _cpu.unpack_panels(weight.handle, 0, codes, scales, zeros)
    group_size = None if weight.group == weight.K else weight.group
    args = QuantArgs(bits=weight.bits, group_size=group_size, symmetric=weight.symmetric)
    return QuantizedTensor(codes, scales, zeros, args)


def read_codes(
    weight: PanelWeight,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Read the layout in plain torch: what the bytes mean, for the reference and the tests.

    Returns codes (N, K) without their offset, scales and zeros (N, chunks); or the bfloat16 values
    and None twice.
    """
    spans = weight.chunks()
    n_panels, width = -(-weight.N // PANEL), weight.chunk
    panels = weight.data.view(n_panels, len(spans), -1)
    code_bytes = width * PANEL * weight.bits // 8
    raw = panels[..., :code_bytes]
    if weight.bits == 16:
        values = raw.contiguous().view(torch.bfloat16).view(n_panels, len(spans), width, PANEL)
        columns = values.permute(0, 3, 1, 2).reshape(n_panels * PANEL, len(spans), width)
        return _join(columns, spans)[: weight.N], None, None
    if weight.bits == 4:
        quads = raw.view(n_panels, len(spans), width // 8, PANEL, 1, 4)
        codes = torch.cat([quads & 15, quads >> 4], -2).flatten(-2)
    else:
        codes = raw.view(n_panels, len(spans), width // 4, PANEL, 4)
    # (panel, chunk, step, row, column of the step) → (row, chunk, column)
    columns = codes.permute(0, 3, 1, 2, 4).reshape(n_panels * PANEL, len(spans), width)
    offset = 1 << (weight.bits - 1)
    item = weight.scale_dtype.itemsize
    stored = panels[..., code_bytes : code_bytes + PANEL * item].contiguous()
    scales = stored.view(weight.scale_dtype).view(n_panels, len(spans), PANEL)
    zeros = torch.zeros(n_panels, len(spans), PANEL, dtype=torch.int16)
    if not weight.symmetric:
        zeros = panels[..., code_bytes + PANEL * item :].to(torch.int16) - offset
    return (
        _join(columns.to(torch.int16) - offset, spans)[: weight.N],
        scales.permute(0, 2, 1).flatten(0, 1)[: weight.N],
        zeros.permute(0, 2, 1).flatten(0, 1)[: weight.N],
    )


def _join(columns: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    parts = [columns[:, i, : stop - start] for i, (start, stop) in enumerate(spans)]
    return torch.cat(parts, 1)
