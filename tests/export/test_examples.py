"""The examples say what soroq run says. JavaScript: SOROQ_NODE_MODULES names a node_modules folder
with onnxruntime-node and @huggingface/transformers; without it the test is skipped."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from soroq.export.chat import Chat

Make = Callable[..., tuple[Path, Path]]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMPT = "Китоб"


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removeprefix(PROMPT).removesuffix("\n")


def _want(folder: Path) -> str:
    pieces = Chat(folder, raw=True).answer([{"role": "user", "content": PROMPT}], max_new_tokens=12)
    return "".join(pieces)


def test_python_example(exported: Make) -> None:
    folder = exported()[1]
    command = [sys.executable, str(EXAMPLES / "onnx_chat.py"), str(folder), PROMPT, "12"]
    assert _said(command) == _want(folder)


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_javascript_example(model_type: str, exported: Make, tmp_path: Path) -> None:
    modules = os.environ.get("SOROQ_NODE_MODULES")
    if modules is None or shutil.which("node") is None:
        pytest.skip("needs node, and SOROQ_NODE_MODULES")
    folder = exported(model_type)[1]
    (tmp_path / "js").mkdir()
    (tmp_path / "js" / "node_modules").symlink_to(modules)
    script = shutil.copy(EXAMPLES / "onnx_chat.mjs", tmp_path / "js")
    assert _said(["node", str(script), str(folder), PROMPT, "12"]) == _want(folder)
