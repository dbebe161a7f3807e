"""Builds the kernels' own test, tests/kernels/cpu/selftest, for the tests that run it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "selftest"
Run = Callable[..., str]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command and return what it printed; its failure is the test's, with the output."""

    def run_command(*command: str | Path) -> str:
        parts = [str(part) for part in command]
        done = subprocess.run(parts, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{parts}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    return run_command


@pytest.fixture(scope="session")
def build_selftest(run: Run) -> Callable[..., Path]:
    """Build the self-test in a folder with options of cmake, and return the program."""
    own = Path(sys.executable).with_name("cmake")
    cmake = str(own) if own.exists() else shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler is installed")

    def build(folder: Path, *options: str) -> Path:
        run(cmake, "-S", SOURCE, "-B", folder, *options)
        run(cmake, "--build", folder, "--parallel", "2")
        return folder / "selftest"

    return build
