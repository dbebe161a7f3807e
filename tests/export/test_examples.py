"""The examples, transformers.js, onnxruntime-web and optimum say what soroq run says.

JavaScript needs SOROQ_NODE_MODULES, a node_modules folder with onnxruntime-node, onnxruntime-web
and @huggingface/transformers; optimum needs SOROQ_OPTIMUM_PYTHON, the Python of an environment with
optimum-onnx and a transformers before 4.58. Without them those tests are skipped.
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
from soroq.export.session import EVERY, OnnxDecoder

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


# Greedy, with keys and values that grow from step to step, as plain programs do it.
WEB = """
import { readFileSync } from "node:fs";
import { InferenceSession, Tensor, env } from "onnxruntime-web";
env.wasm.numThreads = 1;
const folder = process.argv[2] + "/onnx/";
const session = await InferenceSession.create(readFileSync(folder + "model_last.onnx"), {
  externalData: [{ path: "model.onnx_data", data: readFileSync(folder + "model.onnx_data") }],
});
const whole = (v) => new Tensor("int64", BigInt64Array.from(v, BigInt), [1, v.length]);
const config = JSON.parse(readFileSync(process.argv[2] + "/config.json", "utf8"));
let past = {};
for (const name of session.inputNames.filter((n) => n.startsWith("past"))) {
  const shape = [1, config.num_key_value_heads, 0, config.head_dim];
  past[name] = new Tensor("float32", new Float32Array(0), shape);
}
let [step, length, said] = [JSON.parse(process.argv[3]), 0, []];
while (said.length < 12) {
  length += step.length;
  const mask = whole(Array(length).fill(1));
  const out = await session.run({ input_ids: whole(step), attention_mask: mask, ...past });
  said.push(out.logits.data.indexOf(Math.max(...out.logits.data)));
  step = said.slice(-1);
  past = Object.fromEntries(
    Object.keys(past).map((n) => [n, out[n.replace("past_key_values", "present")]]),
  );
}
console.log(JSON.stringify(said));
"""


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3"])
def test_onnxruntime_web_generates_the_same_tokens(
    model_type: str, exported: Make, tmp_path: Path
) -> None:
    node_folder(tmp_path)
    folder = exported(model_type)[1]
    script = tmp_path / "js" / "web.mjs"
    script.write_text(WEB)
    ids = list(range(40, 70))
    said = _said(["node", str(script), str(folder), json.dumps(ids)])
    assert json.loads(said) == list(OnnxDecoder(folder).generate(ids, max_new_tokens=12))


OPTIMUM = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
model = ORTModelForCausalLM.from_pretrained(sys.argv[1], file_name=sys.argv[3])
rows = json.loads(sys.argv[2])
width = max(map(len, rows))
ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
print(json.dumps(out[:, width:].tolist()))
"""


# optimum-onnx 0.1 makes caches of hidden_size / heads for Llama and Qwen 3, whatever head_dim says.
@pytest.mark.parametrize(
    ("model_type", "head_dim"), [("gemma3_text", 32), ("llama", 16), ("qwen3", 16)]
)
def test_optimum_generates_the_same_tokens(model_type: str, head_dim: int, exported: Make) -> None:
    python = os.environ.get("SOROQ_OPTIMUM_PYTHON")
    if python is None:
        pytest.skip("needs SOROQ_OPTIMUM_PYTHON")
    folder = exported(model_type, head_dim=head_dim)[1]
    rows = [list(range(40, 70)), list(range(80, 93))]
    said = json.loads(_said([python, "-c", OPTIMUM, str(folder), json.dumps(rows), EVERY]))
    for row, tokens in zip(rows, said, strict=True):
        want = list(OnnxDecoder(folder).generate(row, max_new_tokens=12, stop=[1]))
        assert [token for token in tokens if token != 1][: len(want)] == want
