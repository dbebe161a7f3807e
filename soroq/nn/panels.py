"""Linears and embeddings whose weights lie in panels: what a model on a CPU is made of.

One copy in panels serves every product and the embedding's gather (`soroq.kernels.panels`).
"""

import torch
from torch import nn

from soroq.kernels.panels import PanelWeight


class PanelLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ (N, K) int4 or int8 in panels.

    precision: what x is multiplied as, see `soroq.kernels.cpu.panels`.
    """

    def __init__(
        self, weight: PanelWeight, *, precision: str, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.weight, self.precision = weight, precision
        self.out_features, self.in_features = weight.N, weight.K
        self.register_buffer("bias", bias)
        self.bias: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K), in x's dtype."""
        from soroq.kernels import dispatch

        return dispatch.matmul_panels(x, self.weight, precision=self.precision, bias=self.bias)

    def extra_repr(self) -> str:
        w = self.weight
        return f"in={w.K}, out={w.N}, int{w.bits}, group={w.group}, {self.precision}"


class PanelEmbedding(nn.Module):
    """Rows of a matrix (vocabulary, hidden) in panels, in `dtype`, times `scale`."""

    def __init__(self, packed: PanelLinear, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed, self.scale, self.dtype = packed, scale, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for token ids (…)."""
        from soroq.kernels import dispatch

        return dispatch.gather_panels(ids, self.packed.weight, self.dtype) * self.scale


def name_activation(function: object) -> str | None:
    """Tell an activation by its values, since it has many names: gelu (tanh), silu or None."""
    if not callable(function):
        return None
    x = torch.linspace(-4, 4, 33)
    y = function(x)
    if torch.equal(y, nn.functional.gelu(x, approximate="tanh")):
        return "gelu"
    return "silu" if torch.equal(y, nn.functional.silu(x)) else None
