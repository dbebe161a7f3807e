"""The loop that pretraining and tuning share: batches, steps, validation, checkpoints, metrics.

A step's loss is the mean over the learned tokens of its whole batch, so it is the same however the
batch is cut into micro-batches and processes. What a step does depends on what a checkpoint holds
alone: a run that was killed and resumed has the same weights, bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from soroq.core.errors import CheckpointError, NumericsError, SoroqError
from soroq.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from soroq.train.config import Config
from soroq.train.data import Data
from soroq.train.distributed import World, optimizer_state, put_, restore_optimizer_, whole
from soroq.train.loss import IGNORED
from soroq.train.metrics import MetricsLog, measured_peak
from soroq.train.model import LossModel
from soroq.train.packing import Packed
from soroq.train.schedule import wsd_factor

Listen = Callable[[int, int, str], None]  # steps done, of how many, what


class Trainer:
    """One run: the model and all that changes with it."""

    def __init__(
        self, config: Config, model: LossModel, data: Data, run: Path, world: World
    ) -> None:
        t = config.train
        if t.batch % (t.micro_batch * world.size):
            raise SoroqError(
                f"train.batch {t.batch} is no multiple of train.micro_batch {t.micro_batch} × "
                f"{world.size} processes"
            )
        self._config, self._model, self._data = config, model, data
        self._run, self._world = run, world
        self._optimizers = model.optimizers(t)
        self._step = 0
        self._seen = 0
        self.validation: dict[str, dict[str, float]] = {}  # step → language → nats a token

    def resume(self) -> int:
        """Go on from the last checkpoint, if there is one; return its step."""
        folder = latest_checkpoint(self._run)
        if folder is None:
            return 0
        learned, optimizer, state = load_checkpoint(folder)
        parameters = dict(self._model.learned())
        if learned.keys() != parameters.keys():
            raise CheckpointError(f"{folder} is of another model; delete it to begin anew")
        for name, parameter in parameters.items():
            put_(parameter, learned[name])
        for part, given in zip(self._optimizers.parts, optimizer["optimizers"], strict=True):
            restore_optimizer_(part, given)
        torch.set_rng_state(optimizer["rng"])
        self._data.packer.restore(state["data"])
        self._step, self._seen = int(state["step"]), int(state["tokens"])
        self.validation = state["validation"]
        return self._step

    def fit(self, listen: Listen) -> None:
        """Train to the last step. Raises NumericsError for a loss that is no number."""
        t, r, world = self._config.train, self._config.run, self._world
        log = None
        if world.leads:
            log = MetricsLog(self._run, tensorboard=r.tensorboard, last_step=self._step)
        peak = r.peak_tflop_s * 1e12 or measured_peak(world.device, self._model.compute)
        if not self.validation:
            self._validate(log, listen)
        begun, first = time.perf_counter(), self._step
        while self._step < t.steps:
            started = time.perf_counter()
            batch = [self._data.packer.next() for _ in range(t.batch)]
            with named_memory(self._config):
                values = self._learn(batch)
            self._step += 1
            tokens = sum(packed.n_tokens for packed in batch)
            self._seen += tokens
            rate = tokens / (time.perf_counter() - started)
            values |= {
                "tokens": self._seen,
                "tokens_s": rate,
                "mfu": rate * self._flops(batch) / (peak * world.size),
            }
            if log is not None:
                log.write(self._step, values)
            left = (time.perf_counter() - begun) / (self._step - first) * (t.steps - self._step)
            listen(
                self._step,
                t.steps,
                f"loss {values['loss']:.3f}, {rate:,.0f} tokens/s, MFU {values['mfu']:.0%}, "
                f"{clock(left)} left",
            )
            if self._step % r.validate_every == 0 or self._step == t.steps:
                self._validate(log, listen)
            if self._step % r.checkpoint_every == 0 or self._step == t.steps:
                self._save()
        if log is not None:
            log.close()

    def _learn(self, batch: Sequence[Packed]) -> dict[str, float]:
        """Make one step; return loss (nats a token), learning rate and the gradient's norm."""
        t, world = self._config.train, self._world
        learned = max(1, sum(packed.n_learned for packed in batch))
        mine = batch[world.rank :: world.size]
        total, bad = 0.0, ""
        for start in range(0, len(mine), t.micro_batch):
            part = mine[start : start + t.micro_batch]
            loss = self._model(*stacked(part, world.device)) / learned
            value = float(loss.detach())
            if not math.isfinite(value) and not bad:
                bad = "; ".join(packed.where for packed in part)
            (loss * world.size).backward()  # FSDP2 takes the mean over processes
            total += value
        total = world.sum(total)
        if not math.isfinite(total):
            raise NumericsError(self._stopped("the loss", world.gather(bad)))
        parameters = [p for _, p in self._model.learned()]
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, t.clip)))
        if not math.isfinite(norm):
            raise NumericsError(self._stopped("the gradient", [p.where for p in batch]))
        factor = wsd_factor(
            self._step, t.steps, round(t.warmup * t.steps), round(t.decay * t.steps)
        )
        self._optimizers.step(t.learning_rate * factor)
        return {"loss": total, "learning_rate": t.learning_rate * factor, "gradient_norm": norm}

    def _stopped(self, what: str, batch: Sequence[str]) -> str:
        last = latest_checkpoint(self._run)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        where = " | ".join(text for text in batch if text)
        return (
            f"step {self._step + 1}: {what} is not finite with sequences [{where}]; {kept}; lower "
            "train.learning_rate or look at those documents"
        )

    @torch.no_grad()
    def _validate(self, log: MetricsLog | None, listen: Listen) -> None:
        """Measure nats a token on every language's validation sequences."""
        world, micro = self._world, self._config.train.micro_batch
        found = {}
        for language, sequences in self._data.validation.items():
            listen(self._step, self._config.train.steps, f"validating {language}")
            each = micro * world.size
            total = 0.0
            for start in range(0, len(sequences), each):  # all take part in each forward
                mine = list(sequences[start + world.rank : start + each : world.size])
                tokens, positions, labels = stacked(mine or [sequences[0]], world.device)
                if not mine:
                    labels = torch.full_like(labels, IGNORED)
                with named_memory(self._config):
                    total += float(self._model(tokens, positions, labels))
            found[language] = world.sum(total) / max(1, sum(p.n_learned for p in sequences))
        self.validation[str(self._step)] = found
        if log is not None and found:
            log.write(self._step, {f"validation/{name}": loss for name, loss in found.items()})
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in found.items())
        listen(self._step, self._config.train.steps, f"validation: {shown or 'no text'}")

    def _save(self) -> None:
        learned = {name: whole(p) for name, p in self._model.learned()}
        optimizer = {
            "optimizers": [optimizer_state(part) for part in self._optimizers.parts],
            "rng": torch.get_rng_state(),
        }
        state = {
            "step": self._step,
            "tokens": self._seen,
            "data": self._data.packer.state(),
            "validation": self.validation,
        }
        error = ""
        if self._world.leads:
            try:
                save_checkpoint(
                    self._run, self._step, learned, optimizer, state, self._config.run.keep
                )
            except SoroqError as reason:
                error = str(reason)
        for text in self._world.gather(error):
            if text:
                raise CheckpointError(text)

    def _flops(self, batch: Sequence[Packed]) -> float:
        """Return the floating-point operations a token of this batch takes."""
        config = self._model.config
        seen = torch.cat([packed.positions[: packed.n_tokens] for packed in batch]) + 1.0
        window = getattr(config, "sliding_window", None) or math.inf
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        sliding = sum(kind == "sliding_attention" for kind in kinds) / len(kinds)
        keys = float(seen.mean()) * (1 - sliding) + float(seen.clamp(max=window).mean()) * sliding
        return self._model.flops_per_token(keys)


def stacked(
    part: Sequence[Packed], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, positions and labels (n, seq_len) of some sequences."""
    columns = ([getattr(p, name) for p in part] for name in ("tokens", "positions", "labels"))
    tokens, positions, labels = (torch.stack(column).to(device) for column in columns)
    return tokens, positions, labels


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@contextmanager
def named_memory(config: Config) -> Iterator[None]:
    """Turn running out of memory into one line that names what to turn down."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(memory_advice(config)) from error


class OutOfMemory(SoroqError):
    """A step that doesn't fit into memory; the message names the knob to turn."""


def memory_advice(config: Config) -> str:
    """Return the setting that saves most and isn't at its least yet."""
    t = config.train
    if t.micro_batch > 1:
        knob = f"train.micro_batch = {t.micro_batch // 2} (now {t.micro_batch}; same result)"
    elif not t.activation_checkpointing:
        knob = "train.activation_checkpointing = true (same result, a third more time)"
    elif config.model.lora_rank == 0:
        knob = "model.lora_rank = 16 (adapters instead of all weights), or more processes"
    else:
        knob = f"data.seq_len = {config.data.seq_len // 2} (now {config.data.seq_len})"
    return f"out of memory; set {knob}"
