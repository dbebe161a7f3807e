"""Corrected targets and their statistics against least squares in float64."""

import pytest
import torch

from soroq.core.errors import NumericsError
from soroq.core.stats import LayerStats
from soroq.methods.target import corrected_weight


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(400, 24, generator=generator)
    noise = 0.3 * torch.randn(400, 24, generator=generator) @ torch.randn(24, 24)
    return original + 0.2 * noise, original


def test_corrected_weight_is_the_ridge_least_squares_solution() -> None:
    x, original = _inputs()
    weight = torch.randn(7, 24)
    stats = LayerStats(24, with_cross=True)
    for part in range(0, 400, 100):
        stats.update_(x[part : part + 100], original[part : part + 100])
    assert stats.cross is not None
    got = corrected_weight(weight, stats.hessian, stats.cross, ridge=0.01)
    ridge = 0.01 * float(stats.hessian.diagonal().mean())
    # min |x w' - y|² + ridge |w' - w|², stacked into one least-squares problem
    eye = torch.eye(24, dtype=torch.float64) * ridge**0.5
    left = torch.cat([x.double(), eye])
    right = torch.cat([original.double() @ weight.double().T, eye @ weight.double().T])
    want = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)
    before = ((x @ weight.T - original @ weight.T) ** 2).sum()
    after = ((x @ got.T - original @ weight.T) ** 2).sum()
    assert after < 0.9 * before


def test_equal_inputs_leave_the_weight_alone() -> None:
    x, _ = _inputs()
    stats = LayerStats(24, with_cross=True)
    stats.update_(x, x)
    weight = torch.randn(7, 24)
    assert stats.cross is not None
    got = corrected_weight(weight, stats.hessian, stats.cross, ridge=0.02)
    torch.testing.assert_close(got, weight, rtol=1e-4, atol=1e-4)


def test_token_weights_multiply_each_tokens_share() -> None:
    x, original = _inputs()
    weight = torch.rand(400)
    stats = LayerStats(24, with_cross=True)
    stats.update_(x.view(4, 100, 24), original.view(4, 100, 24), weight.view(4, 100))
    assert stats.cross is not None
    want = x.double().T @ (x.double() * weight.double()[:, None])
    torch.testing.assert_close(stats.hessian.double(), want, rtol=1e-4, atol=1e-3)
    want = x.double().T @ (original.double() * weight.double()[:, None])
    torch.testing.assert_close(stats.cross.double(), want, rtol=1e-4, atol=1e-3)
    assert stats.n_tokens == 400
    torch.testing.assert_close(stats.act_absmean, x.abs().mean(0), rtol=1e-4, atol=1e-6)


def test_infinite_activation_names_the_layer() -> None:
    stats = LayerStats(4)
    stats.update_(torch.tensor([[1.0, float("inf"), 0.0, 0.0]]))
    with pytest.raises(
        NumericsError, match="model.layers.0.mlp.down_proj: the calibration hessian"
    ):
        stats.check_finite("model.layers.0.mlp.down_proj")
