"""Products and gathers with weights in panels (layout: `soroq.kernels.panels`), in plain torch."""

import torch

from soroq.kernels.panels import PanelWeight, read_codes


def matmul_panels(
    x: torch.Tensor,
    weight: PanelWeight,
    *,
    precision: str,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y (M, N) = x (M, K) · Wᵀ + bias + residual, summed in float32, in x's dtype."""
    y = _multiply(x, weight, precision)
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)


def gated_panels(
    x: torch.Tensor, weight: PanelWeight, *, precision: str, activation: str
) -> torch.Tensor:
    """Return act(x · gateᵀ) · (x · upᵀ) (M, F); panels of gate and up alternate."""
    both = _multiply(x, weight, precision).unflatten(1, (-1, 2, 64))
    gate, up = both[:, :, 0].flatten(1), both[:, :, 1].flatten(1)
    if activation == "gelu":
        gated = torch.nn.functional.gelu(gate, approximate="tanh") * up
    else:
        gated = torch.nn.functional.silu(gate) * up
    y: torch.Tensor = gated[:, : weight.gated].to(x.dtype)
    return y


def gather_panels(ids: torch.Tensor, weight: PanelWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return W[ids] (M, K) in `dtype`; ids int64 (M,)."""
    return _dense(weight)[ids].to(dtype)


STEPS = {"int8": 127.0, "int16": 127.0 * 128.0}  # to the largest value of a chunk


def round_activations(x: torch.Tensor, weight: PanelWeight, precision: str) -> torch.Tensor:
    """Return x (M, K) rounded to integers and back, float32, as a precision does it.

    For each token and chunk: step = max|x| / STEPS, codes half to even. A chunk with a value that
    is not finite becomes NaN.
    """
    parts = []
    for start, stop in weight.chunks():
        part = x[:, start:stop].float()
        top = part.abs().amax(1, keepdim=True)
        step = torch.where(top > 1e-30, top / STEPS[precision], torch.zeros_like(top))
        codes = torch.where(top > 1e-30, part * (STEPS[precision] / top), 0.0).round()
        bad = ~torch.isfinite(part).all(1, keepdim=True)
        parts.append(torch.where(bad, torch.nan, codes * step))
    return torch.cat(parts, 1)


def _multiply(x: torch.Tensor, weight: PanelWeight, precision: str) -> torch.Tensor:
    rounds = precision != "exact" and weight.bits != 16
    x32 = round_activations(x, weight, precision) if rounds else x.float()
    return x32 @ _dense(weight).t()


def _dense(weight: PanelWeight) -> torch.Tensor:
    """Return W (N, K) in float32."""
    codes, scales, zeros = read_codes(weight)
    if scales is None or zeros is None:
        return codes.float()
    parts = []
    for index, (start, stop) in enumerate(weight.chunks()):
        values = codes[:, start:stop].float() - zeros[:, index, None].float()
        parts.append(values * scales[:, index, None].float())
    return torch.cat(parts, 1)
