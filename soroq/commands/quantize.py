"""quantize, calib build and schemes: build requests, call the library, print results."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from soroq import console
from soroq.calib.dataset import CalibrationSet, load_calibration
from soroq.calib.sample import build_calibration
from soroq.calib.sources import Document, builtin_documents, read_documents
from soroq.core.errors import CalibrationError, SchemeError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import SCHEMES, get_scheme

DEFAULT_MIX = {"tg": 0.7, "en": 0.3}
_EMBED = {
    "none": None,
    "int8": QuantArgs(bits=8, group_size=64),
    "int4": QuantArgs(bits=4, group_size=32, symmetric=False),
}


@dataclass(frozen=True)
class QuantizeRequest:
    """The options of `soroq quantize`, as typed."""

    model: str
    out: Path | None
    scheme: str
    group_size: str
    symmetric: bool | None
    overrides: tuple[str, ...]
    skips: tuple[str, ...]
    embed: str
    calib: str
    mix: str
    samples: int
    seq_len: int
    seed: int
    damp: float
    distill: bool | None
    dry_run: bool
    resume: bool
    json_out: bool

    def recipe(self) -> Recipe:
        """Return the resolved recipe. Raises SchemeError for options that don't fit."""
        group: int | None | str = self.group_size
        if self.group_size == "row":
            group = None
        elif self.group_size:
            if self.group_size not in ("32", "64", "128"):
                raise SchemeError(f"group size {self.group_size!r} is not 32, 64, 128 or row")
            group = int(self.group_size)
        if self.embed not in _EMBED:
            raise SchemeError(f"--embed {self.embed!r} is not int8, int4 or none")
        if not 0 < self.damp <= 1:
            raise SchemeError(f"--damp {self.damp} is not in (0, 1]")
        overrides = [(pattern, None) for pattern in self.skips]
        scheme = get_scheme(self.scheme, group_size=group, symmetric=self.symmetric)
        if self.distill is not None:
            if self.distill and scheme.weight.dtype == "float":
                raise SchemeError(f"{scheme.name} has no integer groups to tune; drop --distill")
            scheme = replace(scheme, distilled=self.distill)
        return Recipe(
            scheme=scheme,
            overrides=(*overrides, *(parse_override(text) for text in self.overrides)),
            embed=_EMBED[self.embed],
            damp_ratio=self.damp,
            seed=self.seed,
            n_samples=self.samples,
            seq_len=self.seq_len,
            mix=tuple(parse_mix(self.mix).items()),
        )


def parse_mix(text: str) -> dict[str, float]:
    """Parse 'tg=0.8,en=0.2'; '' is the default mix. Raises CalibrationError."""
    if not text:
        return dict(DEFAULT_MIX)
    shares: dict[str, float] = {}
    for part in text.split(","):
        language, _, share = part.partition("=")
        try:
            shares[language.strip()] = float(share)
        except ValueError as error:
            raise CalibrationError(f"mix {text!r} is not like tg=0.8,en=0.2") from error
    return shares


def list_schemes() -> None:
    rows = []
    for scheme in SCHEMES.values():
        needs = "yes" if scheme.needs_calibration else "no"
        rows.append([scheme.name, scheme.summary, needs, scheme.layout])
    console.table("schemes", ["name", "what it does", "calibration", "layout"], rows)


def run_quantize(request: QuantizeRequest) -> None:
    recipe = request.recipe()
    if request.dry_run:
        _print_plan(request, recipe)
        return
    out = request.out or Path(f"{Path(request.model).stem}-{recipe.scheme.name}")
    quantize_to(request, recipe, out)
    if request.json_out:
        print((out / "soroq.json").read_text(encoding="utf-8"))
    else:
        console.out.print(f"wrote {out}", highlight=False)


def quantize_to(request: QuantizeRequest, recipe: Recipe, out: Path) -> None:
    """Quantize into `out` with progress on the terminal."""
    from soroq.pipeline.run import quantize

    calibration = None
    if recipe.scheme.needs_calibration or any(
        s and s.needs_calibration for _, s in recipe.overrides
    ):
        calibration = _calibration(request, recipe)
    with _say_how_to_resume(out), console.block_progress() as listen:
        quantize(
            request.model,
            out,
            recipe=recipe,
            calibration=calibration,
            resume=request.resume,
            listen=listen,
        )


@contextmanager
def _say_how_to_resume(out: Path) -> Iterator[None]:
    """Tell, when the user interrupts, what was kept; the exit code is then 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"soroq: interrupted; finished blocks are in {out}.partial, "
            "go on with the same command and --resume",
            file=sys.stderr,
        )
        raise


def _calibration(request: QuantizeRequest, recipe: Recipe) -> CalibrationSet:
    """Return the set that --calib names, exactly as large as the recipe asks."""
    path = Path(request.calib)
    if (
        request.calib != "builtin"
        and path.is_file()
        and path.suffix not in (".txt", ".jsonl", ".parquet")
    ):
        calibration = load_calibration(path)
        n, seq_len = calibration.ids.shape
        if n < recipe.n_samples or seq_len != recipe.seq_len:
            raise CalibrationError(
                f"{path} holds {n} windows of {seq_len} tokens, {recipe.n_samples} of "
                f"{recipe.seq_len} were asked for; use --samples {n} --seq-len {seq_len}"
            )
        ids = calibration.ids[: recipe.n_samples]
        return replace(calibration, ids=ids, languages=calibration.languages[: len(ids)])
    mix = dict(recipe.mix)
    documents: dict[str, Sequence[Document]] = {}
    if request.calib == "builtin":
        documents = {language: list(builtin_documents(language, "calib")) for language in mix}
    else:
        mix = {"tg": 1.0} if not request.mix else mix
        own = list(read_documents(path))
        documents = dict.fromkeys(mix, own)
    return _build(
        documents, mix, request.model, recipe.n_samples, recipe.seq_len, recipe.seed, request.calib
    )


def _build(
    documents: dict[str, Sequence[Document]],
    mix: dict[str, float],
    model: str,
    samples: int,
    seq_len: int,
    seed: int,
    name: str,
) -> CalibrationSet:
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return build_calibration(
        documents,
        document_encoder(tokenizer),
        bos=tokenizer.bos_token_id,
        n_samples=samples,
        seq_len=seq_len,
        mix=mix,
        seed=seed,
        name=Path(name).name,
        tokenizer=type(tokenizer).__name__,
    )


def document_encoder(tokenizer: Any) -> Callable[[Document], list[int]]:
    """Return document → token ids; conversations go through the chat template, if there is one."""

    def encode(document: Document) -> list[int]:
        text = document.plain
        if document.messages and tokenizer.chat_template:
            turns = [{"role": role, "content": content} for role, content in document.messages]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            text = text.removeprefix(tokenizer.bos_token or "")
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return encode


def run_calib_build(
    out: Path,
    model: str,
    texts: Sequence[str],
    mix: str,
    samples: int,
    seq_len: int,
    seed: int,
    license: str,
) -> None:
    given: dict[str, Sequence[Document]] = {}
    for text in texts:
        language, equals, path = text.partition("=")
        if not equals:
            raise CalibrationError(f"--text {text!r} is not language=FILE, e.g. tg=news.jsonl")
        own = list(read_documents(Path(path), license=license))
        given[language] = [*given.get(language, ()), *own]
    shares = parse_mix(mix) if mix or not given else dict.fromkeys(given, 1.0)
    for language in shares:
        if language not in given:
            given[language] = list(builtin_documents(language, "calib"))
    calibration = _build(given, shares, model, samples, seq_len, seed, out.name)
    calibration.save(out)
    for source in calibration.manifest["sources"]:
        console.out.print(
            f"{source['language']}  {source['documents']:>4} documents  {source['source']} "
            f"({source['license']})",
            highlight=False,
        )
    console.out.print(f"wrote {out}: {samples} x {seq_len} tokens", highlight=False)


def _print_plan(request: QuantizeRequest, recipe: Recipe) -> None:
    from soroq.io.checkpoint import open_checkpoint
    from soroq.models.registry import find_layout
    from soroq.pipeline.plan import make_plan
    from soroq.pipeline.run import refuse_quantized

    checkpoint = open_checkpoint(request.model)
    refuse_quantized(checkpoint)
    plan = make_plan(checkpoint, find_layout(checkpoint.config, set(checkpoint.names())), recipe)
    seconds = plan.flops / (measure_gflops() * 1e9)
    if request.json_out:
        document = asdict(plan) | {"seconds": seconds, "bits_per_weight": plan.bits_per_weight}
        print(json.dumps(document, indent=2))
        return
    rows = [
        [
            m.name,
            f"{m.shape[0]}x{m.shape[1]}",
            m.scheme.name if m.scheme else "kept",
            f"{m.bits_per_weight:.2f}",
            f"{m.stored_bytes / 1e6:.2f}",
        ]
        for m in plan.modules
    ]
    console.table(f"{request.model}: plan", ["module", "shape", "scheme", "bits", "MB"], rows)
    console.out.print(
        f"output {plan.output_bytes / 1e6:.0f} MB (now {plan.source_bytes / 1e6:.0f} MB), "
        f"{plan.bits_per_weight:.2f} bits a quantized weight, peak memory about "
        f"{plan.peak_bytes / 1e9:.1f} GB, about {max(seconds / 60, 0.1):.1f} minutes here",
        highlight=False,
    )


def measure_gflops() -> float:
    """Return this machine's float32 matmul rate in GFLOP/s, measured for a fraction of a second."""
    import torch

    x = torch.randn(1024, 1024)
    x @ x
    started = time.perf_counter()
    for _ in range(4):
        x @ x
    return 4 * 2 * 1024**3 / (time.perf_counter() - started) / 1e9
