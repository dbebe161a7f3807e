"""Products and gathers with packed int4 and int8 weights, against float64 arithmetic in numpy."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from soroq.kernels import dispatch
from soroq.kernels.cpu import ops
from soroq.kernels.reference import packed

# Largest |y − truth| over Σ|x|·|W| of that element. float32: K ≤ 640 products in float32, each
# rounded to 2⁻²⁴, errors mostly cancel. The others: one rounding of the result at the end.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}

needs_cpu_extension = pytest.mark.skipif(not ops.is_built(), reason="soroq._cpu is not built")

SHAPES = [
    (1, 40, 32, 32),
    (3, 40, 96, 32),
    (17, 40, 128, 128),
    (3, 40, 128, None),
    (17, 40, 96, None),
    (1, 40, 640, 128),
    (3, 1, 640, None),
]
IDS = [f"M{M}-N{N}-K{K}-G{G or 'row'}" for M, N, K, G in SHAPES]


@dataclass(frozen=True)
class Case:
    """A packed weight with its float64 truth, and an input."""

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    weight: np.ndarray
    x: torch.Tensor


def make_case(
    shape: tuple[int, int, int, int | None],
    bits: int,
    *,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float32,
    scale_dtype: torch.dtype = torch.float32,
) -> Case:
    """Draw codes, pack them bit by bit in Python integers, and dequantize them in float64."""
    M, N, K, G = shape
    draw = np.random.default_rng(M * 1000 + N + K + bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = draw.integers(low, high, (N, K))
    codes[0, :2] = low, high - 1
    n_groups = K // (G or K)
    scales = torch.from_numpy(draw.uniform(0.01, 0.1, (N, n_groups))).to(scale_dtype)
    zeros = draw.integers(low, high, (N, n_groups))
    per_word = 32 // bits
    words = np.zeros((N, K // per_word), dtype=np.uint32)
    for n in range(N):
        for k in range(K):
            stored = int(codes[n, k]) + 2 ** (bits - 1)
            words[n, k // per_word] |= np.uint32(stored << (bits * (k % per_word)))
    centred = codes - (0 if symmetric else zeros.repeat(G or K, 1))
    weight = centred * scales.double().numpy().repeat(G or K, 1)
    return Case(
        qweight=torch.from_numpy(words.view(np.int32)),
        scales=scales,
        zeros=None if symmetric else torch.from_numpy(zeros.astype(np.int8)),
        weight=weight,
        x=torch.from_numpy(draw.standard_normal((M, K))).to(dtype),
    )


def assert_product(y: torch.Tensor, case: Case) -> None:
    x = case.x.double().numpy()
    truth = x @ case.weight.T
    scale = np.abs(x) @ np.abs(case.weight.T)
    assert y.dtype == case.x.dtype
    error = np.abs(y.double().numpy() - truth) / scale
    assert error.max() <= TOLERANCE[case.x.dtype]  # also false for NaN


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=["s32", "s16"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize(
    ("multiply", "bits"),
    [
        pytest.param(packed.matmul_w4, 4, id="reference-w4"),
        pytest.param(packed.matmul_w8, 8, id="reference-w8"),
        pytest.param(ops.matmul_w4, 4, id="scalar-w4", marks=needs_cpu_extension),
        pytest.param(dispatch.matmul_w4, 4, id="dispatch-w4"),
        pytest.param(dispatch.matmul_w8, 8, id="dispatch-w8"),
    ],
)
def test_product_equals_float64_truth(
    multiply: Callable[..., torch.Tensor],
    bits: int,
    shape: tuple[int, int, int, int | None],
    symmetric: bool,
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
) -> None:
    case = make_case(shape, bits, symmetric=symmetric, dtype=dtype, scale_dtype=scale_dtype)
    y = multiply(case.x, case.qweight, case.scales, case.zeros, group_size=shape[3])
    assert_product(y, case)


@needs_cpu_extension
def test_scalar_product_does_not_depend_on_threads() -> None:
    case = make_case((3, 40, 640, 128), 4, symmetric=False)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            results.append(
                ops.matmul_w4(case.x, case.qweight, case.scales, case.zeros, group_size=128)
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_cpu_extension
def test_scalar_product_takes_strided_tensors() -> None:
    case = make_case((3, 40, 128, 32), 4, symmetric=False)
    assert case.zeros is not None
    y = ops.matmul_w4(
        case.x.t().contiguous().t(),
        case.qweight.t().contiguous().t(),
        case.scales.t().contiguous().t(),
        case.zeros.t().contiguous().t(),
        group_size=32,
    )
    assert_product(y, case)


def test_reference_splits_many_rows_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "_CHUNK_CODES", 3 * 96)
    case = make_case((3, 40, 96, 32), 4, symmetric=False)
    y = packed.matmul_w4(case.x, case.qweight, case.scales, case.zeros, group_size=32)
    assert_product(y, case)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("gather", "bits"), [(dispatch.gather_w4, 4), (dispatch.gather_w8, 8)])
def test_gathered_rows_equal_the_dequantized_rows(
    gather: Callable[..., torch.Tensor], bits: int, symmetric: bool
) -> None:
    case = make_case((1, 40, 96, 32), bits, symmetric=symmetric)
    ids = torch.tensor([[39, 0, 7], [7, 7, 38]])
    rows = gather(ids, case.qweight, case.scales, case.zeros, group_size=32, dtype=torch.float32)
    np.testing.assert_allclose(rows.numpy(), case.weight[ids.numpy()], rtol=2**-23)
    half = gather(ids, case.qweight, case.scales, case.zeros, group_size=32, dtype=torch.bfloat16)
    assert torch.equal(half, rows.bfloat16())


def test_leading_dimensions_are_kept() -> None:
    case = make_case((6, 40, 96, 32), 4)
    flat = dispatch.matmul_w4(case.x, case.qweight, case.scales, None, group_size=32)
    deep = dispatch.matmul_w4(case.x.view(2, 3, 96), case.qweight, case.scales, None, group_size=32)
    assert torch.equal(deep, flat.view(2, 3, 40))


def test_gradient_of_x_is_the_one_of_the_dequantized_weight() -> None:
    case = make_case((1, 40, 96, 32), 4)
    x = case.x.clone().requires_grad_()
    dispatch.matmul_w4(x, case.qweight, case.scales, None, group_size=32).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy()[0], case.weight.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 64)}, r"matmul_w4: x is \(1, 64\), qweight \(40, 96\) needs"),
        ({"qweight": torch.zeros(40, 12)}, "matmul_w4: qweight is torch.float32"),
        ({"scales": torch.zeros(40, 2)}, r"scales are torch.float32 \(40, 2\), must be floating"),
        ({"zeros": torch.zeros(40, 3)}, "zeros are torch.float32"),
        ({"group_size": 36}, "K 96 is not divisible by group_size 36"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    case = make_case((1, 40, 96, 32), 4)
    arguments = {
        "x": case.x,
        "qweight": case.qweight,
        "scales": case.scales,
        "zeros": None,
        "group_size": 32,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        dispatch.matmul_w4(**arguments)  # type: ignore[arg-type]


def test_extension_is_found_exactly_when_it_can_be_imported() -> None:
    assert ops.is_built() == (importlib.util.find_spec("soroq._cpu") is not None)
