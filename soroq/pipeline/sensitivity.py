"""What each group of linears costs when it alone is quantized, and the mix that a budget allows.

    found = measure(checkpoint, ids, get_scheme("int4"), listen)
    recipe = mix(found, recipe, max_bytes=...)

A group is what shares an input and what runtimes fuse (query, key and value; gate and up), so its
members always get the same format. Each group is rounded to 4 bits in groups of 128 with all else
unquantized, and the divergence at the head is measured for each language (KL, nats a token, on
calibration windows). Other formats' costs follow from it by the ratio of their weight errors,
weighted by the mean square of the inputs. The blocks before the group are run once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs, Scheme
from soroq.io.checkpoint import Checkpoint
from soroq.io.writer import atomic_write
from soroq.methods.budget import Option, choose_below, choose_within
from soroq.methods.rtn import quantize_rtn
from soroq.models.registry import find_layout
from soroq.models.runner import DecoderRunner
from soroq.pipeline.activations import ActivationFile, write_activations
from soroq.pipeline.distill import Head
from soroq.pipeline.order import ReorderedCheckpoint

SCHEMA = "soroq-sensitivity/2"
ANCHOR = "int4-g128"
FORMATS: dict[str, QuantArgs] = {
    "int4-g128": QuantArgs(bits=4, group_size=128, symmetric=False),
    "int4-g64": QuantArgs(bits=4, group_size=64, symmetric=False),
    "int4-g32": QuantArgs(bits=4, group_size=32, symmetric=False),
    "int4-row": QuantArgs(bits=4, group_size=None, symmetric=False),
    "int8-row": QuantArgs(bits=8, group_size=None),
    "int8-g128": QuantArgs(bits=8, group_size=128),
}
BATCH = 2  # windows
RESIDENT_WEIGHTS = 300_000_000  # smaller decoders stay in memory, four bytes a weight
Listen = Callable[[int, int, str], None]


@dataclass(frozen=True)
class GroupCost:
    """One group: its modules, what ANCHOR costs, and every format's bytes and share of that cost.

    kl: language → measured divergence; formats: name → (bytes, expected KL over that of ANCHOR).
    """

    modules: tuple[str, ...]
    weights: int
    kl: dict[str, float]
    formats: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Sensitivity:
    """All groups of a model, in the order in which they run.

    reordered: hash of the order in which its channels stood (see `soroq.pipeline.order`), '' as is.
    """

    source_sha256: str
    calibration_sha256: str
    n_tokens: int
    groups: tuple[GroupCost, ...]
    reordered: str = ""

    def save(self, path: Path) -> None:
        """Write JSON under a temporary name, then rename."""
        document = {"schema": SCHEMA} | asdict(self)
        atomic_write(path, json.dumps(document, indent=1).encode())


def load_sensitivity(path: Path) -> Sensitivity:
    """Read what `Sensitivity.save` wrote. Raises SchemeError for anything else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']!r}")
        return Sensitivity(
            raw["source_sha256"],
            raw["calibration_sha256"],
            raw["n_tokens"],
            tuple(
                GroupCost(
                    tuple(g["modules"]),
                    g["weights"],
                    {language: float(kl) for language, kl in g["kl"].items()},
                    {name: (int(b), float(c)) for name, (b, c) in g["formats"].items()},
                )
                for g in raw["groups"]
            ),
            str(raw.get("reordered", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemeError(f"{path}: not a file of soroq sensitivity: {error}") from error


def measure(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    folder: Path,
    *,
    languages: Sequence[str] = (),
    calibration_sha256: str = "",
    partial: Path | None = None,
    listen: Listen = lambda done, total, what: None,
) -> Sensitivity:
    """Measure every group of a model, its channels where it has them, on windows ids (n, seq_len).

    languages: of each window (default: all are Tajik); what a group costs is told for each.
    folder: where hidden states at the block boundaries are kept meanwhile. One block's weights are
    in memory beside them, so the time goes with the square of the number of blocks. partial: a
    file that holds the groups measured so far; a stopped measurement goes on from it.
    """
    nothing = Sensitivity(
        checkpoint.sha256(),
        calibration_sha256,
        ids.numel(),
        (),
        checkpoint.order.sha256() if isinstance(checkpoint, ReorderedCheckpoint) else "",
    )
    rows_of: dict[str, list[int]] = {}
    for row, language in enumerate(languages or ["tg"] * len(ids)):
        rows_of.setdefault(language, []).append(row)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    runner = DecoderRunner(layout)
    total = layout.n_blocks * len(layout.architecture.linear_groups)
    embedded = _embedded(runner, checkpoint, ids)
    boundaries = [write_activations(folder / "hidden-0.bin", embedded, torch.float32)]
    blocks: dict[int, nn.Module] = {}

    def block_of(index: int) -> nn.Module:
        if index not in blocks:
            prefix = layout.block(index) + "."
            names = [name for name in checkpoint.names() if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): checkpoint.load(name) for name in names}
            if not resident:
                blocks.clear()
            blocks[index] = runner.build_block(index, tensors)
        return blocks[index]

    linears = [f"{layout.block(0)}.{path}.weight" for path in layout.architecture.linears]
    weights = sum(checkpoint.info(n).shape[0] * checkpoint.info(n).shape[1] for n in linears)
    resident = weights * layout.n_blocks < RESIDENT_WEIGHTS
    squares: list[dict[str, torch.Tensor]] = []
    for index in range(layout.n_blocks):
        listen(0, total, f"{layout.block(index)} as it is")
        groups = layout.architecture.linear_groups
        with _MeanSquares(block_of(index), [group[0] for group in groups]) as seen:
            outputs = _forward(runner, block_of(index), index, boundaries[-1])
            file = folder / f"hidden-{index + 1}.bin"
            boundaries.append(write_activations(file, outputs, torch.float32))
        squares.append(seen.means)
    head = Head(checkpoint, runner, ids, boundaries[-1])
    found = _measured_before(partial, nothing)
    known = len(found)
    for index in range(layout.n_blocks):
        for place, group in enumerate(layout.architecture.linear_groups):
            if index * len(layout.architecture.linear_groups) + place < known:
                continue
            listen(len(found), total, f"{layout.block(index)}.{group[0]}")
            block = block_of(index)
            originals = {path: _weight(block, path) for path in group}
            cost, formats = _formats(originals, squares[index][group[0]])
            for path, weight in originals.items():
                rounded = quantize_rtn(weight, FORMATS[ANCHOR]).dequantize()
                _set_weight(block, path, rounded)
            kl = _divergence(runner, block_of, index, boundaries[index], head, rows_of, folder)
            block = block_of(index)
            for path, weight in originals.items():
                _set_weight(block, path, weight)
            found.append(
                GroupCost(
                    tuple(f"{layout.block(index)}.{path}" for path in group),
                    sum(w.numel() for w in originals.values()),
                    kl,
                    {name: (b, e / max(cost, 1e-30)) for name, (b, e) in formats.items()},
                )
            )
            if partial is not None:
                replace(nothing, groups=tuple(found)).save(partial)
    listen(total, total, "done")
    return replace(nothing, groups=tuple(found))


def _measured_before(partial: Path | None, wanted: Sensitivity) -> list[GroupCost]:
    """Return the groups in `partial`, if it is of the model, order and windows that are wanted."""
    if partial is None or not partial.is_file():
        return []
    before = load_sensitivity(partial)
    return list(before.groups) if replace(before, groups=()) == wanted else []


def _embedded(runner: DecoderRunner, checkpoint: Checkpoint, ids: torch.Tensor) -> Any:
    for part in ids.split(BATCH):
        yield runner.embed(part, checkpoint.load_rows(runner.layout.embedding, part.flatten()))


def _forward(runner: DecoderRunner, block: nn.Module, index: int, inputs: ActivationFile) -> Any:
    with torch.no_grad():
        for x in inputs.batches(BATCH):
            yield runner.run_block(block, index, x)


class _MeanSquares:
    """Collects mean(x²) (K,) of the inputs of some linears while a block runs."""

    def __init__(self, block: nn.Module, paths: Sequence[str]) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._block, self._paths = block, paths
        self._hooks: list[Any] = []

    @property
    def means(self) -> dict[str, torch.Tensor]:
        return {path: self._sums[path] / self._counts[path] for path in self._sums}

    def __enter__(self) -> "_MeanSquares":
        for path in self._paths:
            module = self._block.get_submodule(path)
            self._hooks.append(module.register_forward_pre_hook(self._keep(path)))
        return self

    def _keep(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].flatten(0, -2)
            self._sums[path] = self._sums.get(path, torch.zeros(x.shape[1])) + x.square().sum(0)
            self._counts[path] = self._counts.get(path, 0) + len(x)

        return hook

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _weight(block: nn.Module, path: str) -> torch.Tensor:
    weight = block.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().clone()


def _set_weight(block: nn.Module, path: str, weight: torch.Tensor) -> None:
    block.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)


def _formats(
    weights: Mapping[str, torch.Tensor], mean_square: torch.Tensor
) -> tuple[float, dict[str, tuple[int, float]]]:
    """Return ANCHOR's weight error, and format → (bytes, weight error), where shapes allow it."""
    found: dict[str, tuple[int, float]] = {}
    for name, args in FORMATS.items():
        n_bytes, error = 0, 0.0
        try:
            for path, weight in weights.items():
                shape = (weight.shape[0], weight.shape[1])
                args.check_shape(path, shape)
                difference = quantize_rtn(weight, args).dequantize() - weight
                error += float((difference.square() @ mean_square).sum(dtype=torch.float64))
                n_bytes += round(args.bits_per_weight(shape) * weight.numel() / 8)
        except SchemeError:
            if name == ANCHOR:
                raise
            continue
        found[name] = (n_bytes, error)
    return found[ANCHOR][1], found


def _divergence(
    runner: DecoderRunner,
    block_of: Callable[[int], nn.Module],
    index: int,
    inputs: ActivationFile,
    head: Head,
    rows_of: Mapping[str, Sequence[int]],
    folder: Path,
) -> dict[str, float]:
    """Return each language's mean KL at the head when all from block `index` on is run anew."""
    current = inputs
    for place in range(index, runner.layout.n_blocks):
        outputs = _forward(runner, block_of(place), place, current)
        current = write_activations(folder / f"try-{place % 2}.bin", outputs, torch.float32)
    found = {}
    for language, rows in rows_of.items():
        parts = torch.tensor(rows).split(BATCH)
        total = sum(head.loss(current.rows(part.tolist()), part)[0] * len(part) for part in parts)
        found[language] = total / len(rows)
    return found


def mix(
    found: Sensitivity,
    recipe: Recipe,
    *,
    bits_per_weight: float | None = None,
    max_bytes: int | None = None,
    max_loss: float | None = None,
) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe with a format for every group, and module → format.

    One of: mean bits a quantized weight with scales, bytes of all groups together, or the sum of
    the expected divergences in the language where it is largest (nats a token, for plain rounding:
    the scheme's method does better). Languages count alike, each by the share of what it would
    lose if all were ANCHOR. Modules that the recipe overrides already keep what it says. Raises
    SchemeError for budgets that can't be met.
    """
    groups = [
        g for g in found.groups if all(recipe.scheme_for(m) == recipe.scheme for m in g.modules)
    ]
    if not groups:
        raise SchemeError("no module is left for the budget; drop --override and --skip")
    totals = {name: sum(g.kl[name] for g in groups) for name in groups[0].kl}
    units = []
    for g in groups:
        shares = [g.kl[name] / max(total, 1e-30) for name, total in totals.items()]
        share = sum(shares) / len(shares)
        units.append(
            [
                Option(n, b, share * ratio, tuple(g.kl[name] * ratio for name in totals))
                for n, (b, ratio) in g.formats.items()
            ]
        )
    if bits_per_weight is not None:
        max_bytes = int(bits_per_weight * sum(g.weights for g in groups) / 8)
    if max_bytes is not None:
        chosen = choose_within(units, max_bytes)
    elif max_loss is not None:
        chosen = choose_below(units, max_loss)
    else:
        raise SchemeError("a budget names bits a weight, bytes or a loss")
    told: dict[str, str] = {}
    overrides: list[tuple[str, Scheme | None]] = []
    for group, option in zip(groups, chosen, strict=True):
        scheme = replace(recipe.scheme, weight=FORMATS[option.name])
        for module in group.modules:
            told[module] = option.name
            overrides.append((module, scheme))
    return replace(recipe, overrides=(*recipe.overrides, *overrides)), told
