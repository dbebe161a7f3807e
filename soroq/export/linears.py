"""Linears, embedding and head of a checkpoint as nodes: quantized ones stay quantized.

    linears = LinearWriter(graph, checkpoint, accuracy_level=4)
    q, k, v = linears.project(["…q_proj", "…k_proj", "…v_proj"], x, "layers.0/qkv")

Linears that read the same input and have the same numbers become one product, one below the other,
and its result is split: fewer, larger products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soroq.export.blocks import BlockedMatrix, is_rounded_anew, numbers_of, read_blocks
from soroq.export.graph import MICROSOFT, GraphBuilder
from soroq.io.checkpoint import Checkpoint
from soroq.io.stored import StoredWeights


@dataclass(frozen=True)
class StoredHead:
    """A matrix (V, hidden) in a graph: names of its words, scales and zero points, or its values.

    matrix: what it is made of, None if it isn't quantized.
    """

    matrix: BlockedMatrix | None
    tensors: list[str]


@dataclass(frozen=True)
class Heads:
    """Of an attention: how many queries and keys, and their length."""

    queries: int
    keys: int
    dim: int


class LinearWriter:
    """Writes matrices to a graph's data and the nodes that multiply by them.

    accuracy_level: MatMulNBits' own: 4 rounds activations to int8 per token and block, 1 computes
    in float32. largest_block: columns for which activations share a scale, and so weights too, of
    which a larger group's lie in several blocks. rounded_anew: modules whose float8 became int8.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        checkpoint: Checkpoint,
        *,
        accuracy_level: int,
        largest_block: int = 256,
    ) -> None:
        self._graph, self._checkpoint, self._level = graph, checkpoint, accuracy_level
        self._largest = largest_block
        self._weights = StoredWeights(checkpoint)
        self._names = set(checkpoint.names())
        self.rounded_anew: list[str] = []

    def has(self, module: str) -> bool:
        """Tell whether the checkpoint has a weight of this module."""
        return f"{module}.weight" in self._names or module in self._weights.quantized

    def project(self, modules: Sequence[str], x: str, name: str) -> list[str]:
        """Return each module's product with x (B, S, K)."""
        kinds = {numbers_of(self._weights, module) for module in modules}
        if len(kinds) > 1 or len(modules) == 1:
            return [self._product([m], x, f"{name}/{m.rpartition('.')[2]}") for m in modules]
        sizes = [self._weights.open(module).shape[0] for module in modules]
        merged = self._product(modules, x, name)
        outputs = [f"{name}/{module.rpartition('.')[2]}" for module in modules]
        return self._graph.nodes_of(
            "Split", [merged, self._graph.constant(sizes)], outputs, axis=-1
        )

    def store(self, module: str, name: str) -> StoredHead:
        """Write an embedding or a head, for `embed` and `multiply`; both, where they are tied."""
        if module in self._weights.quantized:
            matrix = self._read([module])
            words, scales, zeros = self._store(f"{name}/weight", matrix)
            return StoredHead(matrix, [words, scales, *zeros])
        matrix_rows = self._weights.open(module)
        rows = matrix_rows.rows(0, matrix_rows.shape[0])[0]
        return StoredHead(None, [self._graph.weight(f"{name}/weight", rows)])

    def embed(self, table: StoredHead, ids: str, scale: float, name: str) -> str:
        """Return rows of an embedding for ids (B, S), times `scale`.

        A quantized one is gathered from the very bytes that the head multiplies by: the same place
        in the file under two shapes, since the two operators want different ones.
        """
        graph, matrix = self._graph, table.matrix
        if matrix is None:
            found = graph.node("Gather", [table.tensors[0], ids], f"{name}/gather")
        else:
            words, *others = table.tensors
            flat = (matrix.N, matrix.K * matrix.bits // 8)
            found = graph.node(
                "GatherBlockQuantized",
                [graph.view(f"{name}/weight/rows", words, flat), ids, *others],
                f"{name}/gather",
                domain=MICROSOFT,
                bits=matrix.bits,
                block_size=matrix.block_size,
                gather_axis=0,
                quantize_axis=1,
            )
        if scale == 1.0:
            return found
        return graph.node("Mul", [found, graph.scalar(f"{name}/scale", scale)], f"{name}/scaled")

    def gate(self, gate: str, up: str, x: str, kind: str, name: str) -> str:
        """Return act(x · gateᵀ) · (x · upᵀ) (B, S, F) of two modules; kind: gelu (tanh) or silu."""
        graph = self._graph
        first, second = self.project([gate, up], x, f"{name}/gate_up")
        if kind == "gelu":
            first = graph.node("FastGelu", [first], f"{name}/gelu", domain=MICROSOFT)
        else:
            first = graph.node("QuickGelu", [first], f"{name}/silu", domain=MICROSOFT, alpha=1.0)
        return graph.node("Mul", [first, second], f"{name}/gated")

    def attend(
        self, inputs: Sequence[str], outputs: Sequence[str], heads: Heads, scale: float, window: int
    ) -> str:
        """Return what tokens gather from those before them (B, S, heads · D), and write the caches.

        inputs: q, k, v (B, S, · D), both caches (B, kv_heads, P, D), each row's last position int32
        (B,), the cache's length with these tokens int32 (1,); outputs: the result, both caches.
        window: how many positions a token sees, its own included; 0 for all.
        """
        return self._graph.nodes_of(
            "GroupQueryAttention",
            inputs,
            outputs,
            domain=MICROSOFT,
            num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=scale,
            do_rotary=0,
            **({"local_window_size": window} if window else {}),
        )[0]

    def multiply(self, head: StoredHead, x: str, name: str) -> str:
        """Return x times a head."""
        return self._multiply(head.matrix, head.tensors, x, name, None)

    def _product(self, modules: Sequence[str], x: str, name: str) -> str:
        bias = self._bias(modules, name)
        if modules[0] in self._weights.quantized:
            matrix = self._read(modules)
            words, scales, zeros = self._store(f"{name}/weight", matrix)
            return self._multiply(matrix, [words, scales, *zeros], x, name, bias)
        parts = [self._weights.open(module) for module in modules]
        tensors = [part.rows(0, part.shape[0])[0] for part in parts]
        shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
        weight = self._graph.weight_of(f"{name}/weight", tensors, shape)
        return self._multiply(None, [weight], x, name, bias)

    def _multiply(
        self,
        matrix: BlockedMatrix | None,
        tensors: Sequence[str],
        x: str,
        name: str,
        bias: str | None,
    ) -> str:
        graph = self._graph
        if matrix is None:
            y = self._multiply_float(tensors[0], x, name if bias is None else f"{name}/product")
            return y if bias is None else graph.node("Add", [y, bias], name)
        inputs = [x, *tensors]
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        return graph.node(
            "MatMulNBits",
            inputs,
            name,
            domain=MICROSOFT,
            K=matrix.K,
            N=matrix.N,
            bits=matrix.bits,
            block_size=matrix.block_size,
            accuracy_level=self._level,
        )

    def _multiply_float(self, weight: str, x: str, name: str) -> str:
        """Multiply by a weight (N, K) as it is stored: FusedMatMul turns it, without a copy."""
        graph = self._graph
        if graph.compute == torch.float32:
            return graph.node("FusedMatMul", [x, weight], name, domain=MICROSOFT, transB=1)
        turned = graph.node("Transpose", [weight], f"{name}/turned", perm=[1, 0])
        return graph.node("MatMul", [x, turned], name)

    def _store(self, name: str, matrix: BlockedMatrix) -> tuple[str, str, list[str]]:
        """Write a matrix's tensors; return the names of its words, scales and zero points."""
        graph = self._graph
        width = matrix.block_size * matrix.bits // 8
        shape = (matrix.N, matrix.n_blocks, width)
        words = graph.weight_of(f"{name}/codes", matrix.words, shape, torch.uint8)
        groups = matrix.scales[0].shape[1]
        if matrix.repeats == 1:
            scales = graph.weight_of(f"{name}/scales", matrix.scales, (matrix.N, groups))
        else:  # ONNX Runtime writes them out when it loads
            shape = (matrix.N, groups, 1)
            scales = graph.weight_of(f"{name}/scales", matrix.scales, shape)
            wide = graph.constant([matrix.N, groups, matrix.repeats])
            scales = graph.node("Expand", [scales, wide], f"{name}/scales/wide")
            flat = graph.constant([matrix.N, matrix.n_blocks])
            scales = graph.node("Reshape", [scales, flat], f"{name}/scales/blocks")
        if matrix.zeros is None:
            return words, scales, []
        columns = matrix.zeros[0].shape[1]
        zeros = graph.weight_of(f"{name}/zeros", matrix.zeros, (matrix.N, columns), torch.uint8)
        return words, scales, [zeros]

    def _read(self, modules: Sequence[str]) -> BlockedMatrix:
        self.rounded_anew += [m for m in modules if is_rounded_anew(self._weights, m)]
        return read_blocks(self._weights, modules, self._largest)

    def _bias(self, modules: Sequence[str], name: str) -> str | None:
        found = [f"{module}.bias" in self._names for module in modules]
        if not any(found):
            return None
        parts = []
        for module, there in zip(modules, found, strict=True):
            N = self._weights.open(module).shape[0]
            part: Any = self._checkpoint.load(f"{module}.bias") if there else None
            parts.append(torch.zeros(N) if part is None else part.float())
        return self._graph.weight(f"{name}/bias", torch.cat(parts))
