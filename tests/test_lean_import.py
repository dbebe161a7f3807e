"""`import soroq`, the command line's help and the registries load none of the heavy packages."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "triton", "transformers", "gguf", "numpy", "onnx", "onnxruntime")
ROOT = Path(__file__).resolve().parent.parent

REPORT = f"""
import sys
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""


def loaded_after(code: str) -> list[str]:
    """Run `code` in a fresh interpreter at the repository root; return the heavy modules."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import soroq; assert soroq.__version__", id="soroq"),
        pytest.param("import soroq; dir(soroq)", id="dir"),
        pytest.param("import soroq.cli", id="cli"),
        pytest.param(
            "import sys, soroq.cli\n"
            "sys.argv = ['soroq', '--help']\n"
            "try:\n    soroq.cli.main()\nexcept SystemExit as stop:\n    assert not stop.code",
            id="help",
        ),
        pytest.param("import soroq.kernels.registry", id="kernels-registry"),
    ],
)
def test_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == []


def test_the_check_itself_sees_torch() -> None:
    assert "torch" in loaded_after("import torch")


def test_names_of_the_package_are_found_on_first_use() -> None:
    import soroq

    for name in ("load", "open_checkpoint", "quantize"):
        assert callable(getattr(soroq, name))


def test_unknown_name_is_an_attribute_error() -> None:
    import soroq

    with pytest.raises(AttributeError, match="no attribute 'dequantise'"):
        _ = soroq.dequantise
