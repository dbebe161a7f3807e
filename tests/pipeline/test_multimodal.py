"""A Gemma 3 with a vision tower: the decoder is quantized, everything else stays byte for byte."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Gemma3Config, Gemma3ForConditionalGeneration

from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.recipe import Recipe, parse_override
from soroq.core.schemes import get_scheme
from soroq.loading import load
from soroq.models.tiny import tiny_config
from soroq.pipeline.run import quantize

IMAGE_TOKENS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random Gemma 3 of one vision and three text blocks, as transformers saves it."""
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=tiny_config(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        image_token_index=290,
        boi_token_index=291,
        eoi_token_index=292,
    )
    model = Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    for parameter in model.parameters():  # biases and projections start as zeros
        torch.nn.init.normal_(parameter, std=0.2)
    directory = tmp_path_factory.mktemp("multimodal") / "base"
    model.save_pretrained(directory)
    return directory


def _calibration() -> CalibrationSet:
    ids = torch.randint(4, 260, (16, 48))
    manifest = {"name": "t", "n": 16, "seq_len": 48, "sha256": ids_sha256(ids)}
    return CalibrationSet(ids, ("tg",) * 16, manifest)


@pytest.mark.parametrize(
    "override", [(), ("*layers.0.mlp.*:fp8-rtn", "*layers.1.self_attn.*:skip")]
)
def test_only_the_decoder_changes_and_transformers_sees_and_reads(
    override: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = Recipe(
        get_scheme("int4-awq-gptq", group_size=32),
        overrides=tuple(parse_override(text) for text in override),
        n_samples=16,
        seq_len=48,
    )
    quantize(base, out, recipe=recipe, calibration=_calibration())
    before, after = (load_file(path / "model.safetensors") for path in (base, out))
    kept = [n for n in before if not n.startswith("language_model.model.layers.")]
    assert any("vision_tower" in name for name in kept)
    assert any("multi_modal_projector" in name for name in kept)
    for name in kept:
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name
    assert "language_model.model.layers.2.mlp.up_proj.weight_packed" in after

    original, theirs = (
        AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16)
        for path in (base, out)
    )
    text = torch.randint(4, 260, (2, 20))
    text[:, 3 : 3 + IMAGE_TOKENS] = 290
    pixels = torch.randn(2, 3, 28, 28).to(torch.bfloat16)
    both = {"input_ids": text, "pixel_values": pixels, "token_type_ids": (text == 290).long()}
    with torch.no_grad():
        seen = [model.get_image_features(pixels).pooler_output for model in (original, theirs)]
        assert torch.equal(seen[0], seen[1])
        logits = [model(**both).logits.float() for model in (original, theirs)]
        assert 0 < (logits[0] - logits[1]).abs().max() < logits[0].abs().max()

    only_text = torch.randint(4, 260, (2, 20))
    with torch.no_grad():
        ours = load(out)(only_text).logits
        # transformers runs a quantized multimodal model in its stored bfloat16, whatever is asked
        distance = (theirs(input_ids=only_text).logits.float() - ours).norm() / ours.norm()
    assert distance < 0.03


def test_an_ordered_decoder_still_sees(base: Path, tmp_path: Path) -> None:
    """8 bits: what differs is rounding, unless a channel is in the wrong place."""
    scheme = replace(get_scheme("int8-rtn", group_size=16), reordered=True)
    made = quantize(base, tmp_path / "out", recipe=Recipe(scheme), calibration=None)
    assert made.reordered is not None
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "out"))
    for name in before:
        if not name.startswith("language_model.model.layers."):
            assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name
    text = torch.randint(4, 260, (2, 20))
    text[:, 3 : 3 + IMAGE_TOKENS] = 290
    pixels = torch.randn(2, 3, 28, 28)
    both = {"input_ids": text, "pixel_values": pixels, "token_type_ids": (text == 290).long()}
    logits = []
    for path in (base, tmp_path / "out"):
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16)
        with torch.no_grad():
            logits.append(model(**both | {"pixel_values": pixels.bfloat16()}).logits.float())
    assert (logits[0] - logits[1]).norm() < 0.1 * logits[0].norm()


def test_transformers_keeps_the_decoder_packed_with_soroq_hf(base: Path, tmp_path: Path) -> None:
    from soroq.hf import SoroqConfig
    from soroq.nn.linear import PackedLinear
    from soroq.nn.panels import PanelLinear

    out = tmp_path / "out"
    recipe = Recipe(get_scheme("int4-rtn", group_size=32))
    quantize(base, out, recipe=recipe, calibration=None)
    ids = torch.randint(4, 260, (1, 20))
    given = {"quantization_config": SoroqConfig(), "dtype": torch.float32}
    model, info = AutoModelForImageTextToText.from_pretrained(
        out, output_loading_info=True, **given
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    packed = [m for m in model.modules() if isinstance(m, PanelLinear | PackedLinear)]
    assert len(packed) == 3 * 7
    with torch.no_grad():
        logits = model(ids).logits
        torch.testing.assert_close(logits, load(out)(ids).logits, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (out, tmp_path / "again"))
    assert set(before) - {"lm_head.weight"} == set(after) - {"lm_head.weight"}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", **given)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
