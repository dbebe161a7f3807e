"""Write what the other quantizers save for a tiny model, each with its own reading of two weights.

    PYTHONPATH=. PYTHON tests/backends/golden/make_results.py FOLDER [CASE …]

PYTHON is of an environment with llmcompressor 0.14.0.1, compressed-tensors 0.19.0, gptqmodel 7.6.0,
auto-round 0.15.1, optimum 2.3.0 and transformers 5.17.0 (made on a CPU). Each folder holds the
tool's own checkpoint without the embedding, and `dense.safetensors`: two weights (N, K) as the
tool's own modules multiply by them. Nothing that reads formats here is used.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from soroq.backends import peer
from soroq.backends.tools import translate
from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.models.tiny import write_tiny_model

MODEL = {
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LINEARS = [
    *(f"model.layers.0.self_attn.{n}_proj" for n in "qkvo"),
    *(f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")),
]
WATCHED = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llmcompressor-gptq": ("llmcompressor", "int4-gptq", {"symmetric": False, "group_size": 32}),
    "llmcompressor-awq": ("llmcompressor", "int4-awq", {"symmetric": False, "group_size": 32}),
    "llmcompressor-fp8-static": ("llmcompressor", "fp8-static", {}),
    "gptqmodel-asym": ("gptqmodel", "int4-gptq", {"symmetric": False, "group_size": 32}),
    "autoround-sym": ("autoround", "int4", {"symmetric": True, "group_size": 32}),
    "autoround-asym": ("autoround", "int4", {"symmetric": False, "group_size": 32}),
}


def recipe_of(scheme: str, options: dict[str, Any], skip: bool) -> Recipe:
    overrides = ((LINEARS[5], None),) if skip else ()
    return Recipe(get_scheme(scheme, **options), overrides=overrides, n_samples=8, seq_len=64)


def dense_weights(result: Path) -> dict[str, torch.Tensor]:
    """Return W (N, K) of the watched linears: what the tool's modules make of the identity."""
    from transformers import AutoModelForCausalLM

    config = json.loads((result / "config.json").read_text())
    if config["quantization_config"]["quant_method"] == "compressed-tensors":
        # static activations would be rounded too: decompressed weights only
        from transformers import CompressedTensorsConfig

        model = AutoModelForCausalLM.from_pretrained(
            result,
            dtype=torch.float32,
            quantization_config=CompressedTensorsConfig(dequantize=True),
        )
        return {n: model.get_submodule(n).weight.detach().float().contiguous() for n in WATCHED}
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(result), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    dense = {}
    for name in WATCHED:
        module = loaded.model.get_submodule(name)
        if hasattr(module, "dequantize_weight"):
            columns = module.dequantize_weight()
        else:  # AWQ's has none
            columns = module(torch.eye(module.in_features, dtype=torch.float16))
        dense[name] = columns.detach().t().float().contiguous()
    return dense


def main(folder: Path, names: list[str]) -> None:
    work = Path(tempfile.mkdtemp())
    base = write_tiny_model(work / "base", **MODEL)
    ids = torch.randint(4, 260, (8, 64), generator=torch.Generator().manual_seed(0))
    manifest = {"name": "golden", "n": 8, "seq_len": 64, "sha256": ids_sha256(ids)}
    CalibrationSet(ids, ("tg",) * 8, manifest).save(work / "text.calib")
    os.chdir(work)  # gptqmodel writes its logs where it is started
    for name in names or CASES:
        tool, scheme, options = CASES[name]
        job = translate(tool, recipe_of(scheme, options, skip="awq" not in name), LINEARS)
        arguments = job.arguments | ({"iters": 5} if tool == "autoround" else {})
        result = work / name
        order = {
            "tool": tool,
            "base": str(base),
            "calibration": str(work / "text.calib"),
            "result": str(result),
            "arguments": arguments,
            "seed": 0,
            "threads": 1,
        }
        (work / "job.json").write_text(json.dumps(order))
        peer.main(work / "job.json")
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        save_file(dense_weights(result), target / "dense.safetensors")
        with safe_open(result / "model.safetensors", framework="pt") as file:
            tensors = {n: file.get_tensor(n) for n in file.keys() if "embed_tokens" not in n}
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        config = json.loads((result / "config.json").read_text())
        config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copyfile(result / "peer.json", target / "peer.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
