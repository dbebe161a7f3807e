"""Quantize one decoder block: fold, then group by group measure, solve and replace.

Groups of linears that share an input are taken in the order in which the block runs them, and each
is measured behind the already quantized ones, so that later linears see what they will really get.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soroq.core.errors import NumericsError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.recipe import Recipe
from soroq.core.scheme import FP8_MAX, QuantArgs, Scheme
from soroq.core.stats import LayerStats
from soroq.methods.descent import objective, refine
from soroq.methods.fp8 import quantize_fp8
from soroq.methods.gptq import quantize_gptq
from soroq.methods.grid import Grid
from soroq.methods.ranges import search_float_scales, search_ranges
from soroq.methods.rtn import quantize_clip, quantize_rtn
from soroq.methods.target import corrected_weight
from soroq.models.runner import DecoderRunner
from soroq.nn.linear import round_activations
from soroq.pipeline.activations import ActivationFile, ActivationWriter
from soroq.pipeline.fold import FoldReport, fold_block_

FOLD_SAMPLES = 2
Say = Callable[[str], None]


class _Stop(Exception):
    """Ends a block's forward once the wanted input was seen."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one linear.

    error: tr(EHEᵀ) / tr(WHWᵀ) with E the distance from what the layer aims for; error_rtn: the same
    for plain rounding of the original weight. None without calibration.
    """

    module: str
    scheme: str
    method: str
    bits_per_weight: float
    error: float | None
    error_rtn: float | None
    seconds: float


@dataclass
class BlockResult:
    """Quantized linears by path, reports, and the original block's output if that was wanted."""

    quantized: dict[str, QuantizedTensor] = field(default_factory=dict)
    input_scales: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    folds: list[FoldReport] = field(default_factory=list)
    reference_output: ActivationFile | None = None


@dataclass(frozen=True)
class BlockJob:
    """Everything that quantizing block `index` needs.

    inputs: what the quantized blocks before it give; reference_inputs: what the original ones give,
    None unless a scheme corrects its targets or the result is distilled. The original block runs
    once: spool(path) is where the input of its linear at `path` goes, reference_output where its
    output goes (None: not wanted).
    """

    runner: DecoderRunner
    index: int
    recipe: Recipe
    inputs: ActivationFile | None
    reference_inputs: ActivationFile | None
    token_weight: torch.Tensor | None
    batch: int
    norm_dtype: torch.dtype
    spool: Callable[[str], Path]
    reference_output: Path | None

    @property
    def name(self) -> str:
        return self.runner.layout.block(self.index)

    def scheme_for(self, path: str) -> Scheme | None:
        return self.recipe.scheme_for(f"{self.name}.{path}")


def quantize_block_(job: BlockJob, block: nn.Module, say: Say) -> BlockResult:
    """Quantize `block` in place: its linears hold dequantized weights and round their inputs.

    `say` is told which module is being worked on.
    """
    layout = job.runner.layout
    architecture = layout.architecture
    result = BlockResult()
    schemes = {path: job.scheme_for(path) for path in architecture.linears}
    if job.inputs is not None and any(s is not None and s.folds for s in schemes.values()):
        say("folds")
        sample = job.inputs.head(FOLD_SAMPLES)
        result.folds = fold_block_(
            block,
            lambda b: job.runner.run_block(b, job.index, sample),
            architecture,
            schemes,
            job.norm_dtype,
            layout.head_dim,
        )
    groups = [
        wanted
        for group in architecture.linear_groups
        if (wanted := [(path, s) for path in group if (s := schemes[path]) is not None])
    ]
    original_inputs: dict[str, ActivationFile] = {}
    if job.reference_inputs is not None:
        say("original")
        paths = [g[0][0] for g in groups if any(s.corrected for _, s in g)]
        original_inputs, result.reference_output = _run_original(job, block, paths)
    for wanted in groups:
        first = wanted[0][0]
        stats = None
        if job.inputs is not None and any(s.needs_calibration for _, s in wanted):
            say(f"{first} input")
            dynamic = {a for _, s in wanted if (a := s.activation) is not None and a.dynamic}
            rounding = dynamic.pop() if len(dynamic) == 1 else None
            stats = collect_stats(job, block, original_inputs.get(first), first, rounding)
        for path, scheme in wanted:
            say(path)
            _quantize_linear_(job, block, path, scheme, stats, result)
    return result


def _run_original(
    job: BlockJob, block: nn.Module, paths: list[str]
) -> tuple[dict[str, ActivationFile], ActivationFile | None]:
    """Run the block, not yet quantized, on the reference inputs once; keep what is wanted.

    Returns the inputs of the linears at `paths`, in float32 files, and the block's output. Only
    the folds stand between this block and the original one, and those change nothing.
    """
    assert job.reference_inputs is not None
    writers = {path: ActivationWriter(job.spool(path), torch.float32) for path in paths}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: writers[path].write(args[0])

    hooks = [block.get_submodule(p).register_forward_pre_hook(keep(p)) for p in paths]
    output = ActivationWriter(job.reference_output) if job.reference_output else None
    try:
        for y in advance(job, block, job.reference_inputs):
            if output is not None:
                output.write(y)
    finally:
        for hook in hooks:
            hook.remove()
    files = {path: writer.finish() for path, writer in writers.items()}
    return files, output.finish() if output is not None else None


def collect_stats(
    job: BlockJob,
    block: nn.Module,
    original: ActivationFile | None,
    path: str,
    rounding: QuantArgs | None = None,
) -> LayerStats:
    """Run all calibration activations up to the linear at `path` and sum up its input.

    original: what that linear gets in the original model, if its targets are to be corrected;
    rounding: how the quantized linear will round its input at run time; the sums are of the
    rounded input, so that the weight makes up for that too.
    """
    assert job.inputs is not None
    module = block.get_submodule(path)
    stats = LayerStats(int(module.in_features), with_cross=original is not None)  # type: ignore[arg-type]
    others = original.batches(job.batch) if original is not None else None
    start = 0
    for x in job.inputs.batches(job.batch):
        seen = round_activations(input_of(job, block, path, x), rounding, None)
        weight = None
        if job.token_weight is not None:
            weight = job.token_weight[start : start + x.shape[0]]
        stats.update_(seen, next(others) if others is not None else None, weight)
        start += x.shape[0]
    stats.check_finite(f"{job.name}.{path}")
    return stats


def input_of(job: BlockJob, block: nn.Module, path: str, x: torch.Tensor) -> torch.Tensor:
    """Return what the linear at `path` gets when the block gets x; the rest is not computed."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Stop

    handle = block.get_submodule(path).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            job.runner.run_block(block, job.index, x)
    except _Stop:
        pass
    finally:
        handle.remove()
    return seen[0]


def _quantize_linear_(
    job: BlockJob,
    block: nn.Module,
    path: str,
    scheme: Scheme,
    stats: LayerStats | None,
    result: BlockResult,
) -> None:
    started = time.monotonic()
    module = block.get_submodule(path)
    assert isinstance(module, nn.Linear)
    weight = module.weight.detach()
    name = f"{job.name}.{path}"
    scheme.check_shape(name, tuple(weight.shape))
    target = weight
    if scheme.corrected and stats is not None and stats.cross is not None:
        target = corrected_weight(weight, stats.hessian, stats.cross, ridge=job.recipe.target_ridge)
    quantized, method = solve(target, scheme, stats, job.recipe.damp_ratio)
    if not torch.isfinite(quantized.scales.float()).all():
        raise NumericsError(f"{name}: its scales are not finite; the weight overflows")
    error = error_rtn = None
    if stats is not None:
        hessian = stats.hessian
        base = float(((target @ hessian) * target).sum(dtype=torch.float64)) or 1.0
        error = objective(target, hessian, quantized) / base
        error_rtn = objective(target, hessian, plain(weight, scheme.weight)) / base
        if scheme.activation is not None and not scheme.activation.dynamic:
            scale = stats.act_absmax.max().clamp_min(1e-12) / FP8_MAX
            result.input_scales[path] = scale.reshape(1).to(torch.bfloat16)
    module.weight = nn.Parameter(quantized.dequantize(), requires_grad=False)
    if scheme.activation is not None:
        _round_input_(module, scheme.activation, result.input_scales.get(path))
    result.quantized[path] = quantized
    result.layers.append(
        LayerReport(
            name,
            scheme.name,
            method,
            scheme.weight.bits_per_weight(quantized.shape),
            error,
            error_rtn,
            time.monotonic() - started,
        )
    )


def _round_input_(module: nn.Module, args: QuantArgs, scale: torch.Tensor | None) -> None:
    """Let a linear round its input as the finished model will: what stands behind it sees that."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return round_activations(inputs[0], args, scale), *inputs[1:]

    module.register_forward_pre_hook(hook)


def plain(weight: torch.Tensor, args: QuantArgs) -> QuantizedTensor:
    """Round W (N, K) without calibration: what every method must beat."""
    return quantize_fp8(weight, args) if args.dtype == "float" else quantize_rtn(weight, args)


def solve(
    weight: torch.Tensor, scheme: Scheme, stats: LayerStats | None, damp_ratio: float
) -> tuple[QuantizedTensor, str]:
    """Return the codes of W (N, K) by the scheme's method, and the method that won.

    Whatever is calibrated is compared with plain rounding on the calibration inputs, and the
    better one is kept: no scheme does worse than rounding.
    """
    args = scheme.weight
    rounded = plain(weight, args)
    if scheme.method == "rtn" or stats is None:
        return rounded, "rtn"
    hessian = stats.hessian
    importance = hessian.diagonal()
    if scheme.method == "clip":
        candidate = quantize_clip(weight, args, importance)
    else:
        if args.dtype == "float":
            grid = Grid(search_float_scales(weight, args, importance), None, args, rounded.shape)
        else:
            grid = Grid(*search_ranges(weight, args, importance), args, rounded.shape)
        candidate = quantize_gptq(weight, hessian, grid, damp_ratio=damp_ratio)
        if scheme.method == "gptq-refined":
            candidate = refine(weight, hessian, candidate)
    if objective(weight, hessian, candidate) < objective(weight, hessian, rounded):
        return candidate, scheme.method
    return rounded, "rtn"


def advance(job: BlockJob, block: nn.Module, inputs: ActivationFile) -> Iterator[torch.Tensor]:
    """Yield the block's outputs on all activations in `inputs`, batch by batch."""
    with torch.no_grad():
        for x in inputs.batches(job.batch):
            yield job.runner.run_block(block, job.index, x)


def changed_norms(
    block: nn.Module, original: Mapping[str, torch.Tensor], paths: set[str]
) -> dict[str, torch.Tensor]:
    """Return the parameters outside `paths` that folding changed, in their stored dtype."""
    changed = {}
    for name, parameter in block.named_parameters():
        if name.rpartition(".")[0] in paths and name.endswith(".weight"):
            continue
        stored = parameter.detach().to(original[name].dtype)
        if not torch.equal(stored, original[name]):
            changed[name] = stored
    return changed
