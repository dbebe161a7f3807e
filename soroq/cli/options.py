"""Options that several commands take."""

from typing import Annotated

import typer

Source = Annotated[
    str, typer.Argument(help="A model directory, a .gguf file, or gemma3-270m.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
