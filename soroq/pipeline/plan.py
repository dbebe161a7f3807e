"""What a run will do, module by module, before any weight is read: `--dry-run` prints it.

Also where impossible requests end: shapes that a group size doesn't divide, patterns that match
nothing.
"""

import dataclasses
import fnmatch
from dataclasses import dataclass
from typing import Any

from soroq.core.errors import CalibrationError, SchemeError
from soroq.core.recipe import Recipe
from soroq.core.scheme import Scheme
from soroq.io.checkpoint import Checkpoint
from soroq.models.architecture import DecoderLayout, context_length

PROCESS_BYTES = 1_200_000_000  # measured: interpreter, libraries, batches of activations
DISTILL_BYTES = 500_000_000  # measured: logits over the candidates, gradients of one block
RESIDENT_WEIGHTS = 500_000_000  # smaller decoders stay in memory to be distilled, a byte a weight
STAT_COPIES = 5  # K × K float32 matrices alive at once in GPTQ: H, permuted, factor, inverse, spare


@dataclass(frozen=True)
class PlannedModule:
    """One linear (or the embedding): `scheme` None means that it is kept as it is."""

    name: str
    shape: tuple[int, int]
    scheme: Scheme | None
    stored_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.stored_bytes * 8 / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Plan:
    """All planned modules, and what the run will cost.

    flops counts multiply-adds twice; peak_bytes and flops are estimates, output_bytes is exact up
    to file headers. referenced: the original blocks are run beside the quantized ones.
    """

    modules: tuple[PlannedModule, ...]
    source_bytes: int
    output_bytes: int
    staging_bytes: int
    peak_bytes: int
    flops: float
    calibrated: bool
    referenced: bool

    @property
    def bits_per_weight(self) -> float:
        """Mean over the planned modules that are quantized."""
        taken = [m for m in self.modules if m.scheme is not None]
        weights = sum(m.shape[0] * m.shape[1] for m in taken)
        return sum(m.stored_bytes for m in taken) * 8 / max(weights, 1)


def make_plan(checkpoint: Checkpoint, layout: DecoderLayout, recipe: Recipe) -> Plan:
    """Return the plan. Raises SchemeError for shapes and patterns that don't work, and
    CalibrationError for windows longer than the model's context."""
    modules: list[PlannedModule] = []
    block_weights = widest = spooled = 0
    calibrated = False
    referenced = recipe.scheme.distilled
    for index in range(layout.n_blocks):
        weights = 0
        for path in layout.architecture.linears:
            name = f"{layout.block(index)}.{path}"
            info = checkpoint.info(f"{name}.weight")
            scheme = recipe.scheme_for(name)
            if scheme is None:
                modules.append(PlannedModule(name, _matrix(info.shape), None, info.nbytes))
            else:
                scheme.check_shape(name, info.shape)
                shape = _matrix(info.shape)
                stored = scheme.weight.bits_per_weight(shape) * shape[0] * shape[1] / 8
                modules.append(PlannedModule(name, shape, scheme, round(stored)))
                calibrated = calibrated or scheme.needs_calibration
                referenced = referenced or scheme.corrected
                if scheme.needs_calibration and scheme.method != "clip":
                    widest = max(widest, shape[1])
            weights += info.shape[0] * info.shape[1]
        spooled = max(spooled, _spooled_features(checkpoint, layout, recipe, index))
        block_weights = max(block_weights, weights)
    if recipe.embed is not None:
        info = checkpoint.info(layout.embedding)
        if not layout.text_config.get(
            "tie_word_embeddings", "lm_head.weight" not in checkpoint.names()
        ):
            raise SchemeError(
                "--embed needs an embedding that is tied to the head, this one is not; leave it out"
            )
        recipe.embed.check_shape(layout.embedding, info.shape)
        shape = _matrix(info.shape)
        stored = recipe.embed.bits_per_weight(shape) * shape[0] * shape[1] / 8
        scheme = dataclasses.replace(recipe.scheme, weight=recipe.embed)
        modules.append(
            PlannedModule(layout.embedding.removesuffix(".weight"), shape, scheme, round(stored))
        )
    _check_patterns(recipe, [m.name for m in modules])
    if calibrated:
        refuse_long_windows(checkpoint.config, recipe.seq_len)
    saved = sum(checkpoint.info(f"{m.name}.weight").nbytes - m.stored_bytes for m in modules)
    hidden = int(layout.text_config["hidden_size"])
    tokens = recipe.n_samples * recipe.seq_len if calibrated else 0
    total_weights = sum(m.shape[0] * m.shape[1] for m in modules)
    solver = sum(
        m.shape[0] * m.shape[1] ** 2 * 2 * 8
        for m in modules
        if m.scheme and m.scheme.needs_calibration
    )
    # a step runs each block forward twice and back once, which costs twice a forward
    tuning = 2.0 * tokens * total_weights * 4 * recipe.distill_epochs * recipe.scheme.distilled
    inputs = {(m.name.rpartition(".")[0], m.shape[1]) for m in modules}
    hessians = sum(2 * tokens * K**2 for _, K in inputs)
    peak = PROCESS_BYTES + block_weights * 10 + STAT_COPIES * widest**2 * 4
    if recipe.scheme.distilled:
        peak += DISTILL_BYTES + (total_weights if total_weights < RESIDENT_WEIGHTS else 0)
    forward = 2.0 * tokens * total_weights * (3.7 if referenced else 2.7)
    return Plan(
        tuple(modules),
        checkpoint.total_bytes,
        checkpoint.total_bytes - saved,
        (4 if referenced else 2) * tokens * hidden * 2 + tokens * spooled * 4,
        peak,
        forward + hessians * (2 if referenced else 1) + solver + tuning,
        calibrated,
        referenced,
    )


def refuse_long_windows(config: dict[str, Any], seq_len: int) -> None:
    """Raise CalibrationError for windows of more tokens than a model with this config knows."""
    most = context_length(config)
    if most is not None and seq_len > most:
        raise CalibrationError(
            f"--seq-len {seq_len} is beyond the model's context of {most} tokens "
            f"(max_position_embeddings); use at most {most}"
        )


def _spooled_features(
    checkpoint: Checkpoint, layout: DecoderLayout, recipe: Recipe, index: int
) -> int:
    """Return how many input features of one block's linears go to disk, float32 a token."""
    features = 0
    for group in layout.architecture.linear_groups:
        names = [f"{layout.block(index)}.{path}" for path in group]
        if any((s := recipe.scheme_for(name)) is not None and s.corrected for name in names):
            features += checkpoint.info(f"{names[0]}.weight").shape[1]
    return features


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]


def _check_patterns(recipe: Recipe, names: list[str]) -> None:
    for pattern, _ in recipe.overrides:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise SchemeError(
                f"pattern {pattern!r} matches no module; names look like {names[0]!r}"
            )
