"""PackedLinear and PackedEmbedding: stored words in, `kernels.dispatch` for the arithmetic.

The buffers are exactly what lies on disk (layout `pack-quantized`, or float8 with scales), so
loading copies nothing and unpacks nothing.
"""

import torch
from torch import nn

from soroq.core.packing import pack_rows, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import FP8_MAX, QuantArgs


class PackedLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ (N, K) packed.

    int: `qweight` int32 (N, K·bits/32), `scales` (N, K // G), `zeros` int8 or None.
    float: `qweight` float8_e4m3fn (N, K), `scales` (N, 1) or tiles; `activation` says how x is
    rounded to float8 (None: not at all), `input_scale` (1,) when that scale is fixed.
    """

    def __init__(
        self,
        quantized: QuantizedTensor,
        *,
        bias: torch.Tensor | None = None,
        activation: QuantArgs | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.args = quantized.args
        self.activation = activation
        self.out_features, self.in_features = quantized.shape
        packed = quantized.codes
        if quantized.args.dtype == "int":
            packed = pack_rows(quantized.codes, quantized.args.bits)
        self.register_buffer("qweight", packed)
        self.register_buffer("scales", quantized.scales)
        self.register_buffer("zeros", quantized.zeros)
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.qweight: torch.Tensor
        self.scales: torch.Tensor
        self.zeros: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.input_scale: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K), in x's dtype."""
        from soroq.kernels import dispatch

        flat = x.reshape(-1, self.in_features)
        block = self.args.block
        if self.args.dtype == "float" and self.activation is None:
            y = dispatch.matmul_w8_float(flat, self.qweight, self.scales, block=block)
        elif self.args.dtype == "float":
            act_scale = self.input_scale
            y = dispatch.matmul_fp8(
                flat, self.qweight, self.scales, block=block, act_scale=act_scale
            )
        else:
            multiply = dispatch.matmul_w4 if self.args.bits == 4 else dispatch.matmul_w8
            y = multiply(
                flat, self.qweight, self.scales, self.zeros, group_size=self.args.group_size
            )
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def quantized(self) -> QuantizedTensor:
        """Return the weight unpacked."""
        codes = self.qweight
        if self.args.dtype == "int":
            codes = unpack_rows(codes, self.args.bits, self.in_features)
        return QuantizedTensor(codes, self.scales, self.zeros, self.args)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.args}"


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix (vocabulary, hidden), times `scale` (√hidden for Gemma, else 1)."""

    def __init__(self, packed: PackedLinear, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.scale = scale
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        from soroq.kernels import dispatch

        p = self.packed
        gather = dispatch.gather_w4 if p.args.bits == 4 else dispatch.gather_w8
        rows = gather(
            ids, p.qweight, p.scales, p.zeros, group_size=p.args.group_size, dtype=self.dtype
        )
        return rows * self.scale


class RoundedLinear(nn.Module):
    """A dense linear whose input is rounded to float8 first: what a W8A8 kernel computes."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: QuantArgs,
        input_scale: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.activation = activation
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.bias: torch.Tensor | None
        self.input_scale: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = round_activations(x, self.activation, self.input_scale)
        return nn.functional.linear(rounded, self.weight, self.bias)


def round_activations(
    x: torch.Tensor, args: QuantArgs | None, scale: torch.Tensor | None
) -> torch.Tensor:
    """Return x (…, K) rounded to float8_e4m3fn and back, in x's dtype.

    Per token (dynamic), per group of `args.group_size` (dynamic), or by a fixed scale (1,).
    """
    if args is None:
        return x
    values = x.float()
    if scale is not None:
        step = scale.float()
        return ((values / step).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * step).to(
            x.dtype
        )
    group = args.group_size or x.shape[-1]
    grouped = values.unflatten(-1, (-1, group))
    step = (grouped.abs().amax(-1, keepdim=True) / FP8_MAX).clamp_min(1e-12)
    rounded: torch.Tensor
    rounded = (grouped / step).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * step
    return rounded.flatten(-2).to(x.dtype)
