"""Files that llama.cpp quantized: soroq's readers see the values that llama.cpp itself reads."""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader

from soroq.inspection import describe
from soroq.io.checkpoint import open_checkpoint, open_stored
from soroq.io.formats import gguf_blocks as blocks
from soroq.io.gguf import translate
from soroq.io.stored import StoredWeights
from soroq.loading import load

GOLDEN = Path(__file__).parent / "golden" / "gguf"
HASHES: dict[str, dict[str, str]] = json.loads((GOLDEN / "hashes.json").read_text())


def _file(case: str) -> Path:
    return GOLDEN / f"{case.lower()}.gguf"


def _sha256(values: np.ndarray) -> str:  # type: ignore[type-arg]
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()


def _float32(kind: str, raw: torch.Tensor) -> torch.Tensor | None:
    """The values of rows of blocks by soroq's own unpacking, float32; None for other types."""
    if kind in ("Q4_0", "Q8_0"):
        codes, d = (blocks.unpack_q4_0 if kind == "Q4_0" else blocks.unpack_q8_0)(raw)
        return d.float().repeat_interleave(32, 1) * codes
    if kind == "Q4_1":
        codes, d, m = blocks.unpack_q4_1(raw)
        return d.float().repeat_interleave(32, 1) * codes + m.float().repeat_interleave(32, 1)
    if kind == "Q4_K":
        codes, d, dmin, sc, mn = blocks.unpack_q4_k(raw)
        scale = (d.float().repeat_interleave(8, 1) * sc).repeat_interleave(32, 1)
        return scale * codes - (dmin.float().repeat_interleave(8, 1) * mn).repeat_interleave(32, 1)
    if kind == "Q6_K":
        codes, d, sc = blocks.unpack_q6_k(raw)
        return (d.float().repeat_interleave(16, 1) * sc).repeat_interleave(16, 1) * codes
    return None


@pytest.mark.parametrize("case", HASHES)
def test_soroqs_unpacking_gives_the_values_that_llama_cpp_reads(case: str) -> None:
    found = set()
    for tensor in GGUFReader(_file(case)).tensors:
        kind = tensor.tensor_type.name
        values = _float32(kind, torch.from_numpy(np.array(tensor.data)))
        if values is not None:
            assert _sha256(values.numpy()) == HASHES[case][tensor.name], tensor.name
            found.add(kind)
    assert found >= ({"Q4_K", "Q6_K"} if case == "Q4_K_M" else {case})


@pytest.mark.parametrize("case", HASHES)
def test_checkpoints_expand_to_those_values_in_bfloat16(case: str) -> None:
    """Behind the gguf package's dequantization, which has llama.cpp's hashes too."""
    checkpoint = open_checkpoint(_file(case))
    for tensor in GGUFReader(_file(case)).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert _sha256(values) == HASHES[case][tensor.name], tensor.name
        want = torch.from_numpy(np.array(values, np.float32))
        if "norm" in tensor.name:  # Gemma's are stored as 1 + w
            want = want - 1
        got = checkpoint.load(translate(tensor.name, "gemma3", _file(case)))
        assert torch.equal(got, want.to(torch.bfloat16)), tensor.name


@pytest.mark.parametrize("case", ["Q4_0", "Q8_0"])
def test_exact_types_stay_codes_and_scales(case: str) -> None:
    stored = StoredWeights(open_stored(_file(case)))
    assert "model.layers.0.mlp.up_proj" in stored.quantized
    for tensor in GGUFReader(_file(case)).tensors:
        module = translate(tensor.name, "gemma3", _file(case)).removesuffix(".weight")
        if module in stored.quantized:
            values = stored.load_quantized(module)[0].dequantize(torch.float32)
            assert _sha256(values.numpy()) == HASHES[case][tensor.name], module


@pytest.mark.parametrize("case", HASHES)
def test_the_model_runs_and_is_described(case: str) -> None:
    torch.set_num_threads(1)
    logits = load(_file(case))(torch.arange(10, 30)[None]).logits
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0
    assert ("blocks", "1") in describe(_file(case)).facts
