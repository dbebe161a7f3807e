"""What a training run is told: one TOML file, every key known, the nearest one named for a typo.

    [model]      source = "gemma3-270m"     lora_rank = 16
    [data]       corpus = "tajik.corpus"    shares = { tg = 0.8, en = 0.2 }
    [train]      steps = 1000               batch = 64
    [run]        checkpoint_every = 100

`soroq train pretrain`, `sft` and `qat --config FILE` read the same tables; only qat reads [qat].
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from soroq.core.errors import SchemeError
from soroq.train.optim import OPTIMIZERS

COMPUTE = ("auto", "bfloat16", "float32")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """source: a checkpoint. lora_rank: 0 trains all weights; otherwise adapters of that rank beside
    `lora_targets`, scaled by lora_alpha / lora_rank."""

    source: str
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_targets: tuple[str, ...] = LORA_TARGETS


@dataclass(frozen=True)
class DataConfig:
    """corpus: of `soroq train corpus`. files: conversations, for sft. shares: language → share of
    the sequences. seq_len: tokens of one. valid_share: of the conversations, for validation."""

    corpus: str = ""
    files: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    seq_len: int = 512
    valid_share: float = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """batch: sequences a step, over all processes; micro_batch: of them at once in a process.
    warmup, decay: shares of the steps. compute: what products are computed in; auto takes bfloat16
    on a GPU and where the processor has instructions for it."""

    steps: int = 100
    batch: int = 8
    micro_batch: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.05
    decay: float = 0.3
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: str = "adamw"
    compute: str = "auto"
    activation_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """checkpoint_every, validate_every: steps. keep: checkpoints. validation: sequences a language.
    peak_tflop_s: what MFU is a share of; 0: the greatest product measured on this machine."""

    checkpoint_every: int = 50
    validate_every: int = 50
    validation: int = 8
    keep: int = 2
    peak_tflop_s: float = 0.0
    tensorboard: bool = True


@dataclass(frozen=True)
class QatConfig:
    """start: the quantized checkpoint that is trained, of model.source. scale_rate, norm_rate: of
    the relative change of scales, and of norms; train.learning_rate is that of the codes, in steps
    of the code."""

    start: str = ""
    scale_rate: float = 5e-4
    norm_rate: float = 1e-3


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    qat: QatConfig = field(default_factory=QatConfig)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_TABLES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "run": RunConfig,
    "qat": QatConfig,
}


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a TOML file; `overrides` are "table.key=value", values as TOML writes them.

    Raises SchemeError for a file that isn't TOML, an unknown key or a value that can't be.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SchemeError(f"config {str(path)!r} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SchemeError(f"{path}: not readable as TOML: {error}") from error
    for text in overrides:
        _override(given, text)
    return make_config(given, str(path))


def make_config(given: Mapping[str, Any], where: str) -> Config:
    """Return the Config of a TOML document. Raises SchemeError as `load_config` does."""
    _refuse_unknown(given, list(_TABLES), f"{where}: table")
    tables = {}
    for name, kind in _TABLES.items():
        values = given.get(name, {})
        if not isinstance(values, Mapping):
            raise SchemeError(f"{where}: {name} is no table; write [{name}]")
        known = {f.name: f for f in fields(kind)}
        _refuse_unknown(values, list(known), f"{where}: {name}.")
        if name == "model" and "source" not in values:
            raise SchemeError(f"{where}: model.source is missing: which checkpoint to train")
        tables[name] = kind(
            **{
                key: _typed(known[key], value, f"{where}: {name}.{key}")
                for key, value in values.items()
            }
        )
    config = Config(**tables)
    _refuse_values(config, where)
    return config


def _override(given: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise SchemeError(f"--set {text!r}: write table.key=value, e.g. train.steps=200")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    given.setdefault(table, {})[key] = parsed


def _refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise SchemeError(f"{what}{'' if what.endswith('.') else ' '}{key} is unknown{hint}")


def _typed(known: Any, value: Any, where: str) -> Any:
    """Return a TOML value as its field's type."""
    kind = str(known.type)
    wanted: tuple[type, ...]
    if "tuple" in kind:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise SchemeError(f"{where} is {value!r}; a list of texts is needed")
    if "Mapping" in kind:
        if isinstance(value, Mapping) and all(isinstance(v, int | float) for v in value.values()):
            return {str(k): float(v) for k, v in value.items()}
        raise SchemeError(f"{where} is {value!r}; write {{ tg = 0.8, en = 0.2 }}")
    if known.type is float and type(value) is int:
        return float(value)
    wanted = (known.type,)
    if not isinstance(value, wanted) or (known.type is int and isinstance(value, bool)):
        raise SchemeError(f"{where} is {value!r}; {known.type.__name__} is needed")
    return value


def _refuse_values(config: Config, where: str) -> None:
    t, d, m, r = config.train, config.data, config.model, config.run
    positive = {
        "train.steps": t.steps,
        "train.batch": t.batch,
        "train.micro_batch": t.micro_batch,
        "train.learning_rate": t.learning_rate,
        "train.clip": t.clip,
        "run.checkpoint_every": r.checkpoint_every,
        "run.validate_every": r.validate_every,
        "run.validation": r.validation,
        "run.keep": r.keep,
        "qat.scale_rate": config.qat.scale_rate,
        "qat.norm_rate": config.qat.norm_rate,
    }
    for name, value in positive.items():
        if value <= 0:
            raise SchemeError(f"{where}: {name} is {value}; it must be above 0")
    if t.batch % t.micro_batch:
        raise SchemeError(
            f"{where}: train.batch {t.batch} is no multiple of train.micro_batch {t.micro_batch}"
        )
    if d.seq_len < 8:
        raise SchemeError(f"{where}: data.seq_len is {d.seq_len}; at least 8 tokens are needed")
    if t.optimizer not in OPTIMIZERS:
        raise SchemeError(
            f"{where}: train.optimizer {t.optimizer!r} is unknown; known: {', '.join(OPTIMIZERS)}"
        )
    if t.compute not in COMPUTE:
        raise SchemeError(
            f"{where}: train.compute {t.compute!r} is unknown; known: {', '.join(COMPUTE)}"
        )
    if not (0 <= t.warmup <= 1 and 0 <= t.decay <= 1 and t.warmup + t.decay <= 1):
        raise SchemeError(
            f"{where}: train.warmup {t.warmup} and train.decay {t.decay} are shares of the steps; "
            "together at most 1"
        )
    if m.lora_rank < 0:
        raise SchemeError(f"{where}: model.lora_rank is {m.lora_rank}; 0 trains all weights")
    if any(share < 0 for share in d.shares.values()) or (d.shares and not sum(d.shares.values())):
        raise SchemeError(f"{where}: data.shares {dict(d.shares)} must be positive")
    if not 0 < d.valid_share < 1:
        raise SchemeError(f"{where}: data.valid_share is {d.valid_share}; it is a share below 1")
