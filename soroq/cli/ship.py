"""Commands on finished models: other formats, what fits where, one archive."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def convert(
    source: Annotated[str, typer.Argument(help="A quantized checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The directory or .gguf file.", show_default=False)],
    format_name: Annotated[
        str, typer.Option("--format", help="compressed-tensors, gptq, gptq-v2, awq or gguf.")
    ],
) -> None:
    """Write a quantized checkpoint in another format: the same values, or a reason why not."""
    from soroq.commands.convert import run_convert

    run_convert(source, out, format_name)
