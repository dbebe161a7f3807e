"""train demo: corpus, pretraining, tuning, quantize and check, one behind the other.

Every stage leaves a folder or a file in OUT, and what is there is kept: a stopped demo goes on with
the same command.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from soroq import console
from soroq.commands.check import Outputs, run_check
from soroq.commands.quantize import QuantizeRequest, quantize_to
from soroq.commands.train import running
from soroq.io.writer import atomic_write, make_folder

SHARES = {"tg": 0.7, "en": 0.3}
VALID_SHARE = 0.08  # of the documents: the built-in English has to come to a window or two
SCHEME, SAMPLES = "int4-gptq", 16
TRAINED, QUANTIZED, SECONDS = "check-trained.json", "check-quantized.json", "seconds.json"


@dataclass(frozen=True)
class DemoRequest:
    """steps: of pretraining; tuning takes a sixth as many. texts, chats: to learn from; the
    built-in ones where a language, or chats, are missing. valid: to check on; built-in if empty.
    windows: of each language that are checked. seq_len, batch: of a run. group_size: of the int4
    weights; the scheme's own if empty."""

    out: Path
    steps: int = 24
    texts: Mapping[str, Path] | None = None
    chats: tuple[Path, ...] = ()
    valid: Mapping[str, Path] | None = None
    windows: int = 6
    model: str = "gemma3-270m"
    seq_len: int = 256
    batch: int = 8
    group_size: str = ""

    def config(self, model: str, data: Mapping[str, Any], steps: int, rate: float) -> Any:
        """Return the configuration of one run: adapters of rank 16, validated four times."""
        from soroq.train.config import make_config

        every = max(1, steps // 4)
        given: dict[str, Any] = {
            "model": {"source": model, "lora_rank": 16},
            "data": {"seq_len": self.seq_len, **data},
            "train": {"steps": steps, "batch": self.batch, "learning_rate": rate, "warmup": 0.1}
            | {"decay": 0.5},
            "run": {"checkpoint_every": every, "validate_every": every, "validation": 6},
        }
        return make_config(given, "demo")


def run_train_demo(request: DemoRequest) -> None:
    """Do what isn't done yet, with each language's loss on the way. Raises SoroqError.

    How long each stage took is kept in OUT/seconds.json.
    """
    out, say = request.out, console.out.print
    corpus, pretrained, tuned = out / "corpus", out / "pretrained", out / "tuned"
    quantized = out / f"tuned-{SCHEME}"
    make_folder(out)
    trained, checked = out / TRAINED, out / QUANTIZED
    stages: dict[Path, tuple[str, Callable[[], None]]] = {
        corpus: (f"train corpus {corpus}", partial(_build_corpus, request, corpus)),
        pretrained: (
            f"train pretrain -o {pretrained}",
            partial(_pretrain, request, corpus, pretrained),
        ),
        tuned: (f"train sft -o {tuned}", partial(_tune, request, pretrained, tuned)),
        quantized: (
            f"quantize {tuned} --scheme {SCHEME} -o {quantized}",
            partial(_quantize, request, tuned, quantized),
        ),
        trained: (
            f"check {request.model} {tuned} --out {trained}",
            partial(_check, request, request.model, tuned, trained),
        ),
        checked: (
            f"check {tuned} {quantized} --out {checked}",
            partial(_check, request, str(tuned), quantized, checked),
        ),
    }
    for number, (made, (command, run)) in enumerate(stages.items(), 1):
        say(f"{number}. soroq {command}", highlight=False)
        if made.exists():
            say(f"   {made} is there already", highlight=False)
            continue
        started = time.monotonic()
        run()
        _keep_seconds(out, made.name, time.monotonic() - started)
    say(f"all of it took {sum(_read_seconds(out).values()):.0f} s", highlight=False)


def _keep_seconds(out: Path, stage: str, seconds: float) -> None:
    taken = _read_seconds(out) | {stage: seconds}
    atomic_write(out / SECONDS, json.dumps(taken, indent=1).encode())


def _read_seconds(out: Path) -> dict[str, float]:
    file = out / SECONDS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _build_corpus(request: DemoRequest, corpus: Path) -> None:
    from soroq.commands.corpus import build_corpus
    from soroq.train.corpus.build import Request
    from soroq.train.demo import write_demo_text

    texts = dict(request.texts or {})
    for language in SHARES:
        if language not in texts:
            name = request.out / f"built-in-{language}.jsonl"
            texts[language] = write_demo_text(name, language)
    build_corpus(
        Request(tuple(texts.items()), valid_share=VALID_SHARE), corpus, request.model, resume=True
    )


def _pretrain(request: DemoRequest, corpus: Path, out: Path) -> None:
    from soroq.loading import load_tokenizer
    from soroq.train.corpus.shards import read_corpus
    from soroq.train.pretrain import pretrain

    languages = read_corpus(corpus).languages("train")
    data = {"corpus": str(corpus), "shares": SHARES if set(languages) == set(SHARES) else {}}
    config = request.config(request.model, data, request.steps, 1e-4)
    with running(out) as listen:
        pretrain(config, out, load_tokenizer(request.model), resume=True, listen=listen)
    _say_losses(out)


def _tune(request: DemoRequest, source: Path, out: Path) -> None:
    from soroq.loading import load_tokenizer
    from soroq.train.demo import write_demo_conversations
    from soroq.train.sft import sft

    files = request.chats or (write_demo_conversations(request.out / "conversations.jsonl"),)
    data = {"files": [str(file) for file in files]}
    config = request.config(str(source), data, max(1, request.steps // 6), 5e-5)
    with running(out) as listen:
        sft(config, out, load_tokenizer(source), resume=True, listen=listen)
    _say_losses(out)


def _quantize(request: DemoRequest, source: Path, out: Path) -> None:
    quantize = QuantizeRequest(
        str(source),
        out,
        SCHEME,
        request.group_size,
        samples=SAMPLES,
        resume=out.with_name(f"{out.name}.partial").exists(),
    )
    quantize_to(quantize, quantize.recipe(), out)


def _check(request: DemoRequest, base: str, model: Path, file: Path) -> None:
    from soroq.bench.quality.check import CheckRequest

    check = CheckRequest(base, str(model), texts=request.valid, windows=request.windows)
    run_check(check, Outputs(json_file=file))


def _say_losses(folder: Path) -> None:
    """Print each language's validation loss by step, and what it changed by."""
    from soroq.train.result import RECORD

    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    steps = record["validation"]
    languages = list(next(iter(steps.values())))
    rows = [
        [step, *(f"{losses[language]:.4f}" for language in languages)]
        for step, losses in steps.items()
    ]
    first, *_, last = steps.values()
    change = [f"{100 * (last[name] / first[name] - 1):+.1f} %" for name in languages]
    console.table(
        f"{folder.name}: validation loss, nats a token",
        ["step", *languages],
        [*rows, ["change", *change]],
    )
