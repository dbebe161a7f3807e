"""`soroq train`: from raw text to a checkpoint that `soroq quantize` takes."""

import typer

commands = typer.Typer(no_args_is_help=True, help="Corpus, pretraining and tuning.")


@commands.callback()
def _train() -> None:
    """Corpus, pretraining and tuning."""
