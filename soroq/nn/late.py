"""Linears and embeddings that keep their weights as stored and turn them to float as they run.

The values are those of a model loaded in float32, at half its memory or less: a slice of one
matrix's rows is float at a time. Slices that stay in the processor's cache make this as fast as
float32 weights that lie in memory, for one token too. Used where a model is evaluated, not served:
every call converts the weights again.
"""

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor, take_rows
from soroq.core.scheme import QuantArgs
from soroq.nn.linear import round_activations

# Weights of a matrix that are float at once, 8 MB: a head of (262144, 640) in bfloat16 takes one
# thread 0.05 s for one token so, 0.08 s with float32 weights in memory, 0.6 s in slices of 128 MB.
SLICE = 2 << 20


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
        rows = max(1, SLICE // self.in_features)
        if isinstance(self.stored, QuantizedTensor) and self.stored.args.block is not None:
            rows = -(-rows // self.stored.args.block[0]) * self.stored.args.block[0]
        if rows >= self.out_features:
            return nn.functional.linear(x, self._float(slice(None), x.dtype), self.bias)
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for start in range(0, self.out_features, rows):
            part = slice(start, min(start + rows, self.out_features))
            y[..., part] = nn.functional.linear(x, self._float(part, x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def _float(self, part: slice, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(self.stored, QuantizedTensor):
            return take_rows(self.stored, part).dequantize(dtype)
        return self.stored[part].to(dtype)


class LateEmbedding(nn.Module):
    """Rows of a stored matrix (vocabulary, hidden), maybe quantized, in `dtype`, times `scale`."""

    def __init__(
        self, weight: torch.Tensor | QuantizedTensor, scale: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.stored, self.scale, self.dtype = weight, scale, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for token ids (…)."""
        if isinstance(self.stored, QuantizedTensor):
            rows = take_rows(self.stored, ids.flatten()).dequantize(self.dtype)
            return rows.view(*ids.shape, -1) * self.scale
        return nn.functional.embedding(ids, self.stored).to(self.dtype) * self.scale
