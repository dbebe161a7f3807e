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


APART = 2  # quads of a chunk whose size doesn't count for its step


def round_activations(x: torch.Tensor, weight: PanelWeight, precision: str) -> torch.Tensor:
    """Return x (M, K) rounded to integers and back, float32, as a precision does it.

    Per token and chunk, codes half to even. int16: step = max|x| / (127 · 128). int8: columns are
    taken in quads; step = (greatest |x| behind the APART greatest quads, but at least max|x| / 128)
    / 127, so that at most APART quads have values beyond ±127. A chunk with a value that is not
    finite becomes NaN.
    """
    parts = []
    for start, stop in weight.chunks():
        part = x[:, start:stop].float()
        size = part.abs()
        top = size.amax(1, keepdim=True)
        steps = 127.0
        if precision == "int16":
            steps = 127.0 * 128.0
        else:
            quads = torch.nn.functional.pad(size, (0, -size.shape[1] % 4)).unflatten(1, (-1, 4))
            order = quads.amax(2).sort(1, descending=True).values
            near = order[:, APART : APART + 1] if order.shape[1] > APART else top * 0
            top = torch.maximum(near, top / 128)
        step = torch.where(top > 1e-30, top / steps, torch.zeros_like(top))
        codes = torch.where(top > 1e-30, part * (steps / top), 0.0).round()
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
