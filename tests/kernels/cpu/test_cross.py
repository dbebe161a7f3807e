"""The kernels' own test on 64-bit Arm, in an emulator: both of its instruction sets and neither."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
TOOLCHAIN = Path(__file__).parent / "selftest" / "aarch64-linux.cmake"
# What a processor has; the last set is that of any processor.
ISAS = {
    "max": "neon_i8mm neon generic",
    "cortex-a76": "neon generic",
    "cortex-a72": "generic",
}


def test_arm_agrees_with_plain_loops(
    build_selftest: Callable[..., Path], run: Callable[..., str], tmp_path: Path
) -> None:
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: {package})")
    program = build_selftest(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    for processor, isas in ISAS.items():
        lines = run(EMULATOR, "-cpu", processor, program, "--quick").splitlines()
        assert lines[0].strip() == isas
        assert lines[-1].endswith(" 0 failed")
    (compiled,) = program.parent.rglob("simd_neon_i8mm.cpp.o")
    assert "\tusmmla\t" in run("aarch64-linux-gnu-objdump", "-d", compiled)
