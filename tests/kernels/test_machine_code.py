"""What the compiler makes of the tiled products, without a GPU: the budget of KERNELS that bind.

At M ≤ 16 the kernels are bound by instructions issued before they are bound by memory unless
unpacking is nearly free: at most 2.2 instructions a weight, all else included.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from soroq.bench.kernels.machine_code import (
    SHARED_LIMIT,
    MachineCode,
    compile_matmul_tiles,
    compile_matmul_w4a8,
    is_available,
)
from soroq.kernels.triton import w4a8_ops
from soroq.kernels.triton.config import Config, rule

if not is_available():
    pytest.skip("triton has no ptxas and nvdisasm here", allow_module_level=True)

BUDGET = 2.2
CAPABILITIES = (80, 86, 89, 90)


def _sound(code: MachineCode, capability: int, config: Config, bits: int = 4) -> None:
    """Assert what holds for every configuration: whole loads, tensor cores, nothing spilled."""
    assert code.spilled == 0
    assert code.shared <= SHARED_LIMIT[capability]
    assert code.count(r"HMMA|HGMMA|WGMMA") > 0
    # a step's tiles, 16 bytes a lane, and no weight in smaller pieces
    wide = config.block_n * 64 * bits // 4 // (16 * 32 * config.warps)
    assert code.count(r"LDGSTS.*\.128") == wide or code.count(r"LDG.*\.128") >= wide
    # zero points become floats once a group; codes never go through an integer conversion
    assert code.count("I2F") * 16 <= len(code.loop)


@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("M", [1, 16])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_few_rows_stay_within_the_budget(capability: int, M: int, has_zeros: bool) -> None:
    config = rule(132, M, 4096, 5376)
    code = compile_matmul_tiles(capability, config, has_zeros=has_zeros)
    _sound(code, capability, config)
    assert code.per_weight <= BUDGET


@pytest.mark.parametrize("M", [32, 64, 128])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_more_rows_are_sound(capability: int, M: int) -> None:
    config = rule(132, M, 4096, 5376)
    code = compile_matmul_tiles(capability, config, has_zeros=True)
    _sound(code, capability, config)


@pytest.mark.parametrize("capability", [86, 90])
def test_eight_bits_and_epilogues(capability: int) -> None:
    config = rule(132, 1, 4096, 5376)
    code = compile_matmul_tiles(capability, config, has_zeros=False, bits=8, group=32)
    _sound(code, capability, config, bits=8)
    assert code.per_weight <= 2 * BUDGET  # twice the bytes leave twice the time
    for epilogue in ("geglu", "maxima"):
        code = compile_matmul_tiles(capability, config, has_zeros=False, epilogue=epilogue)
        _sound(code, capability, config)
        assert code.per_weight <= BUDGET


def test_float16_stays_within_the_budget_too() -> None:
    config = rule(28, 1, 2560, 10240)
    code = compile_matmul_tiles(86, config, N=2560, K=10240, has_zeros=False, dtype="fp16")
    _sound(code, 86, config)
    assert code.per_weight <= BUDGET


def test_a_conventional_dequantization_would_not_pass() -> None:
    config = rule(132, 1, 4096, 5376)
    plain = Config(config.block_m, config.block_n, 1, config.warps, config.stages, deferred=False)
    assert compile_matmul_tiles(90, plain, has_zeros=True).per_weight > BUDGET


@pytest.mark.parametrize("M", [1, 32, 64, 256])
@pytest.mark.parametrize(("group", "has_zeros"), [(128, False), (32, True), (5376, True)])
@pytest.mark.parametrize("capability", [89, 90])
def test_int4_by_float8_multiplies_in_float8(
    capability: int, group: int, has_zeros: bool, M: int
) -> None:
    config = w4a8_ops.rule(132, M, 4096, 5376)
    code = compile_matmul_w4a8(capability, config, group=group, has_zeros=has_zeros)
    assert code.spilled == 0
    assert code.shared <= SHARED_LIMIT[capability]
    # every product in float8, Ada's instruction and Hopper's; none promoted to 16 bits
    product = {89: r"QMMA\.16832\.F32\.E4M3\.E4M3", 90: r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3"}
    assert code.count(product[capability]) == code.count(r".*MMA") > 0
    assert code.count("F2F|F2I|F2FP") == 0  # codes become float8 without a conversion
    assert code.count(r"LDGSTS.*\.128") >= config.block_n * 64 // (16 * 32 * config.warps)
    if M == 1 and group >= 128:
        assert code.per_weight <= BUDGET
