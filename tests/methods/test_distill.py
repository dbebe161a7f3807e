"""The tuned linear against its dense twin, the divergence against autograd in float64."""

import pytest
import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.methods import distill
from soroq.methods.distill import CHUNK, ScaledLinear, divergence, tuned_scales
from soroq.methods.rtn import quantize_rtn


def _quantized(bits: int, group: int | None) -> QuantizedTensor:
    args = QuantArgs(bits=bits, group_size=group, symmetric=bits == 8)
    return quantize_rtn(torch.randn(24, 96), args)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, None), (8, 96), (8, 32)])
def test_scaled_linear_is_the_dequantized_weight(bits: int, group: int | None) -> None:
    quantized = _quantized(bits, group)
    delta = torch.nn.Parameter(torch.zeros(quantized.scales.shape))
    bias = torch.randn(24)
    x = torch.randn(2, 5, 96)
    want = x @ quantized.dequantize().t() + bias
    torch.testing.assert_close(ScaledLinear(quantized, delta, bias)(x), want)
    with torch.no_grad():
        delta.normal_(0, 0.1)
    scales = tuned_scales(quantized.scales, delta)
    assert scales.dtype == quantized.scales.dtype
    stored = QuantizedTensor(quantized.codes, scales, quantized.zeros, quantized.args)
    want = x @ stored.dequantize().t() + bias
    torch.testing.assert_close(
        ScaledLinear(quantized, delta, bias)(x), want, rtol=0.02, atol=0.02 * float(want.std())
    )


@pytest.mark.parametrize("tokens", [1, 7, CHUNK, CHUNK + 3])
def test_divergence_and_its_gradient_are_those_of_autograd(tokens: int) -> None:
    student, teacher, head = torch.randn(tokens, 16), torch.randn(tokens, 16), torch.randn(50, 16)
    value, gradient = divergence(student, teacher, head)
    leaf = student.double().requires_grad_(True)
    log_q = (leaf @ head.double().t()).log_softmax(-1)
    log_p = (teacher.double() @ head.double().t()).log_softmax(-1)
    want = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    want.backward()
    assert value == pytest.approx(float(want.detach()), rel=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-6)


def test_divergence_of_a_model_from_itself_is_nothing() -> None:
    x, head = torch.randn(9, 16), torch.randn(50, 16)
    value, gradient = divergence(x, x, head)
    assert value == 0.0
    assert float(gradient.abs().max()) < 1e-6


def test_a_stored_head_taken_in_slices_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = torch.randn(13, 16), torch.randn(13, 16)
    head = torch.randn(50, 16).to(torch.bfloat16)
    value, gradient = divergence(student, teacher, head.float())
    monkeypatch.setattr(distill, "HEAD_ROWS", 7)  # the last slice is short
    monkeypatch.setattr(distill, "LOGITS", 4 * len(head))
    sliced, sliced_gradient = divergence(student, teacher, head)
    assert sliced == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(sliced_gradient, gradient, rtol=1e-4, atol=1e-6)
