"""Commands on finished models: other formats, what fits where, one archive."""

from pathlib import Path
from typing import Annotated

import typer

from soroq.cli.options import Json

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


@commands.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint, a config.json, or gemma3-4b and its like."),
    ],
    device: Annotated[
        list[str] | None, typer.Option(help="A machine by name; may be repeated; default: all.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Of a machine of your own, e.g. 8GB.")] = "",
    bandwidth: Annotated[str, typer.Option(help="Of its memory, e.g. 34GB/s.")] = "",
    watts: Annotated[float | None, typer.Option(help="Under load.", min=0)] = None,
    price: Annotated[float | None, typer.Option(help="In USD.", min=0)] = None,
    context: Annotated[int, typer.Option(help="Tokens of a conversation.", min=1)] = 2048,
    users: Annotated[int, typer.Option(help="Conversations at once.", min=1)] = 1,
    hours_per_day: Annotated[float, typer.Option(help="Of load.", min=0.01, max=24)] = 6,
    days_per_year: Annotated[int, typer.Option(help="Of load.", min=1, max=366)] = 200,
    electricity: Annotated[float, typer.Option(help="USD a kWh.", min=0)] = 0.05,
    lifetime: Annotated[float, typer.Option(help="Years a machine serves.", min=0.1)] = 5,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    json_out: Json = False,
) -> None:
    """Estimate what fits on which machine, how fast it is and what it costs."""
    from soroq.commands.plan import choose_devices, run_plan
    from soroq.planning.estimate import Use

    devices = choose_devices(device or [], memory, bandwidth, watts, price)
    use = Use(context, users, hours_per_day, days_per_year, electricity, lifetime)
    run_plan(model, devices, use, json_out, markdown)
