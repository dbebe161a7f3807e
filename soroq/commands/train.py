"""train pretrain, sft, qat: read the configuration, open the tokenizer, run with progress."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from soroq import console
from soroq.train.config import load_config

Listen = Callable[[int, int, str], None]


def run_pretrain(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.pretrain import pretrain

    _run(pretrain, path, out, overrides, resume)


def run_sft(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.sft import sft

    _run(sft, path, out, overrides, resume)


def run_qat(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.qat import qat

    _run(qat, path, out, overrides, resume)


def _run(
    train: Callable[..., None], path: Path, out: Path, overrides: tuple[str, ...], resume: bool
) -> None:
    from soroq.loading import load_tokenizer

    config = load_config(path, overrides)
    with running(out) as listen:
        train(config, out, load_tokenizer(config.model.source), resume=resume, listen=listen)


@contextmanager
def running(out: Path) -> Iterator[Listen]:
    """Yield a listener for a run into `out`; tell, if it is interrupted, how to go on."""
    from soroq.core.memory import keep_memory
    from soroq.train.distributed import join_world

    world = join_world()
    if world.device.type == "cpu":
        keep_memory()
    try:
        if not world.leads:
            yield lambda done, total, what: None
            return
        with console.train_progress() as listen:
            yield listen
    except KeyboardInterrupt:
        print(
            f"soroq: interrupted; checkpoints are in {out}.partial, go on with the same command "
            "and --resume",
            file=sys.stderr,
        )
        raise
    console.out.print(f"wrote {out}", highlight=False)
