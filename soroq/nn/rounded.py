"""Float8 models on a GPU whose rows are rounded where they are made: no launch for it alone.

The norm in front of q, k and v, and the one in front of gate and up, give float8 codes; the
activation between them and down does too. Linears that read the same codes are one product. What
is left to round in a launch of its own is the attention's output.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor, stack_rows
from soroq.nn.linear import PackedLinear
from soroq.nn.panels import name_activation
from soroq.nn.tiled import StackedLinears, put

PRODUCERS = {"gelu": "geglu", "silu": "swiglu"}  # by the activation of the gate


class RoundedNorm(nn.Module):
    """An RMSNorm that gives float8 codes; `RoundedProduct` asks it for their scales.

    group_size: elements that share a scale, None for a token; input_scale (1,): the calibrated one.
    offset: what the weight is added to.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        eps: float,
        *,
        offset: float,
        group_size: int | None,
        input_scale: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps, self.offset, self.group_size = eps, offset, group_size
        self.register_buffer("input_scale", input_scale)
        self.input_scale: torch.Tensor | None
        self._made: tuple[torch.Tensor, torch.Tensor, torch.dtype] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float8_e4m3fn codes (…, K) for x (…, K)."""
        from soroq.kernels import dispatch

        codes, scales = dispatch.round_rows(
            x.reshape(-1, x.shape[-1]),
            producer="norm",
            other=self.weight,
            eps=self.eps,
            offset=self.offset,
            group_size=self.group_size,
            scale=self.input_scale,
        )
        shaped = codes.view(x.shape)
        self._made = shaped, scales, x.dtype
        return shaped

    def take(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """Return, once, the scales of the codes made last and the dtype they were made from.

        Raises RuntimeError when `codes` are others: something stands between norm and linear.
        """
        made, self._made = self._made, None  # a prompt's codes aren't kept until the next one
        if made is None or made[0] is not codes:
            raise RuntimeError("the input of a fused float8 linear is not its norm's last output")
        return made[1:]


class RoundedProduct(nn.Module):
    """y = x̂ Ŵᵀ + b with Ŵ (N, K) and x̂ in float8; scales of Ŵ (N, 1) or of blocks."""

    def __init__(self, weight: QuantizedTensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.block = weight.args.block
        self.register_buffer("qweight", weight.codes)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("bias", bias)
        self.qweight: torch.Tensor
        self.scales: torch.Tensor
        self.bias: torch.Tensor | None

    def forward(
        self, codes: torch.Tensor, x_scales: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return y (…, N) in `dtype` for codes (…, K) and their scales."""
        from soroq.kernels import dispatch

        y = dispatch.matmul_rounded(
            codes, x_scales, self.qweight, self.scales, dtype=dtype, block=self.block
        )
        return y if self.bias is None else y + self.bias.to(dtype)


class RoundedRowsLinear(nn.Module):
    """A product with what a RoundedNorm gave, as a linear of one input."""

    def __init__(self, norm: RoundedNorm, product: RoundedProduct) -> None:
        super().__init__()
        self.product = product
        object.__setattr__(self, "_norm", norm)  # the block owns it

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for the norm's codes (…, K)."""
        norm: RoundedNorm = self._norm  # type: ignore[assignment]
        y: torch.Tensor = self.product(codes, *norm.take(codes))
        return y


class RoundedGLU(nn.Module):
    """down(act(gate x) · up x) in float8: two products and a launch that rounds between them."""

    def __init__(
        self,
        gate_up: RoundedRowsLinear,
        down: RoundedProduct,
        *,
        producer: str,
        input_scale: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.gate_up, self.down, self._producer = gate_up, down, producer
        self.register_buffer("input_scale", input_scale)
        self.input_scale: torch.Tensor | None

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return (…, hidden) for the norm's codes (…, hidden)."""
        from soroq.kernels import dispatch

        both: torch.Tensor = self.gate_up(codes)
        gate, up = both.view(-1, both.shape[-1]).chunk(2, 1)
        block = self.down.block
        between, scales = dispatch.round_rows(
            gate,
            producer=self._producer,
            other=up,
            group_size=block[1] if block else None,
            scale=self.input_scale,
        )
        y: torch.Tensor = self.down(between, scales, both.dtype)
        return y.view(*codes.shape[:-1], -1)


def fuse_rounding(
    model: nn.Module,
    norms: Sequence[tuple[str, Sequence[str]]],
    *,
    offset: float,
    decoder: str = "model",
) -> None:
    """Let the norms of a causal model round for the float8 linears behind them.

    norms: paths in a block, an RMSNorm and all linears that read it; offset: what the norm's
    weight is added to (1 for Gemma). What isn't float8 on both sides, or rounds in another way
    than its neighbours, stays as it is. decoder: the path of what holds `layers`.
    """
    for block in model.get_submodule(decoder).get_submodule("layers").children():
        for source, targets in norms:
            _fuse(block, source, targets, offset)


def _fuse(block: nn.Module, source: str, targets: Sequence[str], offset: float) -> None:
    inside = dict(block.named_modules())  # what lies in tiles may be under no name of its own
    linears = [linear for path in targets if _rounds(linear := inside.get(path))]
    if len(linears) < len(targets) or not _alike(linears):
        return
    old, first = block.get_submodule(source), linears[0]
    eps = getattr(old, "variance_epsilon", None)
    norm = RoundedNorm(
        old.get_parameter("weight").data,
        float(old.eps if eps is None else eps),  # type: ignore[arg-type]
        offset=offset,
        group_size=first.args.block[1] if first.args.block else None,
        input_scale=first.input_scale,
    )
    put(block, source, norm)
    product = RoundedProduct(stack_rows([linear.quantized() for linear in linears]), _bias(linears))
    stacked = RoundedRowsLinear(norm, product)
    names = [path.rpartition(".")[2] for path in targets]
    if names == ["gate_proj", "up_proj"]:
        path = targets[0].rpartition(".")[0]
        mlp = block.get_submodule(path)
        down = mlp.get_submodule("down_proj")
        producer = PRODUCERS.get(name_activation(getattr(mlp, "act_fn", None)) or "")
        if producer and _rounds(down):
            last = RoundedProduct(down.quantized(), down.bias)
            new = RoundedGLU(stacked, last, producer=producer, input_scale=down.input_scale)
            put(block, path, new)
            return
    parts = StackedLinears(stacked, [linear.out_features for linear in linears]).parts()
    for path, part in zip(targets, parts, strict=True):
        put(block, path, part)


def _rounds(module: nn.Module | None) -> TypeGuard[PackedLinear]:
    """Tell whether a linear rounds its input and has float8 weights."""
    if not isinstance(module, PackedLinear) or module.args.dtype != "float":
        return False
    return module.activation is not None


def _alike(linears: Sequence[PackedLinear]) -> bool:
    """Tell whether linears round in the same way and their rows can be one matrix's."""
    first = linears[0]
    for linear in linears[1:]:
        scale, other = first.input_scale, linear.input_scale
        if linear.args != first.args or (scale is None) != (other is None):
            return False
        if scale is not None and other is not None and not torch.equal(scale, other):
            return False
    rows = first.args.block[0] if first.args.block else 1
    return not any(linear.out_features % rows for linear in linears[:-1])


def _bias(linears: Sequence[PackedLinear]) -> torch.Tensor | None:
    found = [linear.bias for linear in linears]
    known = next((bias for bias in found if bias is not None), None)
    if known is None:
        return None
    pairs = zip(found, linears, strict=True)
    return torch.cat([known.new_zeros(x.out_features) if b is None else b for b, x in pairs])
