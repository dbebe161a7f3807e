"""What a run tells while it goes on: a line of JSON a step, TensorBoard, tokens/s and MFU."""

import json
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import OutputError

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to metrics.jsonl, and to TensorBoard's files if asked.

    last_step: where a resumed run goes on from; what stands behind it is dropped.
    """

    def __init__(self, run: Path, *, tensorboard: bool, last_step: int = 0) -> None:
        self._path = run / FILE
        kept = []
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= last_step:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue  # the last line of a killed run
        try:
            self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"can't write {self._path}: {error.strerror}") from error
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise OutputError(
                    "run.tensorboard needs a package: pip install tensorboard, or set it to false"
                ) from error

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=last_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        line = json.dumps({"step": step, **values})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl."""
    lines = (run / FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def flops_per_token(
    config: Any, n_linear: int, n_head: int, keys: float, learned_share: float
) -> float:
    """Return the floating-point operations that learning from a token takes.

    n_linear, n_head: weights of the blocks' linears and of the head; keys: how many tokens one
    sees on the average, the mean over blocks. Forward: 2 a weight, and 4 · heads · head_dim · keys
    a block for scores and values. Backward: as much for the gradients of values, and as much for
    those of weights that are learned (learned_share: of all weights here). What activation
    checkpointing computes again doesn't count (PaLM, arXiv 2204.02311, appendix B).
    """
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention: float = 4 * config.num_hidden_layers * heads * size * keys
    products = 2.0 * (n_linear + n_head)
    return products * (2 + learned_share) + 3 * attention


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Return the most FLOP/s that a plain product of large matrices reaches here in `dtype`."""
    import time

    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2.0 * n**3 / (time.perf_counter() - start))
    return best
