"""Linears whose weight is what its rounded form would be: integers, scales and zero points learned.

Ŵ = (round(u) − zeros) · s · (1 + δ), computed anew in every forward pass. u (N, K) are the codes as
real numbers, δ (N, K // G) the relative change of a group's scale. Rounding has no gradient, so u
gets that of the weight as if it weren't rounded (straight-through, arXiv 1308.3432), and none where
it would leave the range of the codes; scales learn as in LSQ (arXiv 1902.08153). Ŵ is at every step
exactly what a checkpoint would hold: scales are rounded to the dtype that they are stored in.
"""

from typing import Any

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.methods.distill import tuned_scales

INSIDE = 0.999  # of half a code's cell: places at its very edge would round to either side


class FakeQuantLinear(nn.Module):
    """y = x Ŵᵀ + b. latent (N, K) float32: the codes; delta (N, K // G) float32.

    original (N, K): the weight that was quantized; what lies near the edge between two codes in it
    changes its code first. It may be in another basis (folds): then places tell nothing.
    """

    def __init__(
        self,
        start: QuantizedTensor,
        bias: torch.Tensor | None,
        original: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if start.args.dtype != "int" or start.args.block is not None:
            raise ValueError(f"{start.args} has no integer codes in groups along K")
        self.args: QuantArgs = start.args
        self.latent = nn.Parameter(_positions(start, original))
        self.delta = nn.Parameter(torch.zeros(start.scales.shape))
        self.scales: torch.Tensor
        self.zeros: torch.Tensor | None
        self.register_buffer("scales", start.scales)
        self.register_buffer("zeros", start.zeros)
        self.bias = None if bias is None else nn.Parameter(bias.float())

    def weight(self) -> torch.Tensor:
        """Return Ŵ (N, K), float32, with gradients to latent and delta."""
        weight: torch.Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
            self.latent,
            self.delta,
            self.scales,
            self.zeros,
            self.args,
        )
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K)."""
        return nn.functional.linear(x, self.weight(), self.bias)


def rounded(
    latent: torch.Tensor, delta: torch.Tensor, start: QuantizedTensor
) -> tuple[QuantizedTensor, int]:
    """Return what is stored of a learned weight, and how many codes differ from the start's."""
    codes = _codes(latent, start.args).to(torch.int8)
    scales = tuned_scales(start.scales, delta)
    changed = int((codes != start.codes).sum())
    return QuantizedTensor(codes, scales, start.zeros, start.args), changed


def _positions(start: QuantizedTensor, original: torch.Tensor | None) -> torch.Tensor:
    """Return where the original weights (N, K) lie among the codes, each within its code's cell.

    A code that a solver chose against rounding gets a random place on that side of its cell: were
    all of them at its edge, they would leave it in one step. Without an original: the codes.
    """
    codes = start.codes.float()
    if original is None:
        return codes
    N, G = start.scales.shape
    places = original.float().view(N, G, -1) / start.scales.float()[..., None]
    if start.zeros is not None:
        places += start.zeros.float()[..., None]
    offset = places.view(codes.shape) - codes
    anywhere = offset.sign() * torch.rand(offset.shape) * 0.5
    return codes + torch.where(offset.abs() < 0.5, offset, anywhere) * INSIDE


def _codes(latent: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    return latent.detach().round().clamp_(args.code_min, args.code_max)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        latent: torch.Tensor,
        delta: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        args: QuantArgs,
    ) -> torch.Tensor:
        N, G = scales.shape
        steps = _codes(latent, args).view(N, G, -1)
        if zeros is not None:
            steps -= zeros.float()[..., None]  # int4 minus int4: fits int8
        stored = tuned_scales(scales, delta).float()
        ctx.save_for_backward(latent, steps.to(torch.int8), stored, scales)
        ctx.args = args
        return (steps * stored[..., None]).view(latent.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        latent, steps, stored, scales = ctx.saved_tensors
        gradient = grads[0].float().view(steps.shape)
        grad_delta = (gradient * steps).sum(-1) * scales.float()
        low, high = ctx.args.code_min - 0.5, ctx.args.code_max + 0.5
        grad_latent = (gradient * stored[..., None]).view(latent.shape)
        grad_latent[(latent < low) | (latent > high)] = 0
        return grad_latent, grad_delta, None, None, None
