"""Order channels so that those with weights of like size share a group; the function stays.

A group's step is set by its largest weights, so small weights beside large ones are stored badly.
Three kinds of channels can stand in any order if everything that writes and reads them agrees: the
MLP's inner ones (rows of gate and up, columns of down), those within a head (rows of v, columns of
o), and the residual stream's (embedding, head, norms, every linear's columns or rows). Each is
sorted by the root mean square of the columns that read it. Sorting for this purpose: GPTQ's
act_order sorts too, but keeps groups apart from memory order (g_idx); here memory order changes
and no reader needs to know.

    order = find_order(checkpoint, layout, recipe)
    ordered = ReorderedCheckpoint(checkpoint, order)     # hands out reordered tensors
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from soroq.core.errors import CheckpointError
from soroq.core.recipe import Recipe, recipe_from_json
from soroq.io.checkpoint import Checkpoint, TensorInfo
from soroq.manifest import Manifest
from soroq.models.architecture import DecoderLayout, Edge

SLICE_ROWS = 8192  # rows of a matrix that are reordered at a time


@dataclass
class ChannelOrder:
    """Where each channel goes: a tensor's name → old indices (n,) int64 of its rows or columns.

    Row i of a reordered tensor is row rows[name][i] of the original; vectors have rows only.
    """

    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def sha256(self) -> str:
        """Return a hash of all indices by name."""
        digest = hashlib.sha256()
        for kind, orders in (("rows", self.rows), ("columns", self.columns)):
            for name in sorted(orders):
                digest.update(f"{kind}:{name}:".encode() + orders[name].numpy().tobytes())
        return digest.hexdigest()


class ReorderedCheckpoint(Checkpoint):
    """Another checkpoint with its channels in another order; everything else is the other's.

    sha256 is the other's too: together with the recipe it decides the order.
    """

    def __init__(self, original: Checkpoint, order: ChannelOrder) -> None:
        self.path, self.config = original.path, original.config
        self._original, self.order = original, order

    def names(self) -> list[str]:
        return self._original.names()

    def info(self, name: str) -> TensorInfo:
        return self._original.info(name)

    def _load(self, name: str) -> torch.Tensor:
        tensor = self._original.load(name, check=False)
        rows, columns = self.order.rows.get(name), self.order.columns.get(name)
        if rows is not None:
            tensor = tensor[rows]
        if columns is not None:
            for part in tensor.split(SLICE_ROWS):
                part.copy_(part[:, columns])
        return tensor

    def _load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        order, columns = self.order.rows.get(name), self.order.columns.get(name)
        found = self._original.load_rows(name, rows if order is None else order[rows])
        return found if columns is None else found[:, columns]

    def _hash(self) -> str:
        return self._original.sha256()

    def copy_side_files(self, out: Path) -> None:
        self._original.copy_side_files(out)


def reordered(checkpoint: Checkpoint, layout: DecoderLayout, recipe: Recipe) -> Checkpoint:
    """Return the checkpoint as `recipe` wants it: itself, or with its channels in order."""
    if not recipe.scheme.reordered:
        return checkpoint
    order = find_order(checkpoint, layout, recipe)
    return ReorderedCheckpoint(checkpoint, order) if order.rows or order.columns else checkpoint


def ordered_like(original: Checkpoint, layout: DecoderLayout, made: Manifest | None) -> Checkpoint:
    """Return the original with its channels where the checkpoint that was made of it has them.

    made: that checkpoint's manifest. Raises CheckpointError when it was made of another original.
    """
    if made is None or made.reordered is None:
        return original
    order = find_order(original, layout, recipe_from_json(json.dumps(made.recipe)))
    if order.sha256() != made.reordered:
        raise CheckpointError(
            f"{original.path}: its channels don't sort as those of {made.source} did when it was "
            "quantized; give the checkpoint that was quantized"
        )
    return ReorderedCheckpoint(original, order)


def find_order(checkpoint: Checkpoint, layout: DecoderLayout, recipe: Recipe) -> ChannelOrder:
    """Return the order of channels that suits the groups of `recipe`; reads every linear once.

    Only linears quantized in groups have a say. The residual stream keeps its order where there are
    tensors outside the decoder (a vision tower, which writes into it). Raises CheckpointError for
    matrices whose shapes don't fit each other.
    """
    order = ChannelOrder()
    edges = layout.architecture.edges
    sizes: list[torch.Tensor] = []
    for index in range(layout.n_blocks):
        prefix = layout.block(index) + "."
        groups = {
            path: scheme.weight.group_size
            for path in layout.architecture.linears
            if (scheme := recipe.scheme_for(prefix + path)) is not None
        }
        for edge in edges:
            _check_edge(edge, checkpoint, layout, prefix)
            for path in edge.targets:
                group = groups.get(path)
                if group is None:
                    continue
                size = _column_sizes(checkpoint.load(f"{prefix}{path}.weight"))
                if edge.kind == "norm":
                    sizes.append(size)
                    continue
                n_rows = checkpoint.info(f"{prefix}{edge.source}.weight").shape[0]
                if edge.gate is not None:
                    rows = columns = size.argsort(stable=True)
                elif layout.head_dim > group:
                    rows, columns = _order_in_heads(size, n_rows, layout.head_dim)
                else:
                    continue
                _order_edge_(order, edge, rows, columns, checkpoint, prefix)
    if sizes and all(_in_decoder(name, layout) for name in checkpoint.names()):
        _order_stream_(order, torch.stack(sizes).mean(0).argsort(stable=True), checkpoint, layout)
    return order


def _in_decoder(name: str, layout: DecoderLayout) -> bool:
    """Whether a tensor is one that the order of the stream knows."""
    blocks = tuple(layout.block(index) + "." for index in range(layout.n_blocks))
    ends = (layout.embedding, f"{layout.prefix}norm.weight")
    return name.startswith(blocks) or name in ends or name.endswith("lm_head.weight")


def _check_edge(edge: Edge, checkpoint: Checkpoint, layout: DecoderLayout, prefix: str) -> None:
    """Raise CheckpointError unless what an edge joins has as many channels on both sides."""
    hidden = int(layout.text_config["hidden_size"])
    for path in edge.targets:
        name = f"{prefix}{path}.weight"
        columns = checkpoint.info(name).shape[1]
        fits = columns == hidden
        if edge.kind == "linear":
            rows = checkpoint.info(f"{prefix}{edge.source}.weight").shape[0]
            if edge.gate is not None:
                fits = columns == rows == checkpoint.info(f"{prefix}{edge.gate}.weight").shape[0]
            else:
                fits = columns % rows == 0 and rows % layout.head_dim == 0
        if not fits:
            raise CheckpointError(
                f"{name}: shape {tuple(checkpoint.info(name).shape)} does not fit config.json, or "
                f"not {edge.source}, which it reads"
            )


def _column_sizes(weight: torch.Tensor) -> torch.Tensor:
    """Return log(mean square of a column / mean square of all) of W (N, K): (K,) float64."""
    square = torch.zeros(weight.shape[1], dtype=torch.float64)
    for part in weight.split(SLICE_ROWS):
        square += part.double().square().sum(0)
    square = square.clamp_min(torch.finfo(torch.float32).tiny)
    return (square / square.mean()).log()


def _order_in_heads(
    size: torch.Tensor, n_rows: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of v_proj's rows (n_rows,) and of o_proj's columns (K,), by their size (K,).

    Channels stay in their head, and query heads that share a head of keys and values share its
    order: o_proj reads a row of v_proj once a query head.
    """
    grouped = size.view(n_rows // head_dim, -1, head_dim)
    within = grouped.mean(1).argsort(dim=1, stable=True)
    rows = within + torch.arange(len(within))[:, None] * head_dim
    starts = torch.arange(size.shape[0] // head_dim).view(len(within), -1, 1) * head_dim
    return rows.flatten(), (within[:, None, :] + starts).flatten()


def _order_edge_(
    order: ChannelOrder,
    edge: Edge,
    rows: torch.Tensor,
    columns: torch.Tensor,
    checkpoint: Checkpoint,
    prefix: str,
) -> None:
    names = set(checkpoint.names())
    for path in (edge.source, *((edge.gate,) if edge.gate else ())):
        for kind in ("weight", "bias"):
            if f"{prefix}{path}.{kind}" in names:
                order.rows[f"{prefix}{path}.{kind}"] = rows
    order.columns[f"{prefix}{edge.targets[0]}.weight"] = columns


def _order_stream_(
    order: ChannelOrder, stream: torch.Tensor, checkpoint: Checkpoint, layout: DecoderLayout
) -> None:
    names = checkpoint.names()
    columns = [name for name in names if name.endswith("lm_head.weight")] + [layout.embedding]
    rows = [f"{layout.prefix}norm.weight"]
    edges = layout.architecture.edges
    readers = [path for edge in edges if edge.kind == "norm" for path in edge.targets]
    writers = [path for edge in edges if edge.kind == "linear" for path in edge.targets]
    for index in range(layout.n_blocks):
        prefix = layout.block(index) + "."
        columns += [f"{prefix}{path}.weight" for path in readers]
        rows += [f"{prefix}{path}.weight" for path in writers]
        rows += [f"{prefix}{path}.bias" for path in writers if f"{prefix}{path}.bias" in names]
        for name in names:
            path = name.removeprefix(prefix)
            if name.startswith(prefix) and path.endswith("norm.weight") and "." not in path[:-7]:
                rows.append(name)
    order.columns |= dict.fromkeys(columns, stream)
    order.rows |= dict.fromkeys(rows, stream)
