"""The rounded weight and its gradients, against the same written plainly in float64."""

import pytest
import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.train.fake_quant import FakeQuantLinear, rounded


def _start(N: int, K: int, group: int, symmetric: bool, bits: int = 4) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(N * K)
    args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
    codes = torch.randint(args.code_min, args.code_max + 1, (N, K), generator=generator)
    scales = (torch.rand(N, K // group, generator=generator) * 0.1 + 0.01).bfloat16()
    zeros = None
    if not symmetric:
        zeros = torch.randint(-8, 8, (N, K // group), generator=generator).to(torch.int8)
    return QuantizedTensor(codes.to(torch.int8), scales, zeros, args)


CASES = [
    pytest.param(3, 64, 32, True, 4, id="int4"),
    pytest.param(5, 96, 32, False, 4, id="int4-zeros"),
    pytest.param(7, 64, 64, True, 8, id="int8-row"),
]


@pytest.mark.parametrize(("N", "K", "group", "symmetric", "bits"), CASES)
def test_begins_as_what_it_starts_from(
    N: int, K: int, group: int, symmetric: bool, bits: int
) -> None:
    start = _start(N, K, group, symmetric, bits)
    torch.manual_seed(0)
    original = start.dequantize() + torch.randn(N, K) * start.scales.float().mean() * 0.6
    linear = FakeQuantLinear(start, None, original)
    assert not torch.equal(linear.latent, start.codes.float())
    assert torch.equal(linear.weight().detach(), start.dequantize())
    kept, changed = rounded(linear.latent, linear.delta, start)
    assert changed == 0 and torch.equal(kept.codes, start.codes)
    assert torch.equal(kept.scales, start.scales) and kept.scales.dtype == start.scales.dtype


@pytest.mark.parametrize(("N", "K", "group", "symmetric", "bits"), CASES)
def test_gradients_are_those_without_rounding(
    N: int, K: int, group: int, symmetric: bool, bits: int
) -> None:
    """In float64: W = (r + zeros' shift) · s (1 + δ) with r = u + (round(u) − u) held constant."""
    start = _start(N, K, group, symmetric, bits)
    linear = FakeQuantLinear(start, torch.randn(N))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        linear.latent.add_(torch.randn(N, K, generator=generator) * 0.7)
        linear.delta.add_(torch.randn(linear.delta.shape, generator=generator) * 0.02)
    x = torch.randn(4, K, generator=generator)
    wanted_grad = torch.randn(4, N, generator=generator)
    linear(x).backward(wanted_grad)

    latent = linear.latent.detach().double().requires_grad_(True)
    delta = linear.delta.detach().double().requires_grad_(True)
    low, high = start.args.code_min, start.args.code_max
    inside = ((latent >= low - 0.5) & (latent <= high + 0.5)).detach()
    codes = latent.detach().round().clamp(low, high)
    through = torch.where(inside, codes + latent - latent.detach(), codes)
    scales = start.scales.double()[..., None] * (1 + delta[..., None])
    stored = (scales.detach().float().bfloat16().double() + scales - scales.detach()).expand(
        -1, -1, group
    )
    zeros = 0.0 if start.zeros is None else start.zeros.double()[..., None]
    weight = ((through.view(N, -1, group) - zeros) * stored).flatten(1)
    assert linear.bias is not None
    y = x.double() @ weight.T + linear.bias.detach().double()
    y.backward(wanted_grad.double())
    torch.testing.assert_close(linear(x).detach().double(), y.detach(), rtol=1e-5, atol=1e-5)
    assert latent.grad is not None and linear.latent.grad is not None
    assert delta.grad is not None and linear.delta.grad is not None
    torch.testing.assert_close(linear.latent.grad.double(), latent.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(linear.delta.grad.double(), delta.grad, rtol=1e-4, atol=1e-5)
    assert bool((~inside).any()) == bool((linear.latent.grad[~inside] == 0).any())


def test_codes_lie_where_the_original_is_if_that_rounds_to_them() -> None:
    start = _start(3, 64, 32, False)
    original = start.dequantize() + 0.3 * start.scales.float().repeat_interleave(32, 1)
    original[0, 0] += 2 * float(start.scales[0, 0])  # chosen against rounding
    latent = FakeQuantLinear(start, None, original).latent.detach()
    offset = latent - start.codes.float()
    assert 0 < offset[0, 0] < 0.5
    offset[0, 0] = 0.3
    torch.testing.assert_close(offset, torch.full_like(offset, 0.3), rtol=0.01, atol=1e-3)


def test_codes_that_moved_half_a_step_are_counted_and_kept_in_range() -> None:
    start = _start(2, 32, 32, True)
    latent = start.codes.float()
    latent[0, :3] += torch.tensor([0.4, 0.6, 20.0])
    kept, changed = rounded(latent, torch.zeros(2, 1), start)
    assert kept.codes.max() <= 7 and kept.codes.min() >= -8
    different = (kept.codes != start.codes).sum()
    assert changed == int(different) and changed in (1, 2)  # a code of 7 can't go higher
    assert torch.equal(kept.codes[1], start.codes[1]) and kept.codes[0, 0] == start.codes[0, 0]


def test_what_is_no_integer_is_refused() -> None:
    codes = torch.zeros(2, 32, dtype=torch.float8_e4m3fn)
    args = QuantArgs(dtype="float", bits=8, group_size=None)
    with pytest.raises(ValueError, match="no integer codes"):
        FakeQuantLinear(QuantizedTensor(codes, torch.ones(2, 1), None, args), None)
