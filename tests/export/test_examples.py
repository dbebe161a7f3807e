"""The examples and transformers.js say what soroq run says.

JavaScript needs SOROQ_NODE_MODULES, a node_modules folder with onnxruntime-node and
@huggingface/transformers; without it those tests are skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from soroq.export.chat import Chat
from soroq.export.session import OnnxDecoder

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


def node_folder(tmp_path: Path) -> None:
    """Make `tmp_path`/js, where node finds the packages; skip the test if they aren't there."""
    modules = os.environ.get("SOROQ_NODE_MODULES")
    if modules is None or shutil.which("node") is None:
        pytest.skip("needs node, and SOROQ_NODE_MODULES")
    (tmp_path / "js").mkdir()
    (tmp_path / "js" / "node_modules").symlink_to(modules)


def test_python_example(exported: Make) -> None:
    folder = exported()[1]
    command = [sys.executable, str(EXAMPLES / "onnx_chat.py"), str(folder), PROMPT, "12"]
    assert _said(command) == _want(folder)


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_javascript_example(model_type: str, exported: Make, tmp_path: Path) -> None:
    node_folder(tmp_path)
    folder = exported(model_type)[1]
    script = shutil.copy(EXAMPLES / "onnx_chat.mjs", tmp_path / "js")
    assert _said(["node", str(script), str(folder), PROMPT, "12"]) == _want(folder)


TRANSFORMERS_JS = """
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2] + "/";
const ids = JSON.parse(process.argv[4]);
const tensor = (rows) => new Tensor("int64", BigInt64Array.from(rows, BigInt), [1, rows.length]);
const inputs = { input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) };
const model = await AutoModelForCausalLM.from_pretrained(process.argv[3], {
  model_file_name: process.argv[5],
});
const out = await model.generate({ ...inputs, max_new_tokens: 12, do_sample: false });
console.log(JSON.stringify(out.tolist()[0].map(Number).slice(ids.length)));
"""


@pytest.mark.parametrize("graph", ["model", "model_last"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen3"])
def test_transformers_js_generates_the_same_tokens(
    model_type: str, graph: str, exported: Make, tmp_path: Path
) -> None:
    node_folder(tmp_path)
    folder = exported(model_type)[1]
    (tmp_path / "js" / "t.mjs").write_text(TRANSFORMERS_JS)
    script = str(tmp_path / "js" / "t.mjs")
    ids = list(range(40, 70))
    said = _said(["node", script, str(folder.parent), folder.name, json.dumps(ids), graph])
    want = list(OnnxDecoder(folder).generate(ids, max_new_tokens=12, stop=[1]))
    assert [token for token in json.loads(said) if token != 1] == want
