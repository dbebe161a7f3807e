"""The kernels' own test on this machine, and what their objects offer the linker."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]


@pytest.fixture(scope="module")
def program(build_selftest: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_selftest(tmp_path_factory.mktemp("selftest"))


def test_every_instruction_set_agrees_with_plain_loops(program: Path, run: Run) -> None:
    assert run(program).endswith(" 0 failed\n")


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
