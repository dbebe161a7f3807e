"""transformers with soroq.hf: the model of soroq.load, packed, saved again, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import soroq.hf
from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.errors import CheckpointError, SchemeError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.hf import SoroqConfig
from soroq.io.formats.compressed_tensors import encode
from soroq.kernels import panels
from soroq.loading import load
from soroq.methods.rtn import quantize_rtn
from soroq.models.tiny import write_tiny_model
from soroq.nn.linear import PackedLinear
from soroq.nn.panels import PanelLinear
from soroq.nn.rounded import RoundedGLU, RoundedNorm
from soroq.nn.tiled import StackedPart, TiledEmbedding, TiledGeGLU
from soroq.pipeline.convert import convert
from soroq.pipeline.run import quantize

IDS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(0))
EMBED8 = QuantArgs(bits=8, group_size=64)
EMBED4 = QuantArgs(bits=4, group_size=32, symmetric=False)


def _quantized(folder: Path, model_type: str, scheme: str, **changes: Any) -> Path:
    """Return a tiny model, quantized by rounding: hidden 128, so that groups of 128 fit."""
    options = {k: changes.pop(k) for k in ("group_size", "symmetric") if k in changes}
    base = write_tiny_model(folder / "base", model_type, hidden_size=128)
    n, seq_len = 4, 32
    recipe = Recipe(get_scheme(scheme, **options), n_samples=n, seq_len=seq_len, **changes)
    ids = torch.randint(4, 260, (n, seq_len), generator=torch.Generator().manual_seed(1))
    manifest = {"name": "t", "n": n, "seq_len": seq_len, "sha256": ids_sha256(ids)}
    calibration = CalibrationSet(ids, ("tg",) * n, manifest)
    quantize(base, folder / "out", recipe=recipe, calibration=calibration)
    return folder / "out"


def _open(out: Path, config: SoroqConfig | None = None, **changes: Any) -> Any:
    given = {"quantization_config": config or SoroqConfig(), "dtype": torch.float32} | changes
    return AutoModelForCausalLM.from_pretrained(out, **given)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "int4-G32-asym": ("gemma3_text", "int4-rtn", {"group_size": 32, "symmetric": False}),
    "int4-G64-sym": ("gemma3_text", "int4-rtn", {"group_size": 64, "symmetric": True}),
    "int4-G128-asym": ("gemma3_text", "int4-rtn", {"group_size": 128, "symmetric": False}),
    "int4-row-sym": ("gemma3_text", "int4-rtn", {"group_size": None, "symmetric": True}),
    "int8-row": ("gemma3_text", "int8-rtn", {}),
    "fp8-static": ("gemma3_text", "fp8-static", {}),
    "fp8-block": ("gemma3_text", "fp8-block", {}),
    "mixed": (
        "gemma3_text",
        "int4-rtn",
        {
            "group_size": 32,
            "overrides": (
                parse_override("*.down_proj:int8-rtn"),
                parse_override("*.o_proj:fp8-rtn"),
                ("*.layers.0.self_attn.v_proj", None),
            ),
        },
    ),
    "embed-int8": ("gemma3_text", "int4-rtn", {"group_size": 32, "embed": EMBED8}),
    "embed-int4": ("gemma3_text", "int8-rtn", {"group_size": 64, "embed": EMBED4}),
    "llama": ("llama", "int4-rtn", {"group_size": 32}),
    "qwen2-bias": ("qwen2", "int8-rtn", {"group_size": 64}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_soroq_load_and_of_what_is_saved(case: str, tmp_path: Path) -> None:
    model_type, scheme, changes = CASES[case]
    out = _quantized(tmp_path, model_type, scheme, **changes)
    want = _logits(load(out))
    model, info = _open(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(_logits(model), want)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(_logits(load(tmp_path / "again")), want)
    assert torch.equal(_logits(_open(tmp_path / "again")), want)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    before = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == before["quantization_config"]
    assert config["tie_word_embeddings"] == before["tie_word_embeddings"]


@pytest.mark.skipif(not panels.is_built(), reason="soroq._cpu is not built")
@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_precision_is_that_of_soroq_load(precision: str, tmp_path: Path) -> None:
    out = _quantized(tmp_path, "gemma3_text", "int4-rtn", group_size=32, embed=EMBED8)
    model = _open(out, SoroqConfig(precision=precision), dtype=torch.bfloat16)
    want = load(out, precision=precision, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.equal(_logits(model), _logits(want))


def test_nothing_is_dense_and_text_is_generated(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "gemma3_text", "int4-rtn", group_size=32, embed=EMBED4)
    model = _open(out)
    packed = [m for m in model.modules() if isinstance(m, PanelLinear | PackedLinear)]
    assert len(set(map(id, packed))) == 3 * 7 + 1 and model.lm_head in packed
    floats = [t for t in model.state_dict().values() if t.dtype == torch.float32]
    assert all(t.dim() == 1 for t in floats), "a matrix is dense"
    held = sum(t.nbytes for t in model.state_dict().values())
    held += sum(m.weight.nbytes for m in {id(m): m for m in packed}.values())
    # panels pad 300 rows of the vocabulary to 320 and hold what the file holds, norms are float32
    assert held < 1.1 * (out / "model.safetensors").stat().st_size
    text = model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False)
    expected = load(out).generate(IDS[:1, :5], max_new_tokens=12, do_sample=False)
    assert text.shape[1] > 5 and torch.equal(text, expected)


def test_stored_words_are_kept_without_panels(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "gemma3_text", "int4-rtn", group_size=32, embed=EMBED8)
    model = _open(out, SoroqConfig(precision=None))
    assert not any(isinstance(m, PanelLinear) for m in model.modules())
    assert torch.equal(_logits(model), _logits(load(out, precision=None)))


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_on_a_gpu_weights_lie_in_tiles_and_are_saved_as_they_were(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = EMBED8 if model_type == "gemma3_text" else None
    out = _quantized(tmp_path, model_type, "int4-rtn", group_size=32, embed=embed)
    # the plain twins of the GPU's kernels take the tiles on the CPU
    monkeypatch.setattr(soroq.hf, "runs_in_tiles", lambda device: True)
    model = _open(out)
    kinds = {type(module) for module in model.modules()}
    gemma = model_type == "gemma3_text"
    assert StackedPart in kinds and (TiledGeGLU in kinds) == (TiledEmbedding in kinds) == gemma
    torch.testing.assert_close(_logits(model), _logits(load(out)), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    monkeypatch.undo()
    assert torch.equal(_logits(_open(tmp_path / "again")), _logits(load(out)))


def test_on_a_gpu_norms_round_and_float8_is_saved_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _quantized(tmp_path, "gemma3_text", "fp8-rtn")
    monkeypatch.setattr(soroq.hf, "runs_in_tiles", lambda device: True)
    model = _open(out)
    assert {RoundedNorm, RoundedGLU, StackedPart} <= {type(module) for module in model.modules()}
    torch.testing.assert_close(_logits(model), _logits(load(out)), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    monkeypatch.undo()
    assert torch.equal(_logits(_open(tmp_path / "again")), _logits(load(out)))


def test_quant_method_soroq_needs_no_configuration(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "gemma3_text", "int4-rtn", group_size=32, embed=EMBED8)
    _open(out, SoroqConfig(write_as="soroq")).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "soroq"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(_logits(model), _logits(load(out)))
    assert torch.equal(_logits(load(tmp_path / "again")), _logits(load(out)))


def test_a_decoder_without_a_head_opens_too(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "gemma3_text", "int4-rtn", group_size=32, embed=EMBED8)
    model = AutoModel.from_pretrained(out, quantization_config=SoroqConfig(), dtype=torch.float32)
    with torch.no_grad():
        want = load(out).model(IDS).last_hidden_state
        assert torch.equal(model(IDS).last_hidden_state, want)


def _add_head(out: Path, module: str) -> None:
    """Quantize the head too, as other tools do, under the name `module`."""
    tensors = load_file(out / "model.safetensors")
    weight = quantize_rtn(tensors.pop("lm_head.weight").float(), QuantArgs(group_size=32))
    save_file(tensors | encode(module, weight), out / "model.safetensors", {"format": "pt"})


def test_a_quantized_head_of_its_own_stays_packed(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32, symmetric=True)
    _add_head(out, "lm_head")
    model = _open(out)
    assert isinstance(model.lm_head, PanelLinear | PackedLinear)
    assert torch.equal(_logits(model), _logits(load(out)))
    dense = _logits(load(out, packed=False))
    torch.testing.assert_close(_logits(model), dense, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(_logits(_open(tmp_path / "again")), _logits(load(out)))


def test_quantized_weights_outside_the_decoder_are_refused(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32, symmetric=True)
    _add_head(out, "vision_tower.fc1")
    with pytest.raises(CheckpointError, match="vision_tower.fc1: quantized, but not part of the"):
        _open(out)


@pytest.mark.parametrize("format_name", ["gptq", "awq"])
def test_other_formats_open_and_are_saved_as_compressed_tensors(
    format_name: str, tmp_path: Path
) -> None:
    symmetric = format_name == "gptq"
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32, symmetric=symmetric)
    bf16_to_f16(out)
    convert(out, tmp_path / "other", format_name)
    model = _open(tmp_path / "other")
    assert torch.equal(_logits(model), _logits(load(tmp_path / "other")))
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert torch.equal(_logits(load(tmp_path / "again")), _logits(model))


def bf16_to_f16(out: Path) -> None:
    """Round the scales to what float16 and bfloat16 both hold."""
    tensors = load_file(out / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = tensors[name].to(torch.float16).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def test_an_unquantized_model_is_refused_in_one_line(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    with pytest.raises(CheckpointError, match="not quantized.*run `soroq quantize") as error:
        _open(base)
    assert "\n" not in str(error.value)


def test_two_devices_are_refused(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32)
    with pytest.raises(SchemeError, match="several devices \\(cpu, meta\\)"):
        _open(out, device_map={"model": "cpu", "lm_head": "meta"})


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(CheckpointError, match="mlp.down_proj: shape \\(128, 128\\).*96"):
        _open(out)


def test_saving_is_refused_when_the_files_are_gone_or_others(tmp_path: Path) -> None:
    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32)
    model = _open(out)
    shutil.copy(out / "model.safetensors", tmp_path / "kept")
    (out / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has changed since .* open it again"):
        model.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "kept", out / "model.safetensors")
    with pytest.raises(CheckpointError, match="has changed since"):
        model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "int7"}, "'int7' is not exact"), ({"write_as": "gptq"}, "'gptq' is not soroq")],
    ids=["precision", "write-as"],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        SoroqConfig(**options)


def test_other_configurations_still_meet_transformers_own_check(tmp_path: Path) -> None:
    from transformers import GPTQConfig

    out = _quantized(tmp_path, "llama", "int4-rtn", group_size=32)
    with pytest.raises(ValueError, match="quantized with CompressedTensorsConfig"):
        AutoModelForCausalLM.from_pretrained(out, quantization_config=GPTQConfig(bits=4))
