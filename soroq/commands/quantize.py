"""quantize, calib build and schemes: build requests, call the library, print results."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from soroq import console
from soroq.calib.dataset import CalibrationSet, load_calibration
from soroq.calib.sources import Document, builtin_documents, read_documents
from soroq.commands.budget import Budget, apply_budget
from soroq.commands.calibration import build_set, parse_mix
from soroq.commands.convert import run_convert
from soroq.core.errors import CalibrationError, SchemeError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import SCHEMES, get_scheme
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import get_format
from soroq.io.writer import require_empty_dir
from soroq.manifest import MANIFEST

OWN_FORMAT = "compressed-tensors"
_EMBED = {
    "none": None,
    "int8": QuantArgs(bits=8, group_size=64),
    "int4": QuantArgs(bits=4, group_size=32, symmetric=False),
}


@dataclass(frozen=True)
class QuantizeRequest:
    """The options of `soroq quantize`, as typed."""

    model: str
    out: Path | None = None
    scheme: str = "int4"
    group_size: str = ""
    symmetric: bool | None = None
    overrides: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    embed: str = "none"
    calib: str = "builtin"
    mix: str = ""
    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    damp: float = 0.01
    distill: bool | None = None
    reorder: bool | None = None
    budget: Budget | None = None
    backend: str = ""
    backend_python: Path | None = None
    format_name: str = OWN_FORMAT
    dry_run: bool = False
    resume: bool = False
    json_out: bool = False

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
        if self.reorder is not None:
            if self.reorder and scheme.weight.group_size is None:
                raise SchemeError(f"{scheme.name} has no groups along a row; drop --reorder")
            scheme = replace(scheme, reordered=self.reorder)
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


def list_schemes() -> None:
    rows = []
    for scheme in SCHEMES.values():
        needs = "yes" if scheme.needs_calibration else "no"
        rows.append([scheme.name, scheme.summary, needs, scheme.layout])
    console.table("schemes", ["name", "what it does", "calibration", "layout"], rows)


def run_quantize(request: QuantizeRequest) -> None:
    recipe = request.recipe()
    if request.backend:
        _refuse_beside_backend(request)
    if request.budget is not None:
        recipe = apply_budget(request.model, recipe, request.budget)
    if request.format_name != OWN_FORMAT:
        _refuse_format(request, recipe)
    if request.dry_run:
        _print_plan(request, recipe)
        return
    by = f"-{request.backend}" if request.backend else ""
    out = request.out or Path(f"{Path(request.model).stem}-{recipe.scheme.name}{by}")
    made = out if request.format_name == OWN_FORMAT else out.with_name(f"{out.name}.soroq")
    if made != out:
        require_empty_dir(out)
    if made == out or not (made / MANIFEST).is_file():  # whole since an earlier run
        if request.backend:
            _quantize_with_backend(request, recipe, made)
        else:
            quantize_to(request, recipe, made)
    if made != out:
        run_convert(str(made), out, request.format_name)
        shutil.rmtree(made)
    if request.json_out:
        print((out / "soroq.json").read_text(encoding="utf-8"))
    else:
        console.out.print(f"wrote {out}", highlight=False)


def _refuse_format(request: QuantizeRequest, recipe: Recipe) -> None:
    """Raise FormatError before anything is done when the format can't hold what would come out."""
    from soroq.io.checkpoint import open_checkpoint
    from soroq.models.registry import find_layout
    from soroq.pipeline.plan import make_plan

    target = get_format(request.format_name)
    checkpoint = open_checkpoint(request.model)
    plan = make_plan(checkpoint, find_layout(checkpoint.config, set(checkpoint.names())), recipe)
    schemes = {(m.scheme, m.shape) for m in plan.modules if m.scheme is not None}
    if target.uniform and len({s.weight for s, _ in schemes}) > 1:
        raise FormatError(f"{target.name} has one set of numbers for all modules; give one scheme")
    for scheme, shape in schemes:
        if reason := target.refuses(scheme.weight, scheme.activation, shape):
            raise FormatError(f"{recipe.scheme.name} can't be {target.name}: {reason}")


def quantize_to(request: QuantizeRequest, recipe: Recipe, out: Path) -> None:
    """Quantize into `out` with progress on the terminal."""
    from soroq.io.checkpoint import open_checkpoint
    from soroq.models.registry import find_layout
    from soroq.pipeline.plan import make_plan
    from soroq.pipeline.run import quantize

    checkpoint = open_checkpoint(request.model)  # what can't be done is said before text is read
    make_plan(checkpoint, find_layout(checkpoint.config, set(checkpoint.names())), recipe)
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


def _refuse_beside_backend(request: QuantizeRequest) -> None:
    """Raise SchemeError for steps of soroq's own that another tool doesn't take."""
    if request.budget is not None:
        raise SchemeError("a budget mixes schemes, a backend gets one; drop --budget and its like")
    if request.distill:
        raise SchemeError(f"{request.backend} doesn't distil; drop --distill, or --backend")
    if request.reorder:
        raise SchemeError(f"{request.backend} keeps the channels' order; drop --reorder")


def _quantize_with_backend(request: QuantizeRequest, recipe: Recipe, out: Path) -> None:
    """Let another tool quantize into `out`; what it says goes to the terminal."""
    from soroq.backends.process import find_python
    from soroq.backends.run import plan_job, quantize_with
    from soroq.backends.tools import get_tool

    job = plan_job(request.backend, request.model, recipe)
    find_python(get_tool(request.backend), request.backend_python)  # said before text is read
    calibration = _calibration(request, recipe) if job.calibrated else None
    print(f"{request.backend}: {job.what} {json.dumps(job.arguments)}", file=sys.stderr)
    try:
        quantize_with(
            request.backend,
            request.model,
            out,
            recipe=recipe,
            calibration=calibration,
            python=request.backend_python,
            resume=request.resume,
        )
    except KeyboardInterrupt:
        print(
            f"soroq: interrupted; {request.backend} can't go on where it was: start it anew with "
            f"the same command and --resume, or delete {out}.partial",
            file=sys.stderr,
        )
        raise


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
    return build_set(
        documents, mix, request.model, recipe.n_samples, recipe.seq_len, recipe.seed, request.calib
    )


def _print_plan(request: QuantizeRequest, recipe: Recipe) -> None:
    from soroq.io.checkpoint import open_checkpoint
    from soroq.models.registry import find_layout
    from soroq.pipeline.plan import make_plan
    from soroq.pipeline.run import refuse_quantized

    checkpoint = open_checkpoint(request.model)
    refuse_quantized(checkpoint)
    plan = make_plan(checkpoint, find_layout(checkpoint.config, set(checkpoint.names())), recipe)
    if request.backend:
        from soroq.backends.run import plan_job

        print(json.dumps(asdict(plan_job(request.backend, request.model, recipe)), indent=2))
        return
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
