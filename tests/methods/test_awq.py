"""AWQ's folds are exact as they are stored."""

import pytest
import torch

from soroq.methods.awq import SCALE_LIMIT, channel_scales, fold_norm


@pytest.mark.parametrize("offset", [1.0, 0.0], ids=["gemma", "llama"])
def test_stored_norm_times_exact_scale_gives_back_the_factor(offset: float) -> None:
    weight = (torch.randn(512) * 4).to(torch.bfloat16)
    weight[:3] = torch.tensor([-1.0, 0.0, -0.9961], dtype=torch.bfloat16)
    scales = torch.logspace(-1, 1, 512, base=SCALE_LIMIT)
    stored, exact = fold_norm(weight, scales, offset)
    assert stored.dtype == torch.bfloat16
    factor = weight.double() + offset
    again = (stored.double() + offset) * exact.double()
    torch.testing.assert_close(again, factor, rtol=1e-6, atol=1e-7)


def test_naive_fold_of_a_gemma_norm_is_not_exact() -> None:
    """The reason for `fold_norm`: the same fold with the intended scale loses up to a percent."""
    weight = (torch.randn(512) * 4).to(torch.bfloat16)
    weight = weight[weight != -1]  # a factor of 0 has no relative error
    scales = torch.full_like(weight, 7.3, dtype=torch.float32)
    stored = ((weight.float() + 1) / scales - 1).to(torch.bfloat16)
    again = (stored.double() + 1) * scales.double()
    wrong = (again / (weight.double() + 1) - 1).abs()
    assert wrong.max() > 0.005


def test_channel_scales_follow_the_activations_and_ignore_dead_channels() -> None:
    x = torch.ones(64)
    x[5], x[6:30] = 4.0, 0.0
    scales = channel_scales(x, torch.ones(64), 0.5)
    assert scales[5] == pytest.approx(2.0)
    assert scales[0] == pytest.approx(1.0)
    assert scales.min() >= 1 / SCALE_LIMIT - 1e-6
    assert torch.equal(channel_scales(x, torch.ones(64), 0.0), torch.ones(64))
