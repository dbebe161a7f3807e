"""Distil the whole quantized model, block by block: scales and norms learn from the original.

One step runs a few calibration windows through all blocks, takes the divergence from the original's
next-token distribution at the head, and goes back through the blocks in reverse. Only the windows'
hidden states at the block boundaries are kept; each block is run once more for its gradient. Blocks
come from the stage one at a time (all stay in memory if they are small), so a model larger than
memory can be distilled. What is learned is small: a number a group, and the norms.

The head is restricted to candidates: every token of the calibration text and whatever the original
model finds likely in it. A part of the windows is held out; a result that doesn't diverge less on
them than the start is dropped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from soroq.core.qtensor import QuantizedTensor, take_rows
from soroq.core.recipe import Recipe
from soroq.io.checkpoint import Checkpoint
from soroq.io.formats.compressed_tensors import decode
from soroq.io.writer import atomic_save
from soroq.methods.distill import ScaledLinear, divergence, tuned_scales
from soroq.models.runner import DecoderRunner
from soroq.pipeline.activations import ActivationFile
from soroq.pipeline.plan import RESIDENT_WEIGHTS
from soroq.pipeline.stage import Stage

BATCH = 2  # windows a step
WARMUP = 5  # steps
NORM_RATE = 2.0  # the norms learn this much faster than the scales
HELD_OUT = 16  # one window of so many is held out
SAVE_EVERY = 4  # steps between two saved states
TOP = 64  # candidates per sampled position
SAMPLED_WINDOWS = 64
SAMPLED_POSITIONS = 2048
SLICE_ROWS = 32768
Listen = Callable[[int, int, str], None]  # steps done, of how many, what


@dataclass(frozen=True)
class DistillReport:
    """Divergence (nats a token) on held-out calibration windows, before and after."""

    steps: int
    candidates: int
    kl_before: float
    kl_after: float
    kept: bool


def distill(
    stage: Stage,
    checkpoint: Checkpoint,
    runner: DecoderRunner,
    recipe: Recipe,
    ids: torch.Tensor,
    reference: ActivationFile,
    listen: Listen,
) -> tuple[dict[str, torch.Tensor], DistillReport]:
    """Return the tensors that distillation changed, by full name, and what it gained.

    ids (n, seq_len): the calibration windows; reference: the original model's hidden states behind
    its last block for them. A saved state in the stage is gone on from.
    """
    head = Head(checkpoint, runner, ids, reference, _embedding(stage, runner, recipe))
    student = Student(stage, checkpoint, runner, recipe, head)
    n = len(ids)
    held_out = torch.arange(n)[HELD_OUT - 1 :: HELD_OUT] if n >= HELD_OUT else torch.arange(n)[-1:]
    training = torch.tensor([i for i in range(n) if i not in set(held_out.tolist())])
    steps = max(1, int(recipe.distill_epochs * len(training)) // BATCH)
    order = _order(training, steps, recipe.seed)
    listen(0, steps, f"divergence before, {len(head.weight)} candidates")
    before = _evaluate(student, head, ids, held_out)
    optimizer = torch.optim.Adam(
        [
            {"params": list(student.deltas.values()), "lr": recipe.distill_rate},
            {"params": list(student.norms.values()), "lr": recipe.distill_rate * NORM_RATE},
        ],
        betas=(0.9, 0.99),
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    done = _restore(stage.distill_state, student, optimizer)
    for step in range(done, steps):
        rows = order[step]
        share = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        loss = student.accumulate_(ids[rows], lambda x, rows=rows: head.loss(x, rows))  # type: ignore[misc]
        optimizer.step()
        optimizer.zero_grad()
        listen(step + 1, steps, f"divergence {loss:.4f}")
        if (step + 1) % SAVE_EVERY == 0:
            _save(stage.distill_state, student, optimizer, step + 1)
    student.round_()
    listen(steps, steps, "divergence after")
    after = _evaluate(student, head, ids, held_out)
    kept = after < before
    report = DistillReport(steps, len(head.weight), before, after, kept)
    return (student.tensors() if kept else {}), report


def _embedding(stage: Stage, runner: DecoderRunner, recipe: Recipe) -> QuantizedTensor | None:
    """Return the embedding that the quantized model will have, None where it keeps its own."""
    if recipe.embed is None:
        return None
    with safe_open(stage.embedding_file, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return decode(runner.layout.embedding.removesuffix(".weight"), tensors, recipe.embed)


def _order(training: torch.Tensor, steps: int, seed: int) -> list[torch.Tensor]:
    """Return the windows of each step: every epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[torch.Tensor] = []
    while len(rows) < steps:
        shuffled = training[torch.randperm(len(training), generator=generator)]
        parts = shuffled.split(BATCH)
        rows += parts if len(parts) == 1 else [part for part in parts if len(part) == BATCH]
    return rows[:steps]


def _evaluate(student: "Student", head: "Head", ids: torch.Tensor, rows: torch.Tensor) -> float:
    total = 0.0
    for part in rows.split(BATCH):
        total += head.loss(student.run(ids[part]), part)[0] * len(part)
    return total / len(rows)


class Student:
    """The quantized model: its blocks as they are wanted, and everything that is learned.

    deltas: module → δ of its scales; norms: tensor name → norm weight, float32 Parameters.
    head: has the embedding where that is quantized.
    """

    def __init__(
        self,
        stage: Stage,
        checkpoint: Checkpoint,
        runner: DecoderRunner,
        recipe: Recipe,
        head: "Head",
    ) -> None:
        self._head = head
        self._stage, self._checkpoint = stage, checkpoint
        self._runner, self._recipe = runner, recipe
        self._blocks: dict[int, nn.Module] = {}
        self._scales: dict[str, torch.Tensor] = {}
        self.deltas: dict[str, nn.Parameter] = {}
        self.norms: dict[str, nn.Parameter] = {}
        weights = 0
        for index in range(runner.layout.n_blocks):
            tensors = self._tensors(index)
            for name, tensor in tensors.items():
                if tensor.dim() == 1 and "norm" in name:
                    self.norms[name] = nn.Parameter(tensor.float())
            for module in self._tunable(index):
                weights += math.prod(tensors[f"{module}.weight_shape"].tolist())
                scales = tensors[f"{module}.weight_scale"]
                self._scales[module] = scales
                self.deltas[module] = nn.Parameter(torch.zeros(scales.shape))
        self._resident = weights < RESIDENT_WEIGHTS

    def _tunable(self, index: int) -> list[str]:
        """Return the modules of a block whose scales are learned: integers in groups."""
        names = []
        for path in self._runner.layout.architecture.linears:
            name = f"{self._runner.layout.block(index)}.{path}"
            scheme = self._recipe.scheme_for(name)
            if scheme is not None and scheme.weight.dtype == "int":
                names.append(name)
        return names

    def _tensors(self, index: int) -> dict[str, torch.Tensor]:
        """Return a block's tensors by full name: those of the stage before the original ones."""
        prefix = self._runner.layout.block(index) + "."
        with safe_open(self._stage.block_file(index), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        quantized = {name.rpartition(".")[0] for name in tensors if name.endswith("_scale")}
        for name in self._checkpoint.names():
            if name.startswith(prefix) and name not in tensors:
                if name.removesuffix(".weight") not in quantized:
                    tensors[name] = self._checkpoint.load(name)
        return tensors

    def block(self, index: int) -> nn.Module:
        """Return block `index` with the learned parameters in their places."""
        if index in self._blocks:
            return self._blocks[index]
        layout = self._runner.layout
        prefix = layout.block(index) + "."
        tensors = self._tensors(index)
        quantized: dict[str, QuantizedTensor] = {}
        plain = {n.removeprefix(prefix): t for n, t in tensors.items() if "weight_" not in n}
        for path in layout.architecture.linears:
            scheme = self._recipe.scheme_for(prefix + path)
            if scheme is not None:
                value = quantized[path] = decode(prefix + path, tensors, scheme.weight)
                # what a ScaledLinear replaces below needs a shape only
                learned = prefix + path in self.deltas
                empty = torch.zeros(1, 1).expand(value.shape)
                plain[f"{path}.weight"] = empty if learned else value.dequantize()
        plain = {n: t for n, t in plain.items() if not n.endswith("input_scale")}
        block = self._runner.build_block(index, plain)
        for path, value in quantized.items():
            delta = self.deltas.get(prefix + path)
            if delta is not None:
                parent, _, child = path.rpartition(".")
                bias = getattr(block.get_submodule(path), "bias", None)
                linear = ScaledLinear(value, delta, bias)
                setattr(block.get_submodule(parent), child, linear)
        for name, parameter in self.norms.items():
            if name.startswith(prefix):
                path, _, child = name.removeprefix(prefix).rpartition(".")
                setattr(block.get_submodule(path), child, parameter)
        if self._resident:
            self._blocks[index] = block
        return block

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        if self._head.quantized is not None:
            places = torch.searchsorted(self._head.candidates, ids.flatten())
            return self._runner.embed(ids, take_rows(self._head.quantized, places).dequantize())
        rows = self._checkpoint.load_rows(self._runner.layout.embedding, ids.flatten())
        return self._runner.embed(ids, rows)

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states behind the last block (n, seq_len, hidden)."""
        x = self._embed(ids)
        with torch.no_grad():
            for index in range(self._runner.layout.n_blocks):
                x = self._runner.run_block(self.block(index), index, x)
        return x

    def accumulate_(
        self,
        ids: torch.Tensor,
        loss: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    ) -> float:
        """Add the gradient of `loss` on ids (n, seq_len) to every learned parameter; return it.

        loss takes the hidden states behind the last block and returns a value and its gradient.
        """
        n_blocks = self._runner.layout.n_blocks
        inputs = [self._embed(ids)]
        with torch.no_grad():
            for index in range(n_blocks):
                inputs.append(self._runner.run_block(self.block(index), index, inputs[-1]))
        value, gradient = loss(inputs.pop())
        for index in reversed(range(n_blocks)):
            x = inputs.pop().requires_grad_(index > 0)
            y = self._runner.run_block(self.block(index), index, x)
            y.backward(gradient)
            if index > 0:
                assert x.grad is not None
                gradient = x.grad
        return value

    def round_(self) -> None:
        """Round what was learned to what can be stored."""
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if name in self.norms:
                    self.norms[name].copy_(tensor)
                else:
                    module = name.removesuffix(".weight_scale")
                    old = self._scales[module].float()
                    self.deltas[module].copy_(tensor.float() / old - 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what was learned as it is stored: scales and norms by their full names."""
        learned = {
            f"{module}.weight_scale": tuned_scales(self._scales[module], delta)
            for module, delta in self.deltas.items()
        }
        for name, parameter in self.norms.items():
            learned[name] = parameter.detach().to(self._checkpoint.info(name).dtype)
        return learned


class Head:
    """The rows of the head that count, and what the original model puts in front of it.

    weight: (candidates, hidden) as stored: the text's own tokens and the TOP likeliest, by the
    original model, at a sample of its positions. candidates: these tokens, int64, rising.
    quantized: the same rows as the quantized model has them, None where it keeps them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runner: DecoderRunner,
        ids: torch.Tensor,
        reference: ActivationFile,
        embedding: QuantizedTensor | None = None,
    ) -> None:
        prefix = runner.layout.prefix
        self._norm = runner.build_final_norm(checkpoint.load(f"{prefix}norm.weight"))
        self._reference = reference
        untied = f"{prefix.removesuffix('model.')}lm_head.weight"
        name = untied if untied in checkpoint.names() else runner.layout.embedding
        vocabulary = checkpoint.info(name).shape[0]
        sample = self._sample(*ids.shape)
        best = torch.zeros(len(sample), 0)
        tokens = torch.zeros(len(sample), 0, dtype=torch.int64)
        for start in range(0, vocabulary, SLICE_ROWS):
            index = torch.arange(start, min(start + SLICE_ROWS, vocabulary))
            logits = sample @ checkpoint.load_rows(name, index).float().t()
            values, places = logits.topk(min(TOP, len(index)))
            best = torch.cat([best, values], 1)
            tokens = torch.cat([tokens, places + start], 1)
            best, kept = best.topk(min(TOP, best.shape[1]))
            tokens = tokens.gather(1, kept)
        candidates = self.candidates = torch.cat([ids.flatten(), tokens.flatten()]).unique()
        self.quantized = None if embedding is None else take_rows(embedding, candidates)
        shape = (len(candidates), checkpoint.info(name).shape[1])
        self.weight = torch.empty(shape, dtype=checkpoint.info(name).dtype)
        for rows, part in zip(
            self.weight.split(SLICE_ROWS), candidates.split(SLICE_ROWS), strict=True
        ):
            rows.copy_(checkpoint.load_rows(name, part))

    def _sample(self, n: int, seq_len: int) -> torch.Tensor:
        """Return what the head gets from the original model, at some positions (…, hidden)."""
        windows = torch.linspace(0, n - 1, min(n, SAMPLED_WINDOWS)).long().tolist()
        stride = max(1, len(windows) * seq_len // SAMPLED_POSITIONS)
        parts = []
        for number, window in enumerate(windows):
            first = -number * seq_len % stride
            parts.append(self._normed(self._reference.rows([window])[0, first::stride]))
        return torch.cat(parts)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self._norm(x)
        return out

    def loss(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Return the divergence of hidden states x behind the last block, and its gradient.

        x (n, seq_len, hidden) belongs to the calibration windows `rows` (n,).
        """
        teacher = self._normed(self._reference.rows(rows.tolist())).flatten(0, 1)
        leaf = x.detach().requires_grad_(True)
        student = self._norm(leaf)
        value, gradient = divergence(
            student.detach().flatten(0, 1), teacher, self.weight, self.quantized
        )
        student.backward(gradient.view_as(student))
        assert leaf.grad is not None
        return value, leaf.grad


def _save(path: Path, student: Student, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {
        "step": step,
        "deltas": {name: p.detach() for name, p in student.deltas.items()},
        "norms": {name: p.detach() for name, p in student.norms.items()},
        "optimizer": optimizer.state_dict(),
    }
    atomic_save(path, lambda file: torch.save(state, file))


def _restore(path: Path, student: Student, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved state back and return how many steps it had done; 0 without one."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, value in state["deltas"].items():
            student.deltas[name].copy_(value)
        for name, value in state["norms"].items():
            student.norms[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
