"""train pretrain, sft, qat: read the configuration, open the tokenizer, run with progress."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soroq import console
from soroq.train.config import load_config, make_config

Listen = Callable[[int, int, str], None]


def run_pretrain(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.pretrain import pretrain

    _run(pretrain, path, out, overrides, resume)


def run_sft(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.sft import sft

    _run(sft, path, out, overrides, resume)


def run_qat(path: Path, out: Path, overrides: tuple[str, ...], resume: bool) -> None:
    from soroq.train.qat import qat

    _run(qat, path, out, overrides, resume)


def _run(
    train: Callable[..., None], path: Path, out: Path, overrides: tuple[str, ...], resume: bool
) -> None:
    from soroq.loading import load_tokenizer

    config = load_config(path, overrides)
    with _running(out) as listen:
        train(config, out, load_tokenizer(config.model.source), resume=resume, listen=listen)


def run_train_demo(out: Path, steps: int, model: str = "gemma3-270m") -> None:
    """Write data, pretrain, tune and quantize into folders of `out`; what is there is kept."""
    from soroq.core.recipe import Recipe
    from soroq.core.schemes import get_scheme
    from soroq.loading import load_tokenizer
    from soroq.pipeline.run import quantize
    from soroq.train.demo import write_demo_conversations, write_demo_corpus
    from soroq.train.pretrain import pretrain
    from soroq.train.result import RECORD
    from soroq.train.sft import sft

    corpus, pretrained, tuned = out / "corpus", out / "pretrained", out / "tuned"
    quantized, say = out / "tuned-int8", console.out.print
    say(f"1. the built-in passages → {corpus}")
    write_demo_corpus(corpus, load_tokenizer(model))
    given: dict[str, Any] = {
        "model": {"source": model},
        "data": {"corpus": str(corpus), "shares": {"tg": 0.8, "en": 0.2}, "seq_len": 128},
        "train": {"steps": steps, "batch": 4, "learning_rate": 2e-5, "warmup": 0.25},
        "run": {"checkpoint_every": steps, "validate_every": steps, "validation": 4},
    }
    if not pretrained.exists():
        say(f"2. soroq train pretrain → {pretrained}")
        config = make_config(given, "demo")
        with _running(pretrained) as listen:
            pretrain(config, pretrained, load_tokenizer(model), resume=True, listen=listen)
    if not tuned.exists():
        say(f"3. soroq train sft → {tuned}")
        rows = write_demo_conversations(out / "conversations.jsonl")
        given["model"] = {"source": str(pretrained), "lora_rank": 8}
        given["data"] = {"files": [str(rows)], "seq_len": 192}
        given["train"] |= {"learning_rate": 2e-4}
        with _running(tuned) as listen:
            tokenizer = load_tokenizer(pretrained)
            sft(make_config(given, "demo"), tuned, tokenizer, resume=True, listen=listen)
    if not quantized.exists():
        say(f"4. soroq quantize --scheme int8-rtn → {quantized}")
        with console.block_progress() as progress:
            recipe = Recipe(get_scheme("int8-rtn", group_size=64))
            quantize(str(tuned), quantized, recipe=recipe, calibration=None, listen=progress)
    for folder in (pretrained, tuned):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        say(f"{folder}: validation loss, nats a token", highlight=False)
        for step, losses in record["validation"].items():
            shown = ", ".join(f"{language} {loss:.3f}" for language, loss in losses.items())
            say(f"  step {step}: {shown}", highlight=False)


@contextmanager
def _running(out: Path) -> Iterator[Listen]:
    """Yield a listener for a run into `out`; tell, if it is interrupted, how to go on."""
    from soroq.core.memory import keep_memory
    from soroq.train.distributed import join_world

    world = join_world()
    if world.device.type == "cpu":
        keep_memory()
    try:
        if not world.leads:
            yield lambda done, total, what: None
            return
        with console.train_progress() as listen:
            yield listen
    except KeyboardInterrupt:
        print(
            f"soroq: interrupted; checkpoints are in {out}.partial, go on with the same command "
            "and --resume",
            file=sys.stderr,
        )
        raise
    console.out.print(f"wrote {out}", highlight=False)
