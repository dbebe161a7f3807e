"""The float8 kernels against float64, in Triton's interpreter or on a GPU.

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os
from pathlib import Path

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.kernels import dispatch
from soroq.kernels.reference import fp8 as reference
from soroq.kernels.registry import KERNELS
from soroq.kernels.triton import fp8_ops
from soroq.kernels.triton.config import Config
from soroq.kernels.triton.matmul_fp8 import Many, run_few, run_many
from soroq.kernels.triton.quantize_fp8 import Producer, quantize_rows
from soroq.loading import load
from soroq.models.registry import ARCHITECTURES
from soroq.models.tiny import write_tiny_model
from soroq.nn.rounded import RoundedGLU, fuse_rounding
from soroq.pipeline.run import quantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16
# of Σ|x||w|: sums in float32; Hopper's float8 tensor cores keep about 14 bits of a sum
FLOAT32, FLOAT8 = 3e-6, 1e-3 if torch.cuda.is_available() else 3e-6
SHAPES = [(5, 200, 256), (17, 144, 304), (3, 256, 640)]


def make(N: int, K: int, blocks: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random float8 codes (N, K), their scales, and the float64 values."""
    generator = torch.Generator().manual_seed(N + K)
    codes = torch.randn(N, K, generator=generator).to(torch.float8_e4m3fn)
    size = (-(-N // 128), -(-K // 128)) if blocks else (N, 1)
    scales = torch.rand(size, generator=generator)
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:N, :K] if blocks else scales
    return codes.to(DEVICE), scales.to(DEVICE), codes.double() * wide.double()


def error(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> float:
    """Return the largest error of y, as a share of Σ|x||w|; x and w float64 on the CPU."""
    return float(((y.cpu().double() - x @ w.t()).abs() / (x.abs() @ w.abs().t())).max())


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("kind", "blocks"),
    [("none", False), ("none", True), ("row", False), ("fixed", False), ("block", True)],
)
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_products_equal_float64(
    M: int, N: int, K: int, kind: str, blocks: bool, splits: int
) -> None:
    weight, scales, w = make(N, K, blocks)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(M)).to(BF16).to(DEVICE)
    x_scales, truth, limit = None, x.cpu().double(), FLOAT32
    if kind != "none":
        group = 128 if kind == "block" else None
        fixed = torch.tensor([0.01], device=DEVICE) if kind == "fixed" else None
        truth = reference.quantize_tokens(x.cpu(), group_size=group, scale=fixed).double()
        x, x_scales = quantize_rows(x, group_size=group, scale=fixed)
        limit = FLOAT8
    config = Config(16, 64, splits, 4, 2, True)
    n_partials, n_counters = config.scratch(M, N)
    partials = torch.full((max(n_partials, 1),), float("nan"), device=DEVICE)
    counters = torch.zeros(max(n_counters, 1), dtype=torch.int32, device=DEVICE)
    y = torch.full((M, N), float("nan"), device=DEVICE)
    run_few(x, weight, x_scales, scales, y, config, partials, counters)
    assert error(y, truth, w) <= limit
    assert not counters.any()
    if x_scales is not None and N % 16 == 0:
        for exact in (False, True):
            y = torch.full((M, N), float("nan"), device=DEVICE)
            launch = Many(64, 64, 4, 2, programs=3, flatten=not exact, exact=exact)
            run_many(x, weight, x_scales, scales, y, launch)
            assert error(y, truth, w) <= limit


@pytest.mark.parametrize("group", [None, 128])
@pytest.mark.parametrize("K", [96, 300, 640])
def test_rows_are_rounded_as_the_reference_does(K: int, group: int | None) -> None:
    x = torch.randn(7, K, generator=torch.Generator().manual_seed(K)).to(BF16)
    x[2] = 0
    x[3, :9] = torch.tensor([448.0, -448, 1e-3, 1e-6, 0.0156, -0.0157, 240, 247, 17])
    codes, scales = quantize_rows(x.to(DEVICE), group_size=group)
    wide = scales if group is None else scales.repeat_interleave(128, 1)[:, :K]
    back = codes.float() * wide
    wanted = reference.quantize_tokens(x, group_size=group)
    # a GPU's division and the CPU's may differ in a scale's last bit
    torch.testing.assert_close(back.cpu(), wanted, rtol=1e-6 if DEVICE == "cpu" else 0.07, atol=0)


@pytest.mark.parametrize("group", [None, 128])
@pytest.mark.parametrize("K", [96, 300, 640])
@pytest.mark.parametrize("kind", ["gemma norm", "llama norm", "geglu", "swiglu"])
def test_producers_round_what_the_modules_make(kind: str, K: int, group: int | None) -> None:
    generator = torch.Generator().manual_seed(K)
    both = torch.randn(5, 2 * K, generator=generator).to(torch.float16)
    x, other = both.chunk(2, 1)  # rows apart, as a product of gate and up leaves them
    producer: Producer = "norm"
    if "glu" in kind:
        producer = "geglu" if kind == "geglu" else "swiglu"
    else:
        other = other[0] * 0.1
    options = {"eps": 1e-6, "offset": float(kind == "gemma norm"), "group_size": group}
    codes, scales = quantize_rows(
        both.to(DEVICE)[:, :K], producer=producer, other=other.to(DEVICE), **options
    )
    wanted, wanted_scales = reference.round_rows(x, producer=producer, other=other, **options)
    torch.testing.assert_close(scales.cpu(), wanted_scales, rtol=2e-3, atol=0)  # an ulp of float16
    far = (codes.cpu().float() - wanted.float()).abs() > 0
    assert far.float().mean() < 0.02  # at the edge between two codes
    torch.testing.assert_close(codes.cpu().float(), wanted.float(), rtol=0.13, atol=2**-8)


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_a_model_says_the_same_when_norms_round(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "base", model_type)
    recipe = Recipe(get_scheme("fp8-rtn"))
    quantize(tmp_path / "base", tmp_path / "out", recipe=recipe, calibration=None)
    model = load(tmp_path / "out", precision=None, dtype=torch.float16).to(DEVICE)
    ids = torch.arange(4, 9, device=DEVICE)[None]
    # the kernels on a CPU too
    monkeypatch.setattr(dispatch, "_choose", lambda p: (KERNELS[f"{p.op}_triton"], ""))
    known = ARCHITECTURES[model_type]
    with torch.no_grad():
        apart = model(ids).logits
        fuse_rounding(model, known.norms, offset=known.norm_offset)
        fused = model(ids).logits
    # the kernel's norm and torch's differ in last bits, and now and then by a step of float8
    assert float((fused - apart).norm() / apart.norm()) < 0.03
    assert any(isinstance(module, RoundedGLU) for module in model.modules())


@pytest.mark.parametrize("producer", ["norm", "geglu"])
def test_producers_give_what_separate_steps_give(producer: Producer) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 640, generator=generator).to(BF16)
    if producer == "norm":
        other = (torch.randn(640, generator=generator) * 0.1).to(BF16)
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        made = x.float() * root * (1 + other.float())
    else:
        other = torch.randn(6, 640, generator=generator).to(BF16)
        made = torch.nn.functional.gelu(x.float(), approximate="tanh") * other.float()
    codes, scales = quantize_rows(x.to(DEVICE), producer=producer, other=other.to(DEVICE), eps=1e-6)
    # three bits behind the point, and bfloat16 before it
    worst = ((codes.float() * scales).cpu() - made).abs() / made.abs().amax(1, keepdim=True)
    assert float(worst.max()) <= 2**-4 + 2**-7


def test_operators_choose_by_the_number_of_rows() -> None:
    weight, scales, w = make(144, 304, False)
    for M in (0, 2, 70, 300):
        x = torch.randn(M, 304, generator=torch.Generator().manual_seed(M)).to(BF16)
        both = fp8_ops.matmul_fp8(x.to(DEVICE), weight, scales)
        alone = fp8_ops.matmul_w8_float(x.to(DEVICE), weight, scales)
        assert both.shape == alone.shape == (M, 144)
        if M:
            rounded = reference.quantize_tokens(x).double()
            assert error(both, rounded, w) <= FLOAT8 + 2**-8
            assert error(alone, x.double(), w) <= 2**-8


def test_rules_fit_the_scratch_and_the_blocks() -> None:
    for M in (1, 8, 9, 16, 33, 64):
        for N, K in ((256, 640), (4096, 2560), (262208, 2560), (1152, 6912)):
            for both in (False, True):
                config = fp8_ops.rule_few(132, M, N, K, both=both)
                assert config.block_m >= (16 if both else 8) and config.splits <= -(-K // 128)
    assert fp8_ops.rule_many(132, 4096, 4096).block_m == 128
    assert fp8_ops.rule_many(132, 100, 4096).block_m == 64
