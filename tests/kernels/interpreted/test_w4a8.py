"""int4 weights and float8 activations against float64, in Triton's interpreter or on a GPU.

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
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
from soroq.kernels.registry import KERNELS
from soroq.kernels.tiles import TiledWeight, tile
from soroq.kernels.triton import matmul_w4a8, w4a8_ops
from soroq.kernels.triton.config import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16
# of Σ|x̂||w|: float32 sums; on Hopper sums of at most 128 products keep about 14 bits
LIMIT = 1e-3 if torch.cuda.is_available() else 3e-6
# N, K, group, M, symmetric: odd, ragged, one group of all, K that is no multiple of a tile or of 16
PROBLEMS = [
    (100, 256, 128, 5, True),
    (130, 320, 64, 17, False),
    (64, 1152, 128, 1, False),
    (70, 96, 32, 3, False),
    (66, 296, None, 65, True),
    (130, 1304, None, 2, False),
    (70, 768, 256, 33, False),
]
IDS = [f"M{M}-N{N}-K{K}-G{G or 'row'}-{'sym' if s else 'asym'}" for N, K, G, M, s in PROBLEMS]


def make(
    N: int, K: int, group: int | None, symmetric: bool
) -> tuple[TiledWeight, torch.Tensor, QuantizedTensor]:
    """Return a random int4 weight in tiles, its float64 values (N, K), and the weight itself."""
    generator = torch.Generator().manual_seed(N + K)
    shape = (N, K // (group or K))
    codes = torch.randint(-8, 8, (N, K), generator=generator).to(torch.int8)
    zeros = torch.randint(-8, 8, shape, generator=generator).to(torch.int8)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).to(BF16)
    args = QuantArgs(bits=4, group_size=group, symmetric=symmetric)
    weight = QuantizedTensor(codes, scales, None if symmetric else zeros, args)
    return tile(weight).to(DEVICE), weight.dequantize().double(), weight


def rounded(M: int, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float8 codes (M, K), their scales float32 (M, 1), and the float64 product of both."""
    generator = torch.Generator().manual_seed(M)
    x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
    x[:, ::7] = 0
    codes, scales = dispatch.round_rows(x)
    return codes.to(DEVICE), scales.to(DEVICE), codes.double() * scales.double()


def worst(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> float:
    """Return the largest error, as a share of Σ|x̂||w|."""
    scale = x.abs() @ w.abs().t()
    return float(((y.cpu().double() - x @ w.t()).abs() / scale).max())


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_product_equals_float64(
    problem: tuple[int, int, int | None, int, bool], splits: int
) -> None:
    N, K, group, M, symmetric = problem
    if splits > -(-K // 128):
        pytest.skip("fewer tiles than slices")
    weight, w, _ = make(N, K, group, symmetric)
    codes, scales, x = rounded(M, K)
    config = Config(16, 64, splits, 4, 2, True)
    n_partials, n_counters = config.scratch(M, N)
    partials = torch.empty(max(n_partials, 1), device=DEVICE)
    counters = torch.zeros(max(n_counters, 1), dtype=torch.int32, device=DEVICE)
    y = torch.empty(M, N, dtype=torch.float32, device=DEVICE)
    matmul_w4a8.run(codes, scales, weight, y, config, partials, counters)
    assert worst(y, x, w) <= LIMIT
    assert not counters.any()


def test_every_code_with_every_zero_point_is_exact() -> None:
    # row n has the zero point n - 8 and all 16 codes; x picks one column at a time
    codes = torch.arange(-8, 8).repeat(16, 2).to(torch.int8)
    zeros = torch.arange(-8, 8)[:, None].to(torch.int8)
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    weight = QuantizedTensor(codes, torch.ones(16, 1, dtype=BF16), zeros, args)
    x = torch.eye(32).to(torch.float8_e4m3fn).to(DEVICE)
    ones = torch.ones(32, 1, device=DEVICE)
    y = w4a8_ops.matmul_w4a8(x, ones, tile(weight).to(DEVICE), dtype=torch.float32)
    assert torch.equal(y.cpu().t(), codes.float() - zeros.float())


@pytest.mark.parametrize("M", [0, 1, 7, 33, 130])
def test_the_operator_equals_the_reference(M: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, w, _ = make(200, 640, 128, False)
    codes, scales, x = rounded(M, 640)
    wanted = dispatch.matmul_w4a8(codes.cpu(), scales.cpu(), weight.to("cpu"), dtype=torch.float32)
    assert M == 0 or worst(wanted, x, w) <= 3e-6
    monkeypatch.setattr(dispatch, "_choose", lambda p: (KERNELS["matmul_w4a8_triton"], ""))
    y = dispatch.matmul_w4a8(codes, scales, weight, dtype=torch.float32)
    again = dispatch.matmul_w4a8(codes[:, None], scales, weight, dtype=torch.float32)
    assert y.shape == (M, 200) and torch.equal(y, again[:, 0])  # the same bits every time
    assert M == 0 or worst(y, x, w) <= LIMIT
    torch.testing.assert_close(y.cpu(), wanted, rtol=1e-2, atol=0.02)


def _run_ptx(text: str, registers: dict[str, int]) -> dict[str, int]:
    """Run prmt, and, shr on 32-bit registers, as PTX ISA 8.7 describes them."""
    for line in text.strip("{ }").split(";"):
        name, *operands = line.replace(",", " ").split() or [""]
        if not name or name == ".reg":
            continue
        to, *given = operands
        a, *rest = (registers[g] if g in registers else int(g, 0) for g in given)
        if name == "prmt.b32":
            pool = (a | rest[0] << 32).to_bytes(8, "little")
            picked = [pool[rest[1] >> 4 * i & 7] for i in range(4)]
            registers[to] = int.from_bytes(bytes(picked), "little")
        else:
            registers[to] = {"and.b32": a & rest[0], "shr.u32": a >> rest[0]}[name]
    return registers


def test_in_line_assembly_makes_nibbles_the_bytes_of_their_numbers() -> None:
    # the interpreter runs none of it: four words, two a register, to byte i of output j
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        words = torch.randint(0, 2**16, (4,), generator=generator).tolist()
        pairs = {"$4": words[0] | words[1] << 16, "$5": words[2] | words[3] << 16}
        made = _run_ptx(matmul_w4a8._NIBBLES.value, pairs)
        for j in range(4):
            stored = torch.tensor(list(made[f"${j}"].to_bytes(4, "little")), dtype=torch.uint8)
            values = stored.view(torch.float8_e4m3fn).float() * 512
            assert values.tolist() == [word >> 4 * j & 15 for word in words]


def test_the_fake_operator_knows_the_shape() -> None:
    weight, _, _ = make(100, 256, 64, False)
    codes, scales, _ = rounded(3, 256)
    parts = (weight.tiles, weight.scales, weight.zeros, weight.N, weight.K, weight.group, BF16)
    torch.library.opcheck(
        torch.ops.soroq.matmul_w4a8.default, (codes, scales, *parts), test_utils="test_faketensor"
    )


def test_parts_that_do_not_fit_are_refused() -> None:
    weight, _, quantized = make(100, 256, 64, True)
    codes, scales, _ = rounded(3, 256)
    for wrong in (codes.float(), codes[:, :128]):
        with pytest.raises(ValueError, match=r"must be float8_e4m3fn \(…, 256\) and int4"):
            dispatch.matmul_w4a8(wrong, scales, weight, dtype=BF16)
    for steps in (scales[:2], scales.double(), scales[:, 0]):
        with pytest.raises(ValueError, match=r"x_scales must be float32 \(3, 1\)"):
            dispatch.matmul_w4a8(codes, steps, weight, dtype=BF16)
    args = QuantArgs(bits=8, group_size=64)
    eight = tile(QuantizedTensor(quantized.codes, quantized.scales, None, args)).to(DEVICE)
    with pytest.raises(ValueError, match="int8 weight"):
        dispatch.matmul_w4a8(codes, scales, eight, dtype=BF16)
