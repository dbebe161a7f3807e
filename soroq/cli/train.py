"""`soroq train`: from raw text to a checkpoint that `soroq quantize` takes."""

from pathlib import Path
from typing import Annotated

import typer

from soroq.cli.options import Json

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
def corpus(
    out: Annotated[Path, typer.Argument(help="The new directory.", show_default=False)],
    text: Annotated[list[str], typer.Option(help="LANGUAGE=FILE or folder; may be repeated.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer: a directory, .gguf or name.")],
    benchmark: Annotated[
        list[Path] | None, typer.Option(help="JSONL of items that must not be in the text.")
    ] = None,
    valid_share: Annotated[float, typer.Option(help="Of documents.", min=0, max=0.5)] = 0.02,
    license_: Annotated[
        str, typer.Option("--license", help="Of files that name none.")
    ] = "unknown",
    seed: int = 0,
    resume: Resume = False,
) -> None:
    """Build a corpus: read, clean, filter, mask, drop doubles and benchmarks, tokenize."""
    from soroq.commands.corpus import run_corpus

    run_corpus(out, tuple(text), model, tuple(benchmark or ()), valid_share, license_, seed, resume)


@commands.command()
def tokenizer(
    model: Annotated[str, typer.Option(help="Whose tokenizer: a directory, .gguf or name.")],
    text: Annotated[list[str], typer.Option(help="LANGUAGE=FILE or folder; may be repeated.")],
    parallel: Annotated[
        bool, typer.Option(help="The texts are translations of each other, line by line.")
    ] = False,
    json_out: Json = False,
) -> None:
    """Tell what a tokenizer makes of each language, and what that costs."""
    from soroq.commands.corpus import run_tokenizer

    run_tokenizer(model, tuple(text), parallel, json_out)


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


@commands.command()
def qat(config: ConfigFile, out: Out, set_: Set = None, resume: Resume = False) -> None:
    """Train a quantized model's codes towards its original: better in the same bits."""
    from soroq.commands.train import run_qat

    run_qat(config, out, tuple(set_ or ()), resume)


@commands.command("teacher-data")
def teacher_data(
    outline: Annotated[Path, typer.Argument(help="Subjects and topics; see docs/train.md.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSONL file to write.")],
    model: Annotated[str, typer.Option(help="Who answers: a model directory or .gguf file.")],
    tries: Annotated[int, typer.Option(help="Answers to a question until one passes.", min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0)] = 0.8,
    min_words: Annotated[int, typer.Option(min=1)] = 8,
    max_words: Annotated[int, typer.Option(min=1)] = 400,
    language: Annotated[str, typer.Option(help="tg, ru, uz, ky, kk or en.")] = "tg",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    resume: Resume = False,
) -> None:
    """Let a local model answer a curriculum's questions; keep what passes the checks."""
    from soroq.commands.teacher import TeacherRequest, run_teacher_data

    limits = (min_words, max_words)
    run_teacher_data(
        TeacherRequest(
            outline, out, model, tries, max_tokens, temperature, limits, language, device, resume
        )
    )


@commands.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder for all of it.")] = Path(
        "train-demo"
    ),
    steps: Annotated[int, typer.Option(help="Of pretraining; tuning: a sixth.", min=1)] = 24,
    text: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=FILE to learn from; default: built-in.")
    ] = None,
    chat: Annotated[
        list[Path] | None, typer.Option(help="Conversations to tune on; default: built-in.")
    ] = None,
    valid: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=FILE to check on; default: built-in.")
    ] = None,
    windows: Annotated[int, typer.Option(help="Of a language that are checked.", min=1)] = 6,
) -> None:
    """Corpus, pretraining, tuning, quantize and check of the real Gemma 3 270M, in minutes."""
    from soroq.commands.check import parse_files
    from soroq.commands.train_demo import DemoRequest, run_train_demo

    texts, checked = parse_files(text or (), "--text"), parse_files(valid or (), "--valid")
    run_train_demo(DemoRequest(out, steps, texts, tuple(chat or ()), checked, windows))
