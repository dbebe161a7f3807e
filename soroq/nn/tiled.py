"""Linears and embeddings whose weights lie in tiles: what a model on a GPU is made of.

One tiled copy serves every product and the embedding's gather (`soroq.kernels.tiles`).
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor, interleave_rows, stack_rows
from soroq.kernels.tiles import TiledWeight, objection, tile
from soroq.nn.linear import PackedEmbedding, PackedLinear
from soroq.nn.panels import name_activation


class TiledLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ (N, K) int4 or int8 in tiles, scales in `dtype`.

    Raises ValueError when the weight doesn't fit tiles.
    """

    def __init__(
        self,
        quantized: QuantizedTensor,
        *,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        weight = tile(quantized)
        self.out_features, self.in_features = weight.N, weight.K
        self.group, self.bits = weight.group, weight.bits
        self.register_buffer("tiles", weight.tiles)
        self.register_buffer("scales", weight.scales.to(dtype) if dtype else weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.register_buffer("bias", bias)
        self.tiles: torch.Tensor
        self.scales: torch.Tensor
        self.zeros: torch.Tensor | None
        self.bias: torch.Tensor | None

    @property
    def weight(self) -> TiledWeight:
        """The tiles and what belongs to them, wherever the module's buffers are."""
        return TiledWeight(
            self.tiles,
            self.scales,
            self.zeros,
            self.out_features,
            self.in_features,
            self.group,
            self.bits,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K), in x's dtype."""
        from soroq.kernels import dispatch

        y = dispatch.matmul_tiles(x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        group = "row" if self.group == self.in_features else self.group
        return f"in={self.in_features}, out={self.out_features}, int{self.bits}, group={group}"


class TiledEmbedding(nn.Module):
    """Rows of a tiled matrix (vocabulary, hidden) in `dtype`, times `scale`."""

    def __init__(self, shared: TiledLinear, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.shared, self.scale, self.dtype = shared, scale, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for token ids (…)."""
        from soroq.kernels import dispatch

        return dispatch.gather_tiles(ids, self.shared.weight, self.dtype) * self.scale


class TiledGeGLU(nn.Module):
    """down(gelu(gate x) · up x) with gate and up in one weight: one launch instead of four.

    The gate's and the up projection's rows alternate, so that a program has both in registers.
    """

    def __init__(
        self,
        gate: QuantizedTensor,
        up: QuantizedTensor,
        down: nn.Module,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_up = TiledLinear(interleave_rows(gate, up), dtype=dtype)
        self.down_proj = down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for x (…, hidden)."""
        from soroq.kernels import dispatch

        hidden: torch.Tensor = self.down_proj(dispatch.geglu_tiles(x, self.gate_up.weight))
        return hidden


class StackedLinears(nn.Module):
    """Several linears of one input as one product: q, k and v in one launch instead of three.

    linear: all of them, rows one behind the other; widths: rows of each. `parts` are modules to put
    in the linears' places. The first one called with an input multiplies for all, the others take
    their columns; the last one in order lets the result go.
    """

    def __init__(self, linear: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.linear, self._widths = linear, list(widths)
        self._x: torch.Tensor | None = None
        self._y: torch.Tensor | None = None

    def parts(self) -> list["StackedPart"]:
        """Return the modules that stand for the linears; the first one owns this stack."""
        return [StackedPart(self, index, owner=index == 0) for index in range(len(self._widths))]

    def columns(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return part `index` of the product with x (…, K), a view of all of it."""
        if self._x is not x or self._y is None:
            self._x, self._y = x, self.linear(x)
        start = sum(self._widths[:index])
        y = self._y[..., start : start + self._widths[index]]
        if index == len(self._widths) - 1:
            self._x = self._y = None
        return y


class StackedPart(nn.Module):
    """One linear of a StackedLinears."""

    def __init__(self, stack: StackedLinears, index: int, *, owner: bool) -> None:
        super().__init__()
        if owner:
            self.stack = stack  # a submodule: moves with .to() and lies in the state
        object.__setattr__(self, "_stack", stack)
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K)."""
        stack: StackedLinears = self._stack  # type: ignore[assignment]
        return stack.columns(x, self._index)


class TiledStack(StackedLinears):
    """Linears of one input whose weights lie in tiles, one behind the other."""

    def __init__(
        self,
        weights: Sequence[QuantizedTensor],
        biases: Sequence[torch.Tensor | None],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        bias = None
        if any(b is not None for b in biases):
            pairs = zip(biases, weights, strict=True)
            bias = torch.cat([torch.zeros(w.shape[0]) if b is None else b for b, w in pairs])
        linear = TiledLinear(stack_rows(weights), bias=bias, dtype=dtype)
        super().__init__(linear, [weight.shape[0] for weight in weights])


def tile_model(
    model: nn.Module,
    groups: Sequence[Sequence[str]],
    dtype: torch.dtype,
    *,
    decoder: str = "model",
) -> None:
    """Put every packed int4 and int8 weight of a causal model into tiles, scales in `dtype`.

    groups: paths in a block of linears that read the same input; alike ones become one product, a
    gate and an up projection with a GELU between them one launch with it. What doesn't fit tiles
    stays as it is. decoder: the path of what holds `layers` and `embed_tokens`.
    """
    holder = model.get_submodule(decoder)
    for block in holder.get_submodule("layers").children():
        for group in groups:
            _tile_group(block, group, dtype)
    embedding = holder.get_submodule("embed_tokens")
    if isinstance(embedding, PackedEmbedding) and _fits(embedding.packed):
        shared = TiledLinear(embedding.packed.quantized(), dtype=dtype)
        put(holder, "embed_tokens", TiledEmbedding(shared, embedding.scale, embedding.dtype))
        if hasattr(model, "lm_head"):
            put(model, "lm_head", shared)


def _tile_group(block: nn.Module, group: Sequence[str], dtype: torch.dtype) -> None:
    packed = [module for path in group if _fits(module := block.get_submodule(path))]
    weights = [module.quantized() for module in packed]
    biases = [module.bias for module in packed]
    alike = len(packed) == len(group) > 1 and all(w.args == weights[0].args for w in weights)
    names = [path.rpartition(".")[2] for path in group]
    if alike and names == ["gate_proj", "up_proj"] and not any(b is not None for b in biases):
        path = group[0].rpartition(".")[0]
        mlp = block.get_submodule(path)
        if name_activation(getattr(mlp, "act_fn", None)) == "gelu":
            down = mlp.get_submodule("down_proj")
            put(block, path, TiledGeGLU(weights[0], weights[1], down, dtype=dtype))
            return
    if alike:
        for path, part in zip(group, TiledStack(weights, biases, dtype=dtype).parts(), strict=True):
            put(block, path, part)
        return
    for path in group:
        module = block.get_submodule(path)
        if _fits(module):
            put(block, path, TiledLinear(module.quantized(), bias=module.bias, dtype=dtype))


def _fits(module: nn.Module) -> TypeGuard[PackedLinear]:
    if not isinstance(module, PackedLinear) or module.args.dtype != "int":
        return False
    return not objection(module.in_features, module.args.group_size)


def put(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
