"""The command line: `soroq --help`. A command is one short function that imports what it needs.

Exit codes: 0 done, 1 a gate failed, 2 bad input (one line says what to do), 3 a gate could not
decide, 130 interrupted.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from soroq.cli import bench, ship, train
from soroq.cli.options import Json, Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize language models and prove that they are still good in their language.",
)
calib_app = typer.Typer(no_args_is_help=True, help="Build calibration sets.")
app.add_typer(calib_app, name="calib")
app.add_typer(bench.commands, name="bench")
app.add_typer(train.commands, name="train")
app.add_typer(ship.commands)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks of errors.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads to use.", min=1)] = None,
) -> None:
    _STATE.update(debug=debug, threads=threads)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch, loaded later, starts that many


_STATE: dict[str, Any] = {"debug": False, "threads": None}


@app.command()
def schemes() -> None:
    """List the schemes."""
    from soroq.commands.quantize import list_schemes

    list_schemes()


@app.command()
def quantize(
    model: Source,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The new directory.")] = None,
    scheme: Annotated[str, typer.Option(help="See `soroq schemes`.")] = "int4",
    group_size: Annotated[str, typer.Option(help="32, 64, 128 or row.")] = "",
    sym: Annotated[bool | None, typer.Option("--sym/--asym", help="Zero points.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="'module glob:scheme'; the first match wins.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Module glob to leave alone.")] = None,
    embed: Annotated[str, typer.Option(help="Embedding and head: int8, int4 or none.")] = "none",
    calib: Annotated[
        str, typer.Option(help="builtin, a set of `soroq calib build`, or a text file.")
    ] = "builtin",
    mix: Annotated[str, typer.Option(help="Shares of languages in the built-in text.")] = "",
    samples: Annotated[int, typer.Option(help="Calibration windows.", min=1)] = 128,
    seq_len: Annotated[int, typer.Option(help="Tokens in a window.", min=8)] = 512,
    seed: int = 0,
    damp: Annotated[float, typer.Option(help="GPTQ damping, share of the mean diagonal.")] = 0.01,
    distill: Annotated[
        bool | None,
        typer.Option(
            "--distill/--no-distill", help="Tune scales and norms at the end; see `soroq schemes`."
        ),
    ] = None,
    reorder: Annotated[
        bool | None,
        typer.Option(
            "--reorder/--no-reorder", help="Put channels in order of size; see `soroq schemes`."
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Mix formats within so many bits a weight, e.g. 4.5bpw.")
    ] = "",
    max_size: Annotated[
        str, typer.Option(help="Mix formats within this output size, e.g. 2.5GB.")
    ] = "",
    max_dnll: Annotated[
        float | None, typer.Option(help="The smallest mix that should lose no more, nats a token.")
    ] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="A file of `soroq sensitivity`; default: measured now.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(help="Let llmcompressor, gptqmodel or autoround do it."),
    ] = "",
    backend_python: Annotated[
        Path | None,
        typer.Option(help="The Python that has it.", envvar="SOROQ_BACKEND_PYTHON"),
    ] = None,
    format_name: Annotated[
        str, typer.Option("--format", help="compressed-tensors, gptq, gptq-v2 or awq.")
    ] = "compressed-tensors",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    json_out: Json = False,
) -> None:
    """Quantize a model into a new directory."""
    from soroq.commands.budget import parse_budget
    from soroq.commands.quantize import QuantizeRequest, run_quantize

    run_quantize(
        QuantizeRequest(
            model,
            out,
            scheme,
            group_size,
            sym,
            tuple(override or ()),
            tuple(skip or ()),
            embed,
            calib,
            mix,
            samples,
            seq_len,
            seed,
            damp,
            distill,
            reorder,
            parse_budget(budget, max_size, max_dnll, sensitivity),
            backend,
            backend_python,
            format_name,
            dry_run,
            resume,
            json_out,
        )
    )


@app.command()
def check(
    base: Source,
    quant: Annotated[str, typer.Argument(help="The model to compare.", show_default=False)],
    text: Annotated[
        list[str] | None,
        typer.Option(help="name=FILE (.txt or .jsonl); default: the built-in tg and en text."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--tasks",
            help="name=FILE of items (TajLiB, TALIM, MMLU, your own), or lm_eval:NAME.",
        ),
    ] = None,
    windows: Annotated[int, typer.Option(help="At most so many windows a text.", min=1)] = 16,
    seq_len: Annotated[int, typer.Option(help="Tokens in a window.", min=8)] = 512,
    stride: Annotated[
        int | None, typer.Option(help="New tokens a window; default: all, no overlap.", min=1)
    ] = None,
    items: Annotated[int | None, typer.Option(help="At most so many items a task.", min=1)] = None,
    shots: Annotated[int, typer.Option(help="Worked examples before an item.", min=0)] = 0,
    mode: Annotated[str, typer.Option(help="Score choices by their text, or by letter.")] = "text",
    max_tokens: Annotated[int, typer.Option(help="Tokens of a free answer.", min=1)] = 64,
    prompts: Annotated[int, typer.Option(help="Let it write on so many prompts.", min=0)] = 0,
    gate: Annotated[
        str | None, typer.Option(help="Limits: a TOML file, or 'default'.", show_default=False)
    ] = None,
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also compare BASE with itself.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the report as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page.")] = None,
    write_card: Annotated[
        bool, typer.Option("--write-card", help="Put the results into QUANT's README.md.")
    ] = False,
    json_out: Json = False,
) -> None:
    """Perplexity, divergence, tasks and gates of QUANT against BASE.

    Exit code 0: passed (or no gate), 1: failed, 3: undecided, the data can't tell.
    """
    from soroq.bench.quality.check import CheckRequest
    from soroq.bench.quality.tasks.harness import PREFIX
    from soroq.commands.check import Outputs, parse_files, run_check

    own = [spec for spec in task or () if not spec.startswith(PREFIX)]
    request = CheckRequest(
        base,
        quant,
        texts=parse_files(text or (), "--text"),
        tasks=parse_files(own, "--task"),
        harness=tuple(s.removeprefix(PREFIX) for s in task or () if s.startswith(PREFIX)),
        windows=windows,
        seq_len=seq_len,
        stride=stride,
        items=items,
        shots=shots,
        mode=mode,
        max_tokens=max_tokens,
        prompts=prompts,
        gate=None if gate is None or gate == "default" else Path(gate),
        gated=gate is not None,
        noise_floor=noise_floor,
    )
    code = run_check(request, Outputs(json_out, out, markdown, html, write_card))
    raise typer.Exit(code)


@app.command()
def report(
    reports: Annotated[list[Path], typer.Argument(help="JSON files of `soroq check --out`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")],
    sensitivity: Annotated[
        Path | None, typer.Option(help="Also show a file of `soroq sensitivity`.")
    ] = None,
) -> None:
    """One page over several checks: quality against size, side by side."""
    from soroq.commands.check import page_of

    page_of(reports, out, sensitivity)


@app.command()
def sensitivity(
    model: Source,
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")] = Path(
        "sensitivity.json"
    ),
    windows: Annotated[int, typer.Option(help="Windows of text of each language.", min=1)] = 4,
    seq_len: Annotated[int, typer.Option(min=8)] = 256,
    reorder: Annotated[
        bool, typer.Option(help="Channels in order of size, as `int4` quantizes them.")
    ] = False,
    json_out: Json = False,
) -> None:
    """What each group of linears costs when it alone is quantized (KL in Tajik and in English)."""
    from soroq.commands.budget import run_sensitivity

    run_sensitivity(model, out, windows, seq_len, reorder=reorder, json_out=json_out)


@app.command()
def inspect(model: Source, json_out: Json = False) -> None:
    """Show what is in a checkpoint."""
    from soroq.commands.show import run_inspect

    run_inspect(model, json_out)


@app.command()
def generate(
    model: Source,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="Text to go on from.")],
    max_tokens: Annotated[int, typer.Option("-n", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0)] = 0.0,
    seed: int = 0,
    raw: Annotated[bool, typer.Option(help="No chat template.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Stream text from a model."""
    from soroq.commands.show import run_generate

    run_generate(model, prompt, max_tokens, temperature, seed, raw, device)


@app.command()
def export(
    model: Source,
    out: Annotated[Path, typer.Option("-o", "--out", help="The new directory.")],
    target: Annotated[
        str, typer.Option(help="onnx-cpu, or onnx-soroq: soroq's own kernels.")
    ] = "onnx-cpu",
    compute: Annotated[
        str, typer.Option(help="Values between nodes: float32, float16 or bfloat16.")
    ] = "float32",
    precision: Annotated[
        str, typer.Option(help="Activations: int8, int8-fine, int16 (onnx-soroq) or exact.")
    ] = "int8",
    parity: Annotated[
        bool, typer.Option("--parity/--no-parity", help="Compare the result with PyTorch.")
    ] = True,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first layer that differs.")
    ] = False,
) -> None:
    """Write a model for a runtime without PyTorch, and compare the two.

    Exit code 1: the result does not speak as PyTorch does.
    """
    from soroq.commands.export import run_export

    raise typer.Exit(run_export(model, out, target, compute, precision, parity, bisect))


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="What `soroq export` wrote.", show_default=False)],
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="One question; default: lines of stdin.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("-n", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0)] = 0.0,
    seed: int = 0,
    raw: Annotated[bool, typer.Option(help="No chat template.")] = False,
) -> None:
    """Chat with an exported model, by ONNX Runtime alone."""
    from soroq.commands.export import run_chat

    run_chat(folder, prompt, max_tokens, temperature, seed, raw, _STATE["threads"])


@calib_app.command("build")
def calib_build(
    out: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    model: Annotated[str, typer.Option(help="Whose tokenizer to use.")] = "gemma3-270m",
    text: Annotated[
        list[str] | None,
        typer.Option(help="language=FILE (.txt, .jsonl, .parquet) or a folder."),
    ] = None,
    mix: Annotated[str, typer.Option(help="Shares, e.g. tg=0.8,en=0.2.")] = "",
    samples: Annotated[int, typer.Option(min=1)] = 128,
    seq_len: Annotated[int, typer.Option(min=8)] = 512,
    seed: int = 0,
    license: Annotated[str, typer.Option(help="Licence of the text, for the record.")] = "unknown",
) -> None:
    """Make a calibration set from text."""
    from soroq.commands.calibration import run_calib_build

    run_calib_build(out, model, tuple(text or ()), mix, samples, seq_len, seed, license)


@app.command()
def tune(
    model: Source,
    rows: Annotated[str, typer.Option(help="Numbers of tokens at once.")] = "1,16,64,256",
) -> None:
    """Find the fastest kernel configurations for a quantized model on this machine's GPU."""
    from soroq.commands.kernels import parse_rows, run_tune

    print(f"kept in {run_tune(model, parse_rows(rows))}")


@app.command()
def doctor() -> None:
    """Say which kernels run here and why, and what the machine can do at most."""
    from soroq.commands.kernels import run_doctor

    run_doctor()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out")] = Path("demo-out"),
    scheme: str = "int4-awq",
    samples: Annotated[int, typer.Option(min=1)] = 16,
    windows: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Quantize the real Gemma 3 270M, measure it in Tajik and English, let it speak."""
    from soroq.commands.show import run_demo

    run_demo(out, scheme, samples, windows)


def main() -> None:
    """Run the command line; turn SoroqError, and a full disk, into one line and exit code 2."""
    from soroq.core.errors import SoroqError

    try:
        app(standalone_mode=True)
    except SoroqError as error:
        if _STATE["debug"]:
            raise
        print(f"soroq: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if _STATE["debug"] or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"soroq: {place}{error.strerror}; free some space or choose another", file=sys.stderr)
        sys.exit(2)
