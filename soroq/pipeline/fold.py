"""AWQ folds on a block in memory: search each edge's scales on the block's real output.

An edge is folded only if the block, with the edge's targets rounded to nearest, comes closer to
its unquantized output than without; the measure is the squared error of each token relative to
that token's own output, so that the few tokens with giant activations don't decide alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from soroq.core.scheme import Scheme
from soroq.methods.awq import ALPHAS, channel_scales, fold_norm
from soroq.methods.rtn import quantize_clip
from soroq.models.architecture import Architecture, Edge

RunBlock = Callable[[nn.Module], torch.Tensor]


@dataclass(frozen=True)
class FoldReport:
    """What the search on one edge found: α = 0 means that the edge was left alone."""

    edge: str
    alpha: float
    error_before: float
    error_after: float


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the mean over tokens of ‖y − reference‖² / ‖reference‖², (…, hidden)."""
    per_token = ((y - reference) ** 2).sum(-1) / (reference**2).sum(-1).clamp_min(1e-12)
    return float(per_token.mean(dtype=torch.float64))


def fold_block_(
    block: nn.Module,
    run: RunBlock,
    architecture: Architecture,
    schemes: Mapping[str, Scheme | None],
    norm_dtype: torch.dtype,
    head_dim: int,
) -> list[FoldReport]:
    """Fold every edge of `block` that gains by it, in place.

    run(block) gives the block's output on a sample of calibration activations. `schemes` maps each
    linear's path to its scheme (None: not quantized). Norm weights keep values of `norm_dtype`.
    """
    with torch.no_grad():
        reference = run(block)
        return [
            report
            for edge in architecture.edges
            if any("awq" in (s.folds if (s := schemes.get(t)) else ()) for t in edge.targets)
            for report in [
                _fold_edge_(
                    block, run, reference, architecture, edge, schemes, norm_dtype, head_dim
                )
            ]
        ]


def _fold_edge_(
    block: nn.Module,
    run: RunBlock,
    reference: torch.Tensor,
    architecture: Architecture,
    edge: Edge,
    schemes: Mapping[str, Scheme | None],
    norm_dtype: torch.dtype,
    head_dim: int,
) -> FoldReport:
    targets = [(path, block.get_submodule(path)) for path in edge.targets]
    source = block.get_submodule(edge.source)
    saved_source = _weight(source).clone()
    bias = _bias(source)
    saved_bias = None if bias is None else bias.clone()
    saved = [_weight(module).clone() for _, module in targets]
    inputs = _capture_input(block, targets[0][1], run)
    flat = inputs.reshape(-1, inputs.shape[-1]).abs()
    act_absmean, mean_square = flat.mean(0), (flat**2).mean(0)
    weight_absmean = torch.stack([_relative_magnitude(w) for w in saved]).mean(0)

    def restore() -> None:
        _set(source, saved_source)
        if bias is not None and saved_bias is not None:
            bias.copy_(saved_bias)
        for (_, module), weight in zip(targets, saved, strict=True):
            _set(module, weight)

    def apply(alpha: float) -> torch.Tensor:
        restore()
        scales = channel_scales(act_absmean, weight_absmean, alpha)
        exact = _fold_source_(source, scales, architecture, edge, norm_dtype, head_dim)
        for _, module in targets:
            _set(module, _weight(module) * exact)
        return exact

    errors: dict[float, float] = {}
    for alpha in ALPHAS:
        exact = apply(alpha)
        for path, module in targets:
            scheme = schemes.get(path)
            if scheme is not None:
                importance = mean_square / exact**2
                quantized = quantize_clip(_weight(module), scheme.weight, importance)
                _set(module, quantized.dequantize())
        errors[alpha] = relative_error(run(block), reference)
    best = min(errors, key=lambda alpha: (errors[alpha], alpha))
    apply(best)
    before = errors.get(0.0, errors[best])
    return FoldReport(f"{edge.source} -> {', '.join(edge.targets)}", best, before, errors[best])


def _fold_source_(
    source: nn.Module,
    scales: torch.Tensor,
    architecture: Architecture,
    edge: Edge,
    norm_dtype: torch.dtype,
    head_dim: int,
) -> torch.Tensor:
    """Divide the source by scales; return the exact scale (K,) that each target column gets."""
    weight = _weight(source)
    if edge.kind == "norm":
        stored, exact = fold_norm(weight.to(norm_dtype), scales, architecture.norm_offset)
        _set(source, stored.float())
        return exact
    per_row, per_column = share_between_heads(scales, weight.shape[0], head_dim)
    _set(source, weight / per_row[:, None])
    bias = _bias(source)
    if bias is not None:
        bias.div_(per_row)
    return per_column


def share_between_heads(
    scales: torch.Tensor, n_rows: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the scales of a target's columns (K,) equal wherever they come from the same row.

    With grouped query heads, K = n_heads · head_dim columns of o_proj read n_rows = n_kv_heads ·
    head_dim rows of v_proj: each row serves n_heads / n_kv_heads columns. Returns the scale per row
    (geometric mean over its columns) and per column.
    """
    K = scales.shape[0]
    if n_rows == K:
        return scales, scales
    repeat = K // n_rows
    grouped = scales.view(-1, repeat, head_dim)  # (n_kv_heads, repeat, head_dim)
    per_row = grouped.log().mean(1).exp()
    per_column = per_row[:, None, :].expand_as(grouped).reshape(K)
    return per_row.reshape(n_rows), per_column


def _capture_input(block: nn.Module, module: nn.Module, run: RunBlock) -> torch.Tensor:
    captured: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: captured.append(args[0].detach()))
    run(block)
    handle.remove()
    return captured[0]


def _relative_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Return mean over rows of |w| / (largest |w| of the row): (K,)."""
    magnitude = weight.abs()
    return (magnitude / magnitude.amax(1, keepdim=True).clamp_min(1e-12)).mean(0)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, torch.Tensor) else None


def _set(module: nn.Module, weight: torch.Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)
