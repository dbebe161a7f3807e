"""Linears and embeddings that keep their weights as stored and turn them to float as they run.

The values are those of a model loaded in float32, at half its memory or less: one linear's float
weights exist at a time, a head's a slice of rows at a time. Used where a model is evaluated, not
served: every call converts the weights again.
"""

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.nn.linear import round_activations

SLICE = 32 << 20  # weights of an unquantized matrix that are float at once


class LateLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ (N, K) as stored: float of any width, or quantized.

    x (…, K) in the dtype to compute in. activation, input_scale: how x is rounded first (W8A8).
    """

    def __init__(
        self,
        weight: torch.Tensor | QuantizedTensor,
        bias: torch.Tensor | None = None,
        *,
        activation: QuantArgs | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.stored = weight
        self.bias, self.activation, self.input_scale = bias, activation, input_scale
        self.out_features, self.in_features = weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) in x's dtype."""
        x = round_activations(x, self.activation, self.input_scale)
        if isinstance(self.stored, QuantizedTensor):
            return nn.functional.linear(x, self.stored.dequantize(x.dtype), self.bias)
        rows = max(1, SLICE // self.in_features)
        if rows >= self.out_features:
            return nn.functional.linear(x, self.stored.to(x.dtype), self.bias)
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for start in range(0, self.out_features, rows):
            part = self.stored[start : start + rows].to(x.dtype)
            y[..., start : start + rows] = nn.functional.linear(x, part)
        return y if self.bias is None else y + self.bias


class LateEmbedding(nn.Module):
    """Rows of a stored matrix (vocabulary, hidden) in `dtype`, times `scale`."""

    def __init__(self, weight: torch.Tensor, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored, self.scale, self.dtype = weight, scale, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for token ids (…)."""
        return nn.functional.embedding(ids, self.stored).to(self.dtype) * self.scale
