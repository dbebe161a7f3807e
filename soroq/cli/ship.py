"""Commands on finished models: other formats, what fits where, one archive."""

import typer

commands = typer.Typer()
