"""GGUF files read as they are stored: equal to the gguf package, through every door."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.export.gguf import write_gguf
from soroq.inspection import describe
from soroq.io.checkpoint import open_checkpoint, open_stored
from soroq.io.formats import gguf as blocks
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.convert import convert
from soroq.pipeline.run import quantize

TYPES = {"Q4_0": ("int4-rtn", True), "Q4_1": ("int4-rtn", False), "Q8_0": ("int8-rtn", True)}


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A Llama checkpoint, whose q and k rows change places in the file, and the file."""
    root = tmp_path_factory.mktemp(request.param)
    base = write_tiny_model(root / "base", "llama", num_hidden_layers=2)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["ab"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"] = [["a", "b"]]  # without any, a GGUF has no such key
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    method, symmetric = TYPES[request.param]
    scheme = get_scheme(method, group_size=32, symmetric=symmetric)
    quantize(base, root / "out", recipe=Recipe(scheme), calibration=None)
    write_gguf(root / "out", root / "m.gguf")
    return [root / "out", root / "m.gguf"]


def test_codes_scales_and_zero_points_come_back(pair: list[Path]) -> None:
    before, after = (StoredWeights(open_stored(path)) for path in pair)
    assert after.quantized == before.quantized
    for module in before.quantized:
        old, new = (s.load_quantized(module)[0] for s in (before, after))
        assert torch.equal(new.codes, old.codes)
        assert torch.equal(new.scales.double(), old.scales.double())
        assert (new.zeros is None) == (old.zeros is None)
        assert old.zeros is None or torch.equal(new.zeros, old.zeros)
        one, other = (s.open(module).rows(3, 9) for s in (before, after))
        assert torch.equal(other[0], one[0])


def test_the_model_runs_and_is_inspected_and_converted(pair: list[Path], tmp_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    for packed in (True, False):
        want = load(pair[0], packed=packed)(ids).logits
        assert torch.allclose(load(pair[1], packed=packed)(ids).logits, want, atol=1e-5)
    assert ("format", "compressed-tensors, pack-quantized") in describe(pair[1]).facts
    convert(pair[1], tmp_path / "gptq", "gptq-v2")
    assert torch.allclose(load(tmp_path / "gptq")(ids).logits, load(pair[0])(ids).logits, atol=1e-5)


def test_what_quantizes_sees_numbers_and_no_codes(pair: list[Path]) -> None:
    dense, stored = open_checkpoint(pair[1]), StoredWeights(open_stored(pair[0]))
    assert "quantization_config" not in dense.config
    name = "model.layers.0.mlp.up_proj"
    want = stored.load_quantized(name)[0].dequantize()
    # Q4_1's minima are rounded in the file, bfloat16 rounds the rest
    assert torch.allclose(dense.load(f"{name}.weight").float(), want, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize("kind", TYPES)
def test_what_another_tool_rounded_is_what_ggml_reads_or_is_left(kind: str) -> None:
    weight = np.random.default_rng(2).normal(size=(8, 64)).astype(np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    found = blocks.decode(kind, torch.from_numpy(raw))
    if kind == "Q4_1":  # its minima are numbers of their own
        assert found is None
        return
    assert found is not None
    want = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(found.dequantize().numpy(), want)
