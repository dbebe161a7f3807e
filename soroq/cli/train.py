"""`soroq train`: from raw text to a checkpoint that `soroq quantize` takes."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(no_args_is_help=True, help="Corpus, pretraining and tuning.")

ConfigFile = Annotated[Path, typer.Option("--config", help="A TOML file; see docs/train.md.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The new directory.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="table.key=value instead of the file's.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")]


@commands.callback()
def _train() -> None:
    """Corpus, pretraining and tuning."""


@commands.command()
def pretrain(config: ConfigFile, out: Out, set_: Set = None, resume: Resume = False) -> None:
    """Continue a model's pretraining on a corpus: all weights, or adapters."""
    from soroq.commands.train import run_pretrain

    run_pretrain(config, out, tuple(set_ or ()), resume)


@commands.command()
def sft(config: ConfigFile, out: Out, set_: Set = None, resume: Resume = False) -> None:
    """Tune a model on conversations; only the answers are learned."""
    from soroq.commands.train import run_sft

    run_sft(config, out, tuple(set_ or ()), resume)
