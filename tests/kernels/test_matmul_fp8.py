"""float8 products, against numpy float64 with float8_e4m3fn written out as a table."""

import numpy as np
import pytest
import torch

from soroq.kernels import dispatch

# |y − truth| over Σ|x̂|·|W|: float32 sums, and for bfloat16 one rounding at the end.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def _positive_values() -> np.ndarray:
    """Return the 127 finite non-negative float8_e4m3fn values (OCP FP8 1.0, table 1), ascending.

    Bias 7, three mantissa bits, exponent 0 subnormal; the code 0x7f is NaN.
    """
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        values.append(
            (mantissa / 8) * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        )
    return np.array(values)


GRID = _positive_values()


def round_to_float8(values: np.ndarray) -> np.ndarray:
    """Round to the nearest grid value, ties to the even code."""
    magnitude = np.minimum(np.abs(values), GRID[-1])
    above = np.searchsorted(GRID, magnitude).clip(1, len(GRID) - 1)
    below = above - 1
    down, up = magnitude - GRID[below], GRID[above] - magnitude
    pick_up = (up < down) | ((up == down) & (above % 2 == 0))
    return np.sign(values) * np.where(pick_up, GRID[above], GRID[below])


def quantize(x: np.ndarray, group: int) -> np.ndarray:
    out = np.empty_like(x)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group].astype(np.float32)
        scale = np.abs(part).max(1, keepdims=True) / np.float32(448)
        out[:, start : start + group] = round_to_float8((part / scale).astype(np.float64)) * scale
    return out


def make(M: int, N: int, K: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(M + N + K)
    x = torch.randn(M, K, generator=draw).to(dtype)
    weight = (torch.randn(N, K, generator=draw) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
    return x, weight


def assert_product(y: torch.Tensor, x: np.ndarray, weight: np.ndarray, dtype: torch.dtype) -> None:
    assert y.dtype == dtype
    error = np.abs(y.double().numpy() - x @ weight.T) / (np.abs(x) @ np.abs(weight.T))
    assert error.max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 40, 32), (3, 40, 96), (17, 40, 640)])
def test_rows_with_one_scale_and_tokens_with_one_scale(
    M: int, N: int, K: int, dtype: torch.dtype
) -> None:
    x, weight = make(M, N, K, dtype)
    scales = torch.linspace(0.001, 0.01, N)[:, None]
    w = weight.float().double().numpy() * scales.double().numpy()
    y = dispatch.matmul_fp8(x, weight, scales)
    assert_product(y, quantize(x.double().numpy(), K), w, dtype)
    assert_product(dispatch.matmul_w8_float(x, weight, scales), x.double().numpy(), w, dtype)


@pytest.mark.parametrize(("M", "N", "K"), [(3, 256, 384), (1, 40, 96), (3, 200, 320)])
def test_tiles_that_do_not_divide_the_weight(M: int, N: int, K: int) -> None:
    x, weight = make(M, N, K, torch.float32)
    shape = (-(-N // 128), -(-K // 128))
    scales = torch.linspace(0.001, 0.01, shape[0] * shape[1]).view(shape)
    tiled = np.kron(scales.double().numpy(), np.ones((128, 128)))[:N, :K]
    w = weight.float().double().numpy() * tiled
    y = dispatch.matmul_fp8(x, weight, scales, block=(128, 128))
    assert_product(y, quantize(x.double().numpy(), 128), w, torch.float32)
    plain = dispatch.matmul_w8_float(x, weight, scales, block=(128, 128))
    assert_product(plain, x.double().numpy(), w, torch.float32)


def test_calibrated_activation_scale_saturates() -> None:
    x = torch.tensor([[1.0, -0.3, 1000.0, 0.0]])
    weight = torch.eye(4).to(torch.float8_e4m3fn)
    y = dispatch.matmul_fp8(x, weight, torch.ones(4, 1), act_scale=torch.tensor([0.5]))
    expected = round_to_float8(x.double().numpy() / 0.5) * 0.5
    np.testing.assert_array_equal(y.double().numpy(), expected)
    assert y[0, 2] == 224.0


def test_a_token_of_zeros_stays_zero() -> None:
    x = torch.zeros(2, 32)
    weight = torch.ones(40, 32).to(torch.float8_e4m3fn)
    assert torch.equal(dispatch.matmul_fp8(x, weight, torch.ones(40, 1)), torch.zeros(2, 40))


def test_parts_that_do_not_fit_are_refused() -> None:
    x, weight = make(1, 40, 96, torch.float32)
    with pytest.raises(ValueError, match=r"scales \(40, 1\)"):
        dispatch.matmul_fp8(x, weight, torch.ones(40))
    with pytest.raises(ValueError, match="must be float8_e4m3fn"):
        dispatch.matmul_fp8(x, weight.float(), torch.ones(40, 1))
    with pytest.raises(ValueError, match="one element and excludes block"):
        dispatch.matmul_fp8(x, weight, torch.ones(40, 1), act_scale=torch.ones(2))
