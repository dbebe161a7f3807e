"""What other quantizers saved becomes a soroq checkpoint: the same weights, and refused if not."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from soroq.backends.collect import collect
from soroq.backends.tools import get_tool
from soroq.core.errors import BackendError
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout
from soroq.models.tiny import write_tiny_model

GOLDEN = Path(__file__).parent / "golden"
IDS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(0))


def _maker() -> ModuleType:
    """Return golden/make_results.py, which says how each result was asked for."""
    spec = importlib.util.spec_from_file_location("make_results", GOLDEN / "make_results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "base", **MAKER.MODEL)


def _opened(base: Path) -> tuple[Checkpoint, DecoderLayout]:
    checkpoint = open_checkpoint(base)
    return checkpoint, find_layout(checkpoint.config, set(checkpoint.names()))


def _collect(
    name: str, base: Path, out: Path, result: Path | None = None
) -> list[dict[str, object]]:
    _, scheme, options = MAKER.CASES[name]
    recipe = MAKER.recipe_of(scheme, options, skip="awq" not in name)
    out.mkdir()
    folded = name == "llmcompressor-awq"
    return collect(result or GOLDEN / name, out, *_opened(base), recipe, folded=folded)


@pytest.mark.parametrize("name", sorted(MAKER.CASES))
def test_weights_are_those_the_tool_multiplies_by(name: str, base: Path, tmp_path: Path) -> None:
    _collect(name, base, tmp_path / "out")
    stored = StoredWeights(open_checkpoint(tmp_path / "out"))
    for module, want in load_file(GOLDEN / name / "dense.safetensors").items():
        weight = stored.load_quantized(module)[0]
        # GPTQ's and AWQ's layouts are unpacked in float16 there: one rounding of each weight
        half = name.startswith(("gptqmodel", "autoround"))
        got = weight.dequantize(torch.float16 if half else torch.float32).float()
        assert torch.equal(got, want), module


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(MAKER.CASES))
def test_all_loaders_agree_and_the_rest_is_the_original(
    name: str, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    layers = _collect(name, base, tmp_path / "out")
    skipped = "awq" not in name  # the golden AWQ run quantized all
    assert len(layers) == 7 - skipped
    with torch.no_grad():
        want = load(tmp_path / "out", packed=False)(IDS).logits
        packed = load(tmp_path / "out")(IDS).logits
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        torch.testing.assert_close(packed, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs(IDS).logits, want, rtol=1e-4, atol=1e-4)
    before, after = (load_file(p / "model.safetensors") for p in (base, tmp_path / "out"))
    same = [n for n in before if n in after and _same(before[n], after[n])]
    assert "model.embed_tokens.weight" in same
    assert ("model.layers.0.mlp.up_proj.weight" in same) == skipped
    # only AWQ moves scale into norms (in Gemma 3: this one); errors of weights mean nothing then
    folded = name == "llmcompressor-awq"
    assert ("model.layers.0.pre_feedforward_layernorm.weight" not in same) == folded
    errors = [layer["weight_error"] for layer in layers]
    assert all(e is None for e in errors) if folded else all(0 < e < 0.05 for e in errors)


def test_a_linear_the_tool_left_out_is_named(base: Path, tmp_path: Path) -> None:
    result = shutil.copytree(GOLDEN / "gptqmodel-asym", tmp_path / "result")
    tensors = load_file(result / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "down_proj" not in n}
    save_file(kept, result / "model.safetensors")
    with pytest.raises(BackendError, match="mlp.down_proj: the tool left it as it was"):
        _collect("gptqmodel-asym", base, tmp_path / "out", result)


def test_other_numbers_than_asked_for_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="asked for as .*symmetric=True.*stored .*=False"):
        _collect("autoround-sym", base, tmp_path / "out", GOLDEN / "autoround-asym")


def test_permuted_columns_are_refused(base: Path, tmp_path: Path) -> None:
    result = shutil.copytree(GOLDEN / "gptqmodel-asym", tmp_path / "result")
    tensors = load_file(result / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, result / "model.safetensors")
    with pytest.raises(BackendError, match=r"q_proj: the tool permuted columns \(desc_act\)"):
        _collect("gptqmodel-asym", base, tmp_path / "out", result)


def test_golden_versions_are_the_ones_that_are_required() -> None:
    for name, (tool, _, _) in MAKER.CASES.items():
        versions = json.loads((GOLDEN / name / "peer.json").read_text())["versions"]
        for requirement in get_tool(tool).requirements:
            package, _, version = requirement.partition("==")
            assert versions[package] == version
