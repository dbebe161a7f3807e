"""Weights in panels: exact packing, products against float64, on every instruction set here."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels import dispatch, panels
from soroq.kernels.panels import PanelWeight, pack, pack_pair, read_codes, unpack
from soroq.kernels.reference import panels as reference

pytestmark = pytest.mark.skipif(not panels.is_built(), reason="soroq._cpu is not built")

# Against a float32 product of the same rounded activations: the order of sums differs. Two planes
# of int8 may round a tie the other way, a step of 1/16,256 of the largest value.
TWIN = {"exact": 4e-6, "int8-coarse": 4e-6, "int8": 4e-6, "int16": 4e-5}
# Against float64 of activations as they are, relative to the product's norm: half a step of 1/127
# (1/16,256) of the largest of up to 128 values, three to four times their root mean square.
ROUNDING = {"exact": 4e-6, "int8-coarse": 2.5e-2, "int8": 2.5e-2, "int16": 2e-4}
SHAPES = [  # N, K, group (None: the row), bits: on and off panels, chunks and vectors
    (64, 128, 128, 4),
    (1, 8, 8, 4),
    (65, 96, 32, 4),
    (130, 320, 64, 4),
    (70, 300, None, 4),
    (3, 1152, None, 4),
    (64, 256, 64, 8),
    (33, 36, None, 8),
    (100, 640, 128, 8),
]


def _isas() -> list[str]:
    if not panels.is_built():
        return []
    from soroq import _cpu

    return list(_cpu.usable_isas())


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    from soroq import _cpu

    before = _cpu.isa()
    assert _cpu.select_isa(request.param)
    yield request.param
    _cpu.select_isa(before)


def _weight(
    N: int, K: int, group: int | None, bits: int, symmetric: bool, seed: int = 0
) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    n_groups = K // (group or K)
    codes = torch.randint(-half, half, (N, K), generator=generator).to(torch.int8)
    scales = torch.rand(N, n_groups, generator=generator) * 0.01 + 0.001
    zeros = None
    if not symmetric:
        zeros = torch.randint(-half, half, (N, n_groups), generator=generator).to(torch.int8)
    dtype = torch.bfloat16 if (N + K) % 2 else torch.float32
    args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
    return QuantizedTensor(codes, scales.to(dtype), zeros, args)


def _error(y: torch.Tensor, want: torch.Tensor) -> float:
    return float((y.double() - want.double()).norm() / want.double().norm())


@settings(max_examples=40, deadline=None)
@given(
    N=st.integers(1, 140),
    n_groups=st.integers(1, 5),
    group=st.sampled_from([1, 8, 12, 32, 64, 100, 128, 200, 300]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
)
def test_pack_then_unpack_is_identity(
    N: int, n_groups: int, group: int, bits: int, symmetric: bool, seed: int
) -> None:
    weight = _weight(N, n_groups * group, group, bits, symmetric or bits == 8, seed)
    packed = pack(weight)
    back = unpack(packed)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scales, weight.scales)
    assert (back.zeros is None) == (weight.zeros is None)
    assert weight.zeros is None or torch.equal(back.zeros, weight.zeros)
    codes, _, _ = read_codes(packed)  # the layout as Python reads it
    assert torch.equal(codes.to(torch.int8), weight.codes)


def test_bytes_lie_as_the_layout_says() -> None:
    codes = torch.zeros(64, 8, dtype=torch.int8) - 8
    codes[3, 2], codes[3, 6] = 1, 2  # row 3: column 2 below, column 4 + 2 above in one byte
    scales = torch.ones(64, 1)
    packed = pack(QuantizedTensor(codes, scales, None, QuantArgs(group_size=8)))
    assert packed.data.numel() == 256 + 64 * 4
    assert packed.data[4 * 3 + 2] == (1 + 8) | (2 + 8) << 4
    assert int(packed.data[:256].sum()) == (1 + 8) | (2 + 8) << 4
    assert packed.data[256:260].tolist() == [0, 0, 0x80, 0x3F]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"N{s[0]}-K{s[1]}-G{s[2]}-int{s[3]}")
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
def test_products_equal_the_twin_and_float64(
    shape: tuple[int, int, int | None, int], precision: str, isa: str
) -> None:
    N, K, group, bits = shape
    for symmetric in {True, bits == 8}:
        weight = _weight(N, K, group, bits, symmetric)
        packed = pack(weight)
        truth = weight.dequantize().double()
        for M in (1, 2, 3, 4, 5, 6, 7, 17, 65):
            x = torch.randn(M, K)
            y = dispatch.matmul_panels(x, packed, precision=precision)
            twin = reference.matmul_panels(x, packed, precision=precision)
            assert _error(y, twin) < TWIN[precision], (symmetric, M)
            exact = x.double() @ truth.t()
            scale = float(x.double().norm() * truth.norm()) / (M * N) ** 0.5 / K**0.5
            off = float((y.double() - exact).norm()) / (M * N) ** 0.5 / scale
            assert off < ROUNDING[precision], (symmetric, M)


def test_many_tokens_are_cut_into_tasks(isa: str) -> None:
    weight = _weight(65, 96, 32, 4, False)
    x = torch.randn(300, 96)
    y = dispatch.matmul_panels(x, pack(weight), precision="exact")
    assert _error(y, x.double() @ weight.dequantize().double().t()) < 4e-6


@pytest.mark.parametrize("M", [1, 3, 9])
def test_bfloat16_values_bias_and_residual(M: int, isa: str) -> None:
    values, bias = torch.randn(70, 50), torch.randn(70)
    x, residual = torch.randn(M, 50), torch.randn(M, 70)
    y = dispatch.matmul_panels(x, pack(values), bias=bias, residual=residual)
    want = x.double() @ values.bfloat16().double().t() + bias + residual
    assert _error(y, want) < 4e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_go_in_and_out(dtype: torch.dtype) -> None:
    weight = _weight(64, 128, 128, 4, False)
    x = torch.randn(2, 3, 128).to(dtype)
    y = dispatch.matmul_panels(x, pack(weight), precision="exact")
    assert y.dtype == dtype and y.shape == (2, 3, 64)
    want = x.double() @ weight.dequantize().double().t()
    torch.testing.assert_close(y.double(), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("F", [40, 64, 100])
def test_gate_and_up_in_one_product(activation: str, F: int, isa: str) -> None:
    gate, up = (_weight(F, 96, 32, 4, False, seed) for seed in (1, 2))
    packed = pack_pair(gate, up)
    for M in (1, 9):
        x = torch.randn(M, 96)
        y = dispatch.gated_panels(x, packed, precision="exact", activation=activation)
        g, u = (x.double() @ w.dequantize().double().t() for w in (gate, up))
        act = (
            torch.nn.functional.gelu(g, approximate="tanh")
            if activation == "gelu"
            else torch.nn.functional.silu(g)
        )
        assert _error(y, act * u) < 1e-5
        twin = reference.gated_panels(x, packed, precision="exact", activation=activation)
        assert _error(y, twin) < 1e-5


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_gather_returns_rows(bits: int) -> None:
    weight = torch.randn(70, 96) if bits == 16 else _weight(70, 96, 32, bits, bits == 8)
    dense = weight.bfloat16().float() if bits == 16 else weight.dequantize()
    ids = torch.tensor([[69, 0], [64, 69]])
    rows = dispatch.gather_panels(ids, pack(weight), torch.float32)
    assert torch.equal(rows, dense[ids])
    with pytest.raises(IndexError, match="row 70 is not in 0..69"):
        dispatch.gather_panels(torch.tensor([70]), pack(weight), torch.float32)


@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_row_alone(precision: str, value: float, isa: str) -> None:
    weight = _weight(65, 256, 128, 4, True)
    for M in (2, 9):
        x = torch.randn(M, 256)
        x[1, 5] = value
        y = dispatch.matmul_panels(x, pack(weight), precision=precision)
        assert not y[1].isfinite().any()
        assert y[0].isfinite().all() and (M == 2 or y[2:].isfinite().all())


def test_zeros_and_nothing(isa: str) -> None:
    packed = pack(_weight(65, 96, 32, 4, False))
    for precision in dispatch.PRECISIONS:
        y = dispatch.matmul_panels(torch.zeros(3, 96), packed, precision=precision)
        assert torch.equal(y, torch.zeros(3, 65))
    assert dispatch.matmul_panels(torch.empty(0, 96), packed).shape == (0, 65)


def test_strided_input_is_read_right() -> None:
    weight = _weight(64, 96, 32, 4, False)
    x = torch.randn(96, 10).t()[1::2]
    y = dispatch.matmul_panels(x, pack(weight), precision="exact")
    assert _error(y, x.double() @ weight.dequantize().double().t()) < 4e-6


def test_threads_change_no_bit() -> None:
    from soroq import _cpu

    before = _cpu.num_threads()
    packed = pack(_weight(200, 320, 64, 4, False))
    try:
        for M, precision in itertools.product((1, 5, 70), dispatch.PRECISIONS):
            x = torch.randn(M, 320)
            results = []
            for n in (1, 2, 3, 7):
                _cpu.set_num_threads(n)
                assert _cpu.num_threads() == n
                results.append(dispatch.matmul_panels(x, packed, precision=precision))
            assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        _cpu.set_num_threads(before)


def test_gradients_flow_through_the_twin() -> None:
    weight = _weight(64, 96, 32, 4, False)
    x = torch.randn(2, 96, requires_grad=True)
    dispatch.matmul_panels(x, pack(weight), precision="exact").sum().backward()
    assert x.grad is not None
    assert _error(x.grad[0], weight.dequantize().double().sum(0)) < 1e-5


def test_what_does_not_fit_is_refused() -> None:
    packed = pack(_weight(64, 96, 32, 4, False))
    with pytest.raises(TypeError, match=r"x is torch.float32 \(2, 95\), the weight needs"):
        dispatch.matmul_panels(torch.zeros(2, 95), packed)
    with pytest.raises(TypeError, match="the weight needs floating"):
        dispatch.matmul_panels(torch.zeros(2, 96, dtype=torch.int64), packed)
    with pytest.raises(TypeError, match="x is on meta"):
        dispatch.matmul_panels(torch.zeros(2, 96, device="meta"), packed)
    with pytest.raises(ValueError, match="'int4' is not exact, int8-coarse, int8 or int16"):
        dispatch.matmul_panels(torch.zeros(2, 96), packed, precision="int4")
    with pytest.raises(ValueError, match="needs a weight of pack_pair"):
        dispatch.gated_panels(torch.zeros(2, 96), packed)
    with pytest.raises(ValueError, match="aren't alike"):
        pack_pair(_weight(64, 96, 32, 4, False), _weight(64, 96, 96, 4, False))
    float8 = QuantizedTensor(
        torch.zeros(4, 4).to(torch.float8_e4m3fn),
        torch.ones(4, 1),
        None,
        QuantArgs(dtype="float", bits=8, group_size=None),
    )
    with pytest.raises(ValueError, match="not float8"):
        pack(float8)


def test_panels_check_what_they_are_given() -> None:
    from soroq import _cpu

    data = torch.from_numpy(_cpu.allocate(_cpu.panel_bytes(64, 96, 4, 32, True, True)))
    with pytest.raises(ValueError, match="panels of this shape take"):
        _cpu.Panels(data, 64, 96, 4, 32, False, True)
    with pytest.raises(ValueError, match="4, 8 or 16 bits"):
        _cpu.Panels(data, 64, 96, 5, 32, True, True)
    handle = _cpu.Panels(data, 64, 96, 4, 32, True, True)
    words, scales = torch.zeros(64, 12, dtype=torch.int32), torch.ones(64, 3, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="scales has the wrong dtype"):
        handle.fill(0, words, scales.float())
    with pytest.raises(ValueError, match="begin at a multiple of 64"):
        handle.fill(1, words, scales)
    with pytest.raises(ValueError, match=r"words is \(64, 11\), must be \(64, 12\)"):
        handle.fill(0, words[:, :11].contiguous(), scales)
    with pytest.raises(ValueError, match="zeros don't fit the symmetry"):
        handle.fill(0, words, scales, torch.zeros(64, 3, dtype=torch.int8))


def test_a_forked_child_computes_too() -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    packed = pack(_weight(200, 96, 32, 4, False))
    x = torch.randn(9, 96)
    want = dispatch.matmul_panels(x, packed)
    queue = context.SimpleQueue()
    child = context.Process(target=_compute, args=(packed, x.tolist(), queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(torch.tensor(queue.get()), want)


def _compute(packed: PanelWeight, x: list[list[float]], queue: object) -> None:
    queue.put(dispatch.matmul_panels(torch.tensor(x), packed).tolist())  # type: ignore[attr-defined]


def test_values_far_off_are_kept_apart(isa: str) -> None:
    # Eight values a hundred times the others, in two quads of each chunk: int8 keeps the others'
    # steps, of which a scale that reaches all leaves one or two.
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(9, 256, generator=generator)
    x[:, [3, 40, 41, 42, 130, 200, 201, 203]] *= 100
    weight = _weight(96, 256, 128, 4, True)
    exact = x.double() @ weight.dequantize().double().t()
    errors = {
        precision: _error(dispatch.matmul_panels(x, pack(weight), precision=precision), exact)
        for precision in dispatch.PRECISIONS
    }
    assert errors["int8"] < errors["int8-coarse"] / 20
