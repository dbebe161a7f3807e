"""sensitivity, and the budgets of quantize: measure what each group costs, mix formats."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from soroq import console
from soroq.calib.sources import builtin_documents
from soroq.commands.calibration import build_set
from soroq.core.cache import cache_root
from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import open_checkpoint
from soroq.models.registry import find_layout
from soroq.pipeline.order import reordered
from soroq.pipeline.plan import make_plan, refuse_long_windows
from soroq.pipeline.sensitivity import Sensitivity, load_sensitivity, measure, mix

LANGUAGES = ("tg", "en")


@dataclass(frozen=True)
class Budget:
    """What a mix of formats may cost: one of bits a weight, bytes of output, or a loss in nats."""

    bits_per_weight: float | None = None
    max_size: int | None = None
    max_loss: float | None = None
    sensitivity: Path | None = None


def parse_budget(
    bits: str, size: str, loss: float | None, sensitivity: Path | None
) -> Budget | None:
    """Parse '4.5bpw' and '2.5GB'. Raises SchemeError; None when no budget was given."""
    given = sum([bool(bits), bool(size), loss is not None])
    if not given:
        if sensitivity is not None:
            raise SchemeError("--sensitivity needs --budget, --max-size or --max-dnll")
        return None
    if given > 1:
        raise SchemeError("--budget, --max-size and --max-dnll exclude each other; give one")
    try:
        if bits:
            return Budget(float(bits.lower().removesuffix("bpw")), sensitivity=sensitivity)
        if size:
            number, unit = re.fullmatch(r"([\d.]+)\s*([MG]B)", size.upper()).groups()  # type: ignore[union-attr]
            scale = {"MB": 1e6, "GB": 1e9}[unit]
            return Budget(max_size=int(float(number) * scale), sensitivity=sensitivity)
    except (ValueError, AttributeError) as error:
        raise SchemeError(
            f"{bits or size!r} is no budget; write --budget 4.5bpw or --max-size 2.5GB"
        ) from error
    return Budget(max_loss=loss, sensitivity=sensitivity)


def measure_sensitivity(
    model: str, file: Path, windows: int, seq_len: int, *, reorder: bool
) -> Sensitivity:
    """Measure a model on built-in Tajik and English text, `windows` of each.

    Writes `file` and returns what was found. reorder: with its channels in order of size, as
    `int4` quantizes them.
    What is measured so far lies in `file`.partial; a stopped measurement goes on from there.
    """
    import tempfile

    checkpoint = open_checkpoint(model)
    refuse_long_windows(checkpoint.config, seq_len)
    if reorder:
        layout = find_layout(checkpoint.config, set(checkpoint.names()))
        checkpoint = reordered(
            checkpoint, layout, Recipe(replace(get_scheme("int4-rtn"), reordered=True))
        )
    partial = file.with_name(file.name + ".partial")
    documents = {name: list(builtin_documents(name, "calib")) for name in LANGUAGES}
    mix = dict.fromkeys(LANGUAGES, 1 / len(LANGUAGES))
    n = windows * len(LANGUAGES)
    calibration = build_set(documents, mix, model, n, seq_len, 0, "builtin")
    with tempfile.TemporaryDirectory() as folder, console.check_progress() as listen:
        found = measure(
            checkpoint,
            calibration.ids,
            Path(folder),
            languages=calibration.languages,
            calibration_sha256=calibration.sha256,
            partial=partial,
            listen=listen,
        )
    found.save(file)
    partial.unlink(missing_ok=True)
    return found


def run_sensitivity(
    model: str, file: Path, windows: int, seq_len: int, *, reorder: bool, json_out: bool
) -> None:
    found = measure_sensitivity(model, file, windows, seq_len, reorder=reorder)
    if json_out:
        print(file.read_text(encoding="utf-8"))
        return
    languages = list(found.groups[0].kl)
    ranked = sorted(found.groups, key=lambda g: -sum(g.kl.values()) / g.weights)
    rows = [
        [
            ", ".join([g.modules[0], *(m.rpartition(".")[2] for m in g.modules[1:])]),
            f"{g.weights / 1e6:.2f}",
            *(f"{g.kl[name]:.5f}" for name in languages),
            f"{sum(g.kl.values()) / len(languages) / g.weights * 1e6:.5f}",
        ]
        for g in ranked
    ]
    heads = [f"KL {name}" for name in languages]
    columns = ["group, most sensitive a weight first", "M weights", *heads, "mean a M weights"]
    console.table(f"{model}: each group alone in int4, groups of 128", columns, rows)
    console.out.print(f"wrote {file}", highlight=False)


def apply_budget(model: str, recipe: Recipe, budget: Budget) -> Recipe:
    """Return the recipe with a format for every group; measure first if no file was given."""
    checkpoint = open_checkpoint(model)
    if recipe.scheme.needs_calibration:  # said before anything is measured, which takes long
        refuse_long_windows(checkpoint.config, recipe.seq_len)
    ordered = recipe.scheme.reordered
    if budget.sensitivity is not None:
        found = load_sensitivity(budget.sensitivity)
        if ordered != bool(found.reordered):
            have, flag = ("in order", "--reorder") if ordered else ("as they are", "--no-reorder")
            console.err.print(
                f"budget: {recipe.scheme.name} has its channels {have}, {budget.sensitivity} was "
                f"measured otherwise; soroq sensitivity {flag} fits better",
                highlight=False,
            )
    else:
        kind = "-ordered" if ordered else ""
        file = cache_root() / "sensitivity" / f"{checkpoint.sha256()[:16]}{kind}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            found = load_sensitivity(file)
        else:
            found = measure_sensitivity(model, file, 4, 256, reorder=ordered)
    if found.source_sha256 != checkpoint.sha256():
        raise SchemeError(f"{budget.sensitivity} was measured on another model than {model}")
    max_bytes = None
    if budget.max_size is not None:
        plan = make_plan(
            checkpoint, find_layout(checkpoint.config, set(checkpoint.names())), recipe
        )
        mixed = {module for group in found.groups for module in group.modules}
        fixed = plan.output_bytes - sum(m.stored_bytes for m in plan.modules if m.name in mixed)
        max_bytes = budget.max_size - fixed
        if max_bytes <= 0:
            raise SchemeError(
                f"--max-size is below the {fixed / 1e6:.0f} MB that embedding and norms take; "
                "quantize the embedding too with --embed"
            )
    changed, told = mix(
        found,
        recipe,
        bits_per_weight=budget.bits_per_weight,
        max_bytes=max_bytes,
        max_loss=budget.max_loss,
    )
    counts = {name: list(told.values()).count(name) for name in sorted(set(told.values()))}
    shown = ", ".join(f"{n} × {name}" for name, n in counts.items())
    console.err.print(f"budget: {shown}", highlight=False)
    return changed
