"""`soroq bench`: races on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

commands = typer.Typer(no_args_is_help=True, help="Measure kernels on this machine.")


@commands.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where raw JSON goes.")] = Path("gpu"),
    parts: Annotated[str | None, typer.Option(help="Some of its parts, by commas.")] = None,
    seconds: Annotated[float, typer.Option(help="Start nothing new after that.")] = 460,
    trial: Annotated[bool, typer.Option("--try", help="In miniature, interpreted.")] = False,
) -> None:
    """Check, bound, race and tune the Triton kernels on the GPU at hand."""
    from soroq.commands.kernels import run_bench_gpu

    raise typer.Exit(run_bench_gpu(out, parts, seconds, trial))


@commands.command("cpu")
def bench_cpu(
    shapes: Annotated[
        str, typer.Option(help="Names such as '4b down', by commas, or all.")
    ] = "270m head,1b gate_up,1b down,4b gate_up,4b down,12b down",
    rows: Annotated[
        str, typer.Option(help="Numbers of tokens at once; default: 1, 4, 16, 128, 512.")
    ] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    hot: Annotated[bool, typer.Option("--hot", help="Weights in the caches.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Cold and hot.")] = False,
    who: Annotated[str, typer.Option(help="Names that begin so, by commas, or all.")] = "",
    seconds: Annotated[float, typer.Option(help="About how long it may take.")] = 660,
    record: Annotated[bool, typer.Option(help="Append to bench/records.")] = True,
    trial: Annotated[bool, typer.Option("--try", help="In miniature, no record.")] = False,
    table: Annotated[bool, typer.Option("--table", help="The last run, as Markdown.")] = False,
    picture: Annotated[Path | None, typer.Option(help="The last run, as SVG.")] = None,
) -> None:
    """Race the CPU kernels against other libraries', between this machine's measured limits."""
    from soroq.commands.kernels import run_bench_cpu

    arguments = ["--shapes", shapes, "--rows", rows, "--threads", threads, "--who", who]
    arguments += ["--seconds", str(seconds)]
    given = {"--hot": hot, "--both": both, "--no-record": not record, "--try": trial}
    given["--table"] = table
    arguments += [flag for flag, is_given in given.items() if is_given]
    arguments += ["--picture", str(picture)] if picture is not None else []
    raise typer.Exit(run_bench_cpu(arguments))


@commands.command("onnx")
def bench_onnx(
    onnx: Annotated[list[Path] | None, typer.Option(help="A folder of `soroq export`.")] = None,
    soroq: Annotated[list[Path] | None, typer.Option(help="A checkpoint, for C++.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="name=FILE, for perplexity.")] = None,
    peers: Annotated[
        str, typer.Option(help="By commas; default: all. none, llama.cpp, genai, openvino, …")
    ] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    windows: Annotated[int, typer.Option(help="At most so many windows a text.", min=1)] = 4,
    repeats: Annotated[int, typer.Option(help="Turns of the race.", min=1)] = 7,
    alone: Annotated[int, typer.Option(help="Fresh processes a contender.", min=0)] = 5,
    work: Annotated[Path | None, typer.Option(help="Where peers' files are kept.")] = None,
    record: Annotated[bool, typer.Option(help="Append to bench/records.")] = True,
    table: Annotated[bool, typer.Option("--table", help="The last run, as Markdown.")] = False,
) -> None:
    """Race exported folders against others who run the demo model: speed, memory, perplexity."""
    from soroq.commands.kernels import run_bench_onnx

    arguments = ["--threads", threads, "--windows", str(windows)]
    arguments += ["--repeats", str(repeats), "--alone", str(alone)]
    given: dict[str, list[Any]] = {"--onnx": onnx or [], "--soroq": soroq or []}
    given |= {"--text": text or [], "--peers": [peers] if peers else []}
    given["--work"] = [work] if work else []
    for flag, values in given.items():
        arguments += [part for value in values for part in (flag, str(value))]
    arguments += ["--no-record"] * (not record) + ["--table"] * table
    raise typer.Exit(run_bench_onnx(arguments))
