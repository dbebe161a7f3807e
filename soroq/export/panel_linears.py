"""Linears, embedding and head as operators of libsoroq_ort, whose weights lie in panels.

    linears = PanelLinears(graph, checkpoint, precision="int8")

The bytes in the file are what `soroq.kernels.panels.pack` makes and what a product reads, without
another copy: an embedding and its head name the same ones. Operators: kernels/cpu/ort/operators.h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soroq.core.scheme import QuantArgs
from soroq.export.blocks import is_rounded_anew, numbers_of, round_to_int8
from soroq.export.graph import SOROQ, GraphBuilder
from soroq.export.linears import Heads, LinearWriter, StoredHead
from soroq.io.checkpoint import Checkpoint
from soroq.kernels.panels import Packable, PanelWeight, RowSource, as_source, pack, pack_pair

# name → precision of products with many tokens, and of those with one or two and of the head
PRECISIONS = {"int8": ("int8", "int16"), "int16": ("int16", "int16"), "exact": ("exact", "exact")}


@dataclass(frozen=True)
class PanelHead(StoredHead):
    """A matrix in panels: its attributes for the nodes that read it."""

    shape: dict[str, int]


@dataclass(frozen=True)
class _Rows:
    """Matrices with the same K one below the other, for `pack`."""

    parts: Sequence[RowSource]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def args(self) -> QuantArgs | None:
        return self.parts[0].args

    @property
    def scale_dtype(self) -> torch.dtype:
        """Return bfloat16 if that holds all parts' scales."""
        kinds = {part.scale_dtype for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def rows(
        self, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        words, scales, zeros = [], [], []
        for part in self.parts:
            N = part.shape[0]
            if start < N and stop > 0:
                word, scale, zero = part.rows(max(start, 0), min(stop, N))
                words.append(word)
                scales += [] if scale is None else [scale.to(self.scale_dtype)]
                zeros += [] if zero is None else [zero]
            start, stop = start - N, stop - N
        return torch.cat(words), _join(scales), _join(zeros)


def _join(parts: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat(parts) if parts else None


class PanelLinears(LinearWriter):
    """Writes panels for int4, int8 and bfloat16 matrices; others as `LinearWriter` does."""

    def __init__(self, graph: GraphBuilder, checkpoint: Checkpoint, *, precision: str) -> None:
        super().__init__(graph, checkpoint, accuracy_level=1)
        self._many, self._few = PRECISIONS[precision]

    def store(self, module: str, name: str) -> StoredHead:
        if not self._fits(module):
            return super().store(module, name)
        weight = pack(self._source(module))
        return PanelHead(None, [self._write(f"{name}/weight", weight)], _shape(weight))

    def embed(self, table: StoredHead, ids: str, scale: float, name: str) -> str:
        if not isinstance(table, PanelHead):
            return super().embed(table, ids, scale, name)
        inputs = [ids, table.tensors[0]]
        return self._graph.node(
            "GatherPanels", inputs, f"{name}/scaled", domain=SOROQ, scale=scale, **table.shape
        )

    def attend(
        self, inputs: Sequence[str], outputs: Sequence[str], heads: Heads, scale: float, window: int
    ) -> str:
        if heads.dim % 16:  # what the kernel takes
            return super().attend(inputs, outputs, heads, scale, window)
        return self._graph.nodes_of(
            "CausalAttention",
            inputs,
            outputs,
            domain=SOROQ,
            num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=scale,
            local_window_size=window,
        )[0]

    def multiply(self, head: StoredHead, x: str, name: str) -> str:
        if not isinstance(head, PanelHead):
            return super().multiply(head, x, name)
        return self._matmul(x, head.tensors[0], head.shape, name, self._few, None)

    def gate(self, gate: str, up: str, x: str, kind: str, name: str) -> str:
        alike = numbers_of(self._weights, gate) == numbers_of(self._weights, up)
        if not (alike and self._fits(gate) and self._fits(up)) or self._bias([gate, up], name):
            return super().gate(gate, up, x, kind, name)
        sources = self._source(gate), self._source(up)
        weight = pack_pair(*sources)
        return self._graph.node(
            "GatedPanels",
            [x, self._write(f"{name}/gate_up/weight", weight)],
            f"{name}/gated",
            domain=SOROQ,
            activation=kind,
            rows=sources[0].shape[0],
            precision=self._many,
            few_precision=self._few,
            **_shape(weight),
        )

    def _product(self, modules: Sequence[str], x: str, name: str) -> str:
        if not all(self._fits(module) for module in modules):
            return super()._product(modules, x, name)
        weight = pack(_Rows([self._source(module) for module in modules]))
        panels = self._write(f"{name}/weight", weight)
        return self._matmul(x, panels, _shape(weight), name, self._many, self._bias(modules, name))

    def _matmul(
        self, x: str, panels: str, shape: dict[str, int], name: str, many: str, bias: str | None
    ) -> str:
        return self._graph.node(
            "MatMulPanels",
            [x, panels] if bias is None else [x, panels, bias],
            name,
            domain=SOROQ,
            precision=many,
            few_precision=self._few,
            **shape,
        )

    def _fits(self, module: str) -> bool:
        """Tell whether panels hold a matrix as it is: not if it is float32 or float16."""
        if module in self._weights.quantized:
            return True
        return self._checkpoint.info(f"{module}.weight").dtype == torch.bfloat16

    def _source(self, module: str) -> RowSource:
        matrix: Packable = self._weights.open(module)
        if is_rounded_anew(self._weights, module):
            self.rounded_anew.append(module)
            args, _ = numbers_of(self._weights, module)
            assert args is not None
            matrix = round_to_int8(self._weights.load_quantized(module)[0], args)
        return as_source(matrix)

    def _write(self, name: str, weight: PanelWeight) -> str:
        return self._graph.weight(name, weight.data, torch.uint8)


def _shape(weight: PanelWeight) -> dict[str, Any]:
    """Return a weight's shape as attributes."""
    return {
        "N": weight.N,
        "K": weight.K,
        "bits": weight.bits,
        "group_size": weight.group,
        "symmetric": int(weight.symmetric),
        "bf16_scales": int(weight.scale_dtype == torch.bfloat16),
    }
