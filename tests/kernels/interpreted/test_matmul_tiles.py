"""The tiled products against float64, in Triton's interpreter or on a GPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted

Uninitialised memory is NaN here (tests/kernels/conftest.py), so whatever a kernel forgets shows.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels import dispatch
from soroq.kernels.reference import tiled as reference
from soroq.kernels.tiles import TiledWeight, tile
from soroq.kernels.triton import matmul_tiles, ops, unpack_tiles
from soroq.kernels.triton.config import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16 = torch.bfloat16, torch.float16
# N, K, group, M, bits, symmetric, dtype: odd, ragged, one group of all, the vision tower's 4304
PROBLEMS = [
    (100, 256, 128, 5, 4, True, BF16),
    (130, 320, 64, 17, 4, False, BF16),
    (64, 1152, 128, 1, 4, False, FP16),
    (70, 96, 32, 3, 4, False, BF16),
    (66, 96, None, 1, 4, True, BF16),
    (130, 4304, None, 2, 4, False, BF16),
    (100, 256, 128, 5, 8, True, BF16),
    (66, 320, 32, 17, 8, True, FP16),
    (70, 272, None, 9, 8, True, BF16),
]


def make(
    N: int, K: int, group: int | None, bits: int, symmetric: bool
) -> tuple[TiledWeight, torch.Tensor]:
    """Return a random weight in tiles and its float64 values (N, K)."""
    generator = torch.Generator().manual_seed(N + K)
    half, n_groups = 1 << (bits - 1), K // (group or K)
    codes = torch.randint(-half, half, (N, K), generator=generator).to(torch.int8)
    zeros = torch.randint(-half, half, (N, n_groups), generator=generator).to(torch.int8)
    scales = (torch.rand(N, n_groups, generator=generator) * 0.01 + 0.001).to(BF16)
    args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
    weight = QuantizedTensor(codes, scales, None if symmetric else zeros, args)
    return tile(weight).to(DEVICE), weight.dequantize().double()


def inputs(M: int, K: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(M, K, generator=torch.Generator().manual_seed(M)).to(dtype).to(DEVICE)


def worst(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the largest error, as a share of Σ|x||w|."""
    scale = x.cpu().double().abs() @ w.abs().t()
    return float(((y.cpu().double() - truth).abs() / scale).max())


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_product_equals_float64(
    problem: tuple[int, int, int | None, int, int, bool, torch.dtype], deferred: bool, splits: int
) -> None:
    N, K, group, M, bits, symmetric, dtype = problem
    if splits > -(-K // 128):
        pytest.skip("fewer tiles than slices")
    weight, w = make(N, K, group, bits, symmetric)
    x = inputs(M, K, dtype)
    chosen = Config(16, 64, splits, 4, 2, deferred)
    n_partials, n_counters = chosen.scratch(M, N)
    partials = torch.empty(max(n_partials, 1), device=DEVICE)
    counters = torch.zeros(max(n_counters, 1), dtype=torch.int32, device=DEVICE)
    y = torch.empty(M, N, dtype=torch.float32, device=DEVICE)
    matmul_tiles.run(x, weight, y, chosen, partials, counters)
    truth = x.cpu().double() @ w.t()
    # deferred: only float32 sums are rounded, of 128 + code (1024 + code; twice that 16 times for
    # two planes); else every weight is rounded to x's dtype
    sums = 2e-5 if bits == 8 and dtype == FP16 else 2e-6
    limit = sums if deferred else {BF16: 2**-8, FP16: 2**-11}[dtype]
    assert worst(y, x, w, truth) <= limit
    assert not counters.any()


@pytest.mark.parametrize("splits", [1, 3])
def test_epilogues(splits: int) -> None:
    weight, w = make(198, 640, 128, 4, False)
    x = inputs(5, 640, BF16)
    chosen = Config(8, 64, splits, 2, 2, True)
    n_partials, n_counters = chosen.scratch(5, 198)
    partials = torch.empty(max(n_partials, 1), device=DEVICE)
    counters = torch.zeros(max(n_counters, 1), dtype=torch.int32, device=DEVICE)
    truth = x.cpu().double() @ w.t()

    y = torch.empty(5, 198, device=DEVICE)
    residual = torch.randn(5, 198, device=DEVICE)
    matmul_tiles.run(x, weight, y, chosen, partials, counters, epilogue="residual", extra=residual)
    assert worst(y - residual, x, w, truth) <= 1e-5

    y = torch.empty(5, 99, device=DEVICE)
    matmul_tiles.run(x, weight, y, chosen, partials, counters, epilogue="geglu")
    gated = torch.nn.functional.gelu(truth[:, 0::2], approximate="tanh") * truth[:, 1::2]
    torch.testing.assert_close(y.cpu().double(), gated, rtol=1e-4, atol=1e-5)

    y = torch.empty(5, 198, device=DEVICE)
    maxima = torch.empty(5, 4, device=DEVICE)
    matmul_tiles.run(x, weight, y, chosen, partials, counters, epilogue="maxima", extra=maxima)
    assert worst(y, x, w, truth) <= 2e-6
    blocks = torch.nn.functional.pad(y, (0, 58), value=float("-inf")).view(5, 4, 64)
    assert torch.equal(maxima, blocks.amax(2))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True)])
def test_rows_come_back_exactly(bits: int, symmetric: bool) -> None:
    weight, w = make(150, 320, 64, bits, symmetric)
    assert torch.equal(unpack_tiles.unpack(weight, torch.float32).cpu().double(), w)
    ids = torch.tensor([149, 0, 77, 77], device=DEVICE)
    for dtype in (torch.float32, FP16):
        rows = ops.gather_tiles(ids, weight, dtype)
        assert torch.equal(rows, reference.gather_tiles(ids, weight, dtype))
    # the interpreter cuts bfloat16 off where a GPU rounds
    rows = ops.gather_tiles(ids, weight, BF16)
    torch.testing.assert_close(rows, reference.gather_tiles(ids, weight, BF16), rtol=2**-7, atol=0)
    assert tuple(ops.gather_tiles(ids[:0], weight, BF16).shape) == (0, 320)


@pytest.mark.parametrize("M", [0, 1, 7, 33, 130])
def test_operators_equal_the_reference(M: int) -> None:
    weight, _ = make(200, 384, 128, 4, False)
    x = inputs(M, 384, BF16)
    y = ops.matmul_tiles(x, weight)
    torch.testing.assert_close(y, reference.matmul_tiles(x, weight), rtol=2**-7, atol=0.02)
    gated = ops.geglu_tiles(x, weight)
    torch.testing.assert_close(gated, reference.geglu_tiles(x, weight), rtol=2**-6, atol=0.05)
    if M:
        assert torch.equal(y, ops.matmul_tiles(x, weight))  # the same bits every time


def test_large_products_go_through_unpacked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = make(300, 256, 128, 4, False)
    x = inputs(6, 256, BF16)
    want = [f(x, weight) for f in (reference.matmul_tiles, reference.geglu_tiles)]
    monkeypatch.setattr(ops, "LARGE_M", 4)
    monkeypatch.setattr(ops, "UNPACKED_BYTES", 128 * 256 * 2)
    for run, wanted in zip((ops.matmul_tiles, ops.geglu_tiles), want, strict=True):
        torch.testing.assert_close(run(x, weight), wanted, rtol=2**-6, atol=0.05)
    residual = torch.randn(6, 300).to(BF16).to(DEVICE)
    added = ops.matmul_add(x, weight, residual)
    torch.testing.assert_close(added, want[0] + residual, rtol=2**-6, atol=0.05)


def test_topk_finds_the_largest_logits() -> None:
    weight, w = make(700, 256, 64, 8, True)
    x = inputs(3, 256, BF16)
    values, at = ops.matmul_topk(x, weight, 9)
    truth = (x.cpu().double() @ w.t()).topk(9)
    torch.testing.assert_close(values.cpu().double(), truth.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(at.cpu().sort().values, truth.indices.sort().values)


def test_operators_have_fakes_and_run_under_compile() -> None:
    weight, _ = make(128, 256, 128, 4, False)
    x = inputs(3, 256, BF16)
    rest = (weight.tiles, weight.scales, weight.zeros, 128, 256, 128, 4)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.soroq.matmul_tiles.default, (x, *rest), test_utils=checks)
    torch.library.opcheck(torch.ops.soroq.geglu_tiles.default, (x, *rest), test_utils=checks)
    ids = torch.tensor([1, 2], device=DEVICE)
    torch.library.opcheck(
        torch.ops.soroq.gather_tiles.default, (ids, *rest, BF16), test_utils=checks
    )
    compiled = torch.compile(lambda t: ops.matmul_tiles(t, weight) + 1, backend="aot_eager")
    assert torch.equal(compiled(x), ops.matmul_tiles(x, weight) + 1)


def test_dispatch_takes_triton_on_a_gpu_and_says_why_not_elsewhere() -> None:
    dispatch._choose.cache_clear()
    asked = {"M": 1, "N": 64, "K": 128, "group_size": 64, "symmetric": True}
    kernel, reason = dispatch.choose("matmul_tiles", **asked, dtype=BF16, device="cuda")
    assert kernel.name == "matmul_tiles_triton" and reason == "first choice"
    kernel, reason = dispatch.choose("matmul_tiles", **asked, dtype=BF16, device="cuda", grad=True)
    assert kernel.name == "matmul_tiles_reference" and "no backward" in reason
    kernel, _ = dispatch.choose("matmul_tiles", **asked, dtype=BF16, device="cpu")
    assert kernel.name == "matmul_tiles_reference"
