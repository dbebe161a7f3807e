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
    k_quants: Annotated[
        bool, typer.Option("--k-quants", help="gguf: Q4_K for zero points, Q6_K for the head.")
    ] = False,
) -> None:
    """Write a quantized checkpoint in another format: the same values, or a reason why not."""
    from soroq.commands.convert import run_convert

    run_convert(source, out, format_name, k_quants)


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


@commands.command()
def bundle(
    out: Annotated[
        Path | None, typer.Argument(help="The archive to write, or the folder to unpack to.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A checkpoint's directory.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="What soroq export wrote.")] = None,
    report: Annotated[list[Path] | None, typer.Option(help="Of soroq check; repeatable.")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Go on without one.")] = False,
    licence: Annotated[
        list[Path] | None, typer.Option(help="The model's, if its directory has none.")
    ] = None,
    wheels: Annotated[bool, typer.Option(help="Carry the software too.")] = True,
    wheel_dir: Annotated[Path | None, typer.Option(help="Take wheels from here.")] = None,
    runtime: Annotated[str, typer.Option(help="Whose wheels: onnx or torch.")] = "onnx",
    sign: Annotated[Path | None, typer.Option(help="A secret key of minisign.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check this archive.")] = None,
    unpack: Annotated[Path | None, typer.Option(help="Check and unpack this archive.")] = None,
    public_key: Annotated[str, typer.Option(help="Of minisign: a file or its line.")] = "",
) -> None:
    """Pack a model, its proof, licences and software for a machine without a network."""
    from soroq.commands.bundle import Order, run_bundle, run_unpack, run_verify
    from soroq.core.errors import SchemeError

    if verify is not None:
        run_verify(verify, public_key)
    elif unpack is not None:
        run_unpack(unpack, out, public_key)
    elif out is None:
        raise SchemeError("nothing to do: soroq bundle OUT.tar --model DIR, --verify or --unpack")
    else:
        order = Order(
            model,
            onnx,
            tuple(report or ()),
            no_report,
            tuple(licence or ()),
            wheels,
            wheel_dir,
            runtime,
            sign,
        )
        run_bundle(out, order)
