"""Supervised fine-tuning on conversations, learning the answers alone; `soroq train sft`."""

from pathlib import Path
from typing import Any

from soroq.io.checkpoint import open_checkpoint
from soroq.train.chat_data import ChatForm, read_chat_data
from soroq.train.config import Config
from soroq.train.loop import Listen
from soroq.train.run import run_training


def sft(config: Config, out: Path, tokenizer: Any, *, resume: bool, listen: Listen) -> None:
    """Tune as `config` says and write a checkpoint, with its chat template, to `out`.

    What became of the conversations is told first. Otherwise as `soroq.train.pretrain.pretrain`.
    """
    form = ChatForm(tokenizer)
    pad = tokenizer.pad_token_id
    data, end = read_chat_data(config, form, tokenizer.eos_token_id if pad is None else pad)
    counts = ", ".join(f"{name} {n}" for name, n in data.record["counts"].items())
    listen(0, config.train.steps, f"{counts}; chat template {'own' if form.own else 'Gemma 3'}")
    files = form.side_files(open_checkpoint(config.model.source).path, end)
    run_training(config, out, data, resume, listen, files)
