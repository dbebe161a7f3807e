"""The kernels' own test on this machine, and what their objects offer the linker."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]


@pytest.fixture(scope="module")
def program(build_selftest: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_selftest(tmp_path_factory.mktemp("selftest"))


def test_every_instruction_set_agrees_with_plain_loops(program: Path, run: Run) -> None:
    printed = run(program)
    assert printed.endswith(" 0 failed\n")
    isas = printed.splitlines()[0].split()
    assert ("avx512" in isas) == ("avx512_amx_model" in isas)


def test_no_instruction_set_gives_the_linker_a_function_that_others_may_use(
    program: Path, run: Run
) -> None:
    """Of an inline function that two files share one copy is kept, perhaps that in AVX-512."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    objects = sorted(program.parent.rglob("simd_*.o"))
    assert objects
    for path in objects:
        own = f"soroq::{path.name.removeprefix('simd_').split('.')[0]}::"
        symbols = run(nm, "-C", "--defined-only", "--extern-only", path).splitlines()
        names = [line.split(maxsplit=2)[1:] for line in symbols]
        # Its own table of functions is data.
        shared = [name for kind, name in names if kind not in "DR" and own not in name]
        assert names and not shared
        assert sum(kind in "DR" for kind, _ in names) == 1


def test_tiles_are_multiplied_in_a_short_loop(program: Path, run: Run) -> None:
    """The self-test runs a model of AMX: this looks at the instructions themselves."""
    objdump = shutil.which("objdump")
    objects = list(program.parent.rglob("simd_amx.cpp.o"))
    if objdump is None or not objects:
        pytest.skip("objdump (binutils) is not installed, or this compiler knows no AMX")
    listing = run(objdump, "-d", "--no-show-raw-insn", objects[0])
    functions = [text for text in listing.split("\n\n") if "\ttdpb" in text]
    assert len(functions) == 2  # one plane and two
    for text in functions:
        lines = re.findall(r"^ *([0-9a-f]+):\t(\S+) *(\S*)", text, re.MULTILINE)
        code = [(int(address, 16), name, operands) for address, name, operands in lines]
        names = [name for _, name, _ in code]
        # Activations are signed, weights not: the order of the operands says which is which.
        at = [i for i, name in enumerate(names) if name.startswith("tdp")]
        assert [code[i][1:] for i in at] == [
            ("tdpbsud", f"%tmm{w},%tmm{x},%tmm{to}")
            for to, x, w in (
                [(0, 4, 6), (1, 4, 7), (2, 4, 6), (3, 4, 7)]
                if "tmm5" not in text
                else [(0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)]
            )
        ]
        back = next(i for i in range(at[-1], len(code)) if names[i].startswith("j"))
        start = next(i for i, line in enumerate(code) if line[0] == int(code[back][2], 16))
        assert start < at[0]
        loop = code[start : back + 1]
        assert sum(name == "tileloadd" for _, name, _ in loop) == (5 if "tmm5" not in text else 4)
        assert len(loop) <= 32
        assert names.count("ldtilecfg") == 1 and names.count("tilerelease") == 1
        assert names.index("ldtilecfg") < start and names.index("tilerelease") > back
