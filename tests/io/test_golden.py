"""Checkpoints that gptqmodel wrote: soroq reads the weights that gptqmodel itself unpacks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soroq.core.errors import CheckpointError
from soroq.inspection import describe
from soroq.io.checkpoint import open_checkpoint
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import FORMATS
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.pipeline.convert import convert

GOLDEN = Path(__file__).parent / "golden"
CASES = ("gptq", "gptq-asym", "gptq-v2", "gptq-desc-act")


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_that_gptqmodel_unpacks(case: str) -> None:
    stored = StoredWeights(open_checkpoint(GOLDEN / case))
    dense = load_file(GOLDEN / case / "dense.safetensors")
    assert stored.format.name == ("gptq-v2" if case == "gptq-v2" else "gptq")
    assert stored.quantized == set(dense)
    for module, want in dense.items():
        got = stored.load_quantized(module)[0].dequantize(torch.float16).float()
        assert torch.equal(got, want), module


@pytest.mark.parametrize("case", ["gptq", "gptq-v2"])
def test_encoding_again_gives_the_words_that_gptqmodel_wrote(case: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / case)
    stored = StoredWeights(checkpoint)
    for module in stored.quantized:
        encoded = FORMATS[case].encode(module, stored.load_quantized(module)[0])
        for name, tensor in encoded.items():
            assert torch.equal(tensor, checkpoint.load(name)), name


@pytest.mark.parametrize("case", ["gptq", "gptq-asym", "gptq-v2"])
def test_packed_and_converted_models_say_what_the_unpacked_one_says(
    case: str, tmp_path: Path
) -> None:
    ids = torch.arange(10, 40)[None]
    want = load(GOLDEN / case, packed=False)(ids).logits
    assert torch.allclose(load(GOLDEN / case)(ids).logits, want, atol=1e-4)
    convert(GOLDEN / case, tmp_path / "out", "compressed-tensors")
    assert torch.equal(load(tmp_path / "out", packed=False)(ids).logits, want)
    assert any("gptq" in value for what, value in describe(GOLDEN / case).facts if what == "format")


def test_desc_act_runs_unpacked_and_says_why_not_packed_or_converted(tmp_path: Path) -> None:
    source = GOLDEN / "gptq-desc-act"
    logits = load(source, packed=False)(torch.arange(10, 40)[None]).logits
    assert bool(logits.isfinite().all())
    with pytest.raises(CheckpointError, match="packed=False"):
        StoredWeights(open_checkpoint(source)).open("model.layers.0.mlp.up_proj").rows(0, 4)
    with pytest.raises(FormatError, match="desc_act"):
        convert(source, tmp_path / "out", "compressed-tensors")
