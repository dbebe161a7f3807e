"""GPTQ and descent against definitions, brute force and each other."""

import itertools

import pytest
import torch

from soroq.core.errors import NumericsError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.methods.descent import objective, refine, refit_scales, sweep_codes
from soroq.methods.gptq import inverse_factor, quantize_gptq
from soroq.methods.grid import Grid
from soroq.methods.ranges import minmax_ranges, search_float_scales, search_ranges
from soroq.methods.rtn import quantize_rtn

ASYMMETRIC = QuantArgs(group_size=32, symmetric=False)
SYMMETRIC = QuantArgs(group_size=32)
FLOAT8 = QuantArgs(dtype="float", bits=8, group_size=None)


def _problem(N: int = 24, K: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=generator) * torch.rand(K, generator=generator)
    x = torch.randn(4 * K, K, generator=generator) @ mixing
    weight = torch.randn(N, K, generator=generator)
    return weight, x.T @ x


def _grid(weight: torch.Tensor, hessian: torch.Tensor, args: QuantArgs) -> Grid:
    shape = (weight.shape[0], weight.shape[1])
    if args.dtype == "float":
        return Grid(search_float_scales(weight, args, hessian.diagonal()), None, args, shape)
    return Grid(*search_ranges(weight, args, hessian.diagonal()), args, shape)


def _gptq_textbook(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Algorithm of the paper without blocking or ordering: re-invert after each column, float64."""
    values, H = weight.double().clone(), hessian.double()
    H = H + 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    step, offset = grid.full_steps().double(), grid.full_offsets()
    shift = torch.zeros_like(step) if offset is None else offset.double()
    K = values.shape[1]
    for k in range(K):
        code = ((values[:, k] / step[:, k]).round() + shift[:, k]).clamp(-8, 7)
        quantized = (code - shift[:, k]) * step[:, k]
        inverse = torch.linalg.inv(H[k:, k:])
        error = (values[:, k] - quantized) / inverse[0, 0]
        values[:, k:] -= error[:, None] * inverse[0]
        values[:, k] = quantized
    return values.float()


@pytest.mark.parametrize("args", [ASYMMETRIC, SYMMETRIC], ids=["asym", "sym"])
def test_gptq_equals_the_textbook_algorithm(args: QuantArgs) -> None:
    weight, hessian = _problem()
    grid = _grid(weight, hessian, args)
    got = quantize_gptq(weight, hessian, grid, act_order=False).dequantize()
    want = _gptq_textbook(weight, hessian, grid)
    assert (got - want).abs().gt(1e-4).float().mean() < 0.01  # ties may fall to either side


@pytest.mark.parametrize("args", [ASYMMETRIC, SYMMETRIC, FLOAT8], ids=["asym", "sym", "fp8"])
def test_each_step_lowers_the_objective(args: QuantArgs) -> None:
    weight, hessian = _problem()
    grid = _grid(weight, hessian, args)
    losses = [objective(weight, hessian, grid.encode(weight))]
    current = quantize_gptq(weight, hessian, grid)
    losses.append(objective(weight, hessian, current))
    losses.append(objective(weight, hessian, refine(weight, hessian, current)))
    assert losses[0] > 1.3 * losses[1] > 1.3 * losses[2]


def test_objective_is_the_squared_output_error() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 64, generator=generator)
    weight = torch.randn(9, 64, generator=generator)
    quantized = quantize_rtn(weight, ASYMMETRIC)
    want = ((x.double() @ (weight - quantized.dequantize()).double().T) ** 2).sum()
    assert objective(weight, x.T @ x, quantized) == pytest.approx(float(want), rel=1e-4)


def test_descent_ends_where_no_single_code_can_improve() -> None:
    weight, hessian = _problem(N=3, K=32, seed=2)
    start = quantize_gptq(weight, hessian, _grid(weight, hessian, ASYMMETRIC))
    end = sweep_codes(weight, hessian, start, sweeps=30)
    best = [objective(weight[n : n + 1], hessian, _row(end, n)) for n in range(3)]
    for n, k, change in itertools.product(range(3), range(32), (-1, 1)):
        codes = end.codes.clone()
        codes[n, k] = (
            (int(codes[n, k]) + change) if -8 <= int(codes[n, k]) + change <= 7 else codes[n, k]
        )
        moved = QuantizedTensor(codes, end.scales, end.zeros, end.args)
        assert objective(weight[n : n + 1], hessian, _row(moved, n)) >= best[n] * (1 - 1e-4)


def _row(quantized: QuantizedTensor, n: int) -> QuantizedTensor:
    zeros = None if quantized.zeros is None else quantized.zeros[n : n + 1]
    return QuantizedTensor(
        quantized.codes[n : n + 1], quantized.scales[n : n + 1], zeros, quantized.args
    )


def test_refit_scales_solves_the_least_squares_problem() -> None:
    weight, hessian = _problem(N=4, K=64, seed=3)
    start = quantize_rtn(weight, QuantArgs(group_size=32))
    wide = QuantizedTensor(start.codes, start.scales.float(), None, start.args)
    fitted = refit_scales(weight, hessian, wide)
    factor = torch.linalg.cholesky(hessian.double(), upper=True)
    for n in range(4):
        columns = torch.stack(
            [
                factor[:, g * 32 : (g + 1) * 32] @ start.codes[n, g * 32 : (g + 1) * 32].double()
                for g in range(2)
            ],
            1,
        )
        want = torch.linalg.lstsq(columns, factor @ weight[n].double()).solution
        torch.testing.assert_close(fitted.scales[n].double(), want, rtol=2e-3, atol=1e-5)


def test_inverse_factor_inverts_the_damped_hessian_in_the_given_order() -> None:
    _, hessian = _problem()
    order = torch.randperm(96)
    upper = inverse_factor(hessian, 0.01, order).double()
    damped = hessian[order][:, order].double()
    damped.diagonal().add_(0.01 * hessian.diagonal().double().mean())
    identity = (upper.T @ upper) @ damped
    torch.testing.assert_close(identity, torch.eye(96, dtype=torch.float64), atol=1e-2, rtol=0)
    assert upper.tril(-1).abs().max() == 0


def test_rank_deficient_hessian_with_dead_columns_still_quantizes() -> None:
    x = torch.randn(5, 64)
    x[:, 10:20] = 0
    weight = torch.randn(6, 64)
    grid = _grid(weight, x.T @ x, ASYMMETRIC)
    quantized = quantize_gptq(weight, x.T @ x, grid)
    dead = slice(10, 20)
    step, offset = grid.full_steps()[:, dead], grid.full_offsets()
    assert offset is not None
    rounded = ((weight[:, dead] / step).round() + offset[:, dead]).clamp(-8, 7)
    assert torch.equal(quantized.codes[:, dead].float(), rounded)


def test_hopeless_hessian_is_a_numerics_error() -> None:
    with pytest.raises(NumericsError, match="not positive definite"):
        inverse_factor(torch.full((8, 8), float("nan")), 0.01, torch.arange(8))


@pytest.mark.parametrize("args", [ASYMMETRIC, SYMMETRIC], ids=["asym", "sym"])
def test_searched_ranges_never_lose_to_the_full_range(args: QuantArgs) -> None:
    weight, hessian = _problem(seed=5)
    weight[:, 7] *= 6
    importance = hessian.diagonal()
    full = Grid(*minmax_ranges(weight, args), args, (24, 96)).encode(weight).dequantize()
    best = (
        Grid(*search_ranges(weight, args, importance), args, (24, 96)).encode(weight).dequantize()
    )
    before = ((full - weight) ** 2 * importance).view(24, -1, 32).sum(-1)
    after = ((best - weight) ** 2 * importance).view(24, -1, 32).sum(-1)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.97 * before.sum()


def test_all_zero_group_quantizes_to_zero() -> None:
    weight = torch.randn(3, 64)
    weight[1, 32:] = 0
    for args in (ASYMMETRIC, SYMMETRIC):
        assert torch.equal(quantize_rtn(weight, args).dequantize()[1, 32:], torch.zeros(32))
