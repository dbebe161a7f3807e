"""Continual pretraining: all weights, or adapters, on a corpus; `soroq train pretrain`."""

from pathlib import Path
from typing import Any

from soroq.train.config import Config
from soroq.train.data import read_pretraining_data
from soroq.train.loop import Listen
from soroq.train.run import run_training


def pretrain(config: Config, out: Path, tokenizer: Any, *, resume: bool, listen: Listen) -> None:
    """Train as `config` says and write a checkpoint to `out`.

    The run's state is in `<out>.partial` until it is done; resume goes on from there. Raises
    SoroqError for what can't be trained, a loss that is no number, too little memory or disk.
    """
    run_training(config, out, read_pretraining_data(config, tokenizer), resume, listen)
