"""Channels in order: the same function, like sizes side by side, nothing outside touched."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from soroq import cli
from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.errors import CheckpointError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.stored import StoredWeights
from soroq.manifest import read_manifest
from soroq.models.registry import find_layout
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.order import ReorderedCheckpoint, find_order, ordered_like, reordered
from soroq.pipeline.run import quantize

# groups smaller than a head, so that heads are ordered too; hidden size and inner size differ
RECIPE = Recipe(get_scheme("int4", group_size=32), n_samples=4, seq_len=48)
SHAPE = {"head_dim": 64}


def _ordered(base: Path, recipe: Recipe = RECIPE) -> tuple[Checkpoint, ReorderedCheckpoint]:
    checkpoint = open_checkpoint(base)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    found = reordered(checkpoint, layout, recipe)
    assert isinstance(found, ReorderedCheckpoint)
    return checkpoint, found


def _write(checkpoint: Checkpoint, base: Path, out: Path) -> Path:
    out.mkdir()
    tensors = {name: checkpoint.load(name).contiguous() for name in checkpoint.names()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    return out


def _logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    ids = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3_text", {}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_the_function_is_the_same(
    model_type: str, changes: dict[str, bool], tmp_path: Path
) -> None:
    base = write_tiny_model(tmp_path / "base", model_type, **SHAPE, **changes)
    original, ordered = _ordered(base)
    moved = {
        name
        for name in original.names()
        if not torch.equal(ordered.load(name), original.load(name))
    }
    aside = {name for name in original.names() if "q_norm" in name or "k_norm" in name}
    aside |= {name for name in original.names() if name.endswith(("q_proj.bias", "k_proj.bias"))}
    assert moved == set(original.names()) - aside
    out = _write(ordered, base, tmp_path / "out")
    logits = _logits(base)
    # transformers' norms compute in float32
    assert (_logits(out) - logits).abs().max() < 2e-5 * logits.abs().max()


def test_channels_are_sorted_by_what_reads_them(tmp_path: Path) -> None:
    _, ordered = _ordered(write_tiny_model(tmp_path / "base", **SHAPE))
    down = ordered.load("model.layers.1.mlp.down_proj.weight").double().square().mean(0)
    assert (down.diff() >= 0).all()
    # 4 query heads share 2 heads of values: what sorts is the mean of two logarithms
    o_proj = ordered.load("model.layers.1.self_attn.o_proj.weight").double().square().sum(0)
    within = o_proj.log().view(2, 2, 64).mean(1)
    assert (within.diff(dim=1) >= -1e-12).all()
    readers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    readers += ("mlp.gate_proj", "mlp.up_proj")
    stream = torch.zeros(64, dtype=torch.float64)
    for index in range(3):
        for path in readers:
            square = ordered.load(f"model.layers.{index}.{path}.weight").double().square().sum(0)
            stream += (square / square.mean()).log()
    assert (stream.diff() >= -1e-12).all()


def test_rows_are_those_of_the_whole_matrix(tmp_path: Path) -> None:
    _, ordered = _ordered(write_tiny_model(tmp_path / "base", **SHAPE))
    rows = torch.tensor([7, 3, 3, 100])
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(ordered.load_rows(name, rows), ordered.load(name)[rows])


def test_only_what_is_quantized_in_groups_has_a_say(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    left = ("*layers.0.*:skip", "*layers.1.mlp.down_proj:fp8-rtn")
    recipe = Recipe(RECIPE.scheme, overrides=tuple(parse_override(text) for text in left))
    _, ordered = _ordered(base, recipe)
    assert "model.layers.0.mlp.down_proj.weight" not in ordered.order.columns
    assert "model.layers.1.mlp.down_proj.weight" not in ordered.order.columns
    assert "model.layers.2.mlp.down_proj.weight" in ordered.order.columns
    whole = Recipe(get_scheme("int4", group_size=None))
    checkpoint = open_checkpoint(base)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    assert reordered(checkpoint, layout, whole) is checkpoint


def test_heads_no_wider_than_a_group_stay(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", head_dim=32)
    _, ordered = _ordered(base)
    assert "model.layers.0.self_attn.v_proj.weight" not in ordered.order.rows


def test_what_else_writes_into_the_stream_keeps_it(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    tensors = load_file(base / "model.safetensors")
    tensors["vision_tower.patch.weight"] = torch.ones(4, 4)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    original, ordered = _ordered(base)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "vision_tower.patch.weight"):
        assert torch.equal(ordered.load(name), original.load(name))
    assert "model.layers.0.mlp.down_proj.weight" in ordered.order.columns


def test_a_run_is_of_the_ordered_model_and_its_original_is_found_again(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    ids = torch.randint(4, 260, (4, 48))
    manifest = {"name": "t", "n": 4, "seq_len": 48, "sha256": ids_sha256(ids)}
    calibration = CalibrationSet(ids, ("tg",) * 4, manifest)
    made = quantize(base, tmp_path / "out", recipe=RECIPE, calibration=calibration)
    original, ordered = _ordered(base)
    assert made.reordered == ordered.order.sha256()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(stored[name], ordered.load(name))
    # codes of the ordered weights: much nearer to them than to the original's
    path = "model.layers.1.mlp.down_proj"
    weight = StoredWeights(open_checkpoint(tmp_path / "out")).load_quantized(path)[0].dequantize()
    near = (weight - ordered.load(f"{path}.weight").float()).norm()
    assert near < 0.3 * (weight - original.load(f"{path}.weight").float()).norm()

    layout = find_layout(original.config, set(original.names()))
    again = ordered_like(original, layout, read_manifest(tmp_path / "out"))
    assert torch.equal(again.load(f"{path}.weight"), ordered.load(f"{path}.weight"))
    assert ordered_like(original, layout, None) is original
    other = open_checkpoint(write_tiny_model(tmp_path / "other", seed=1, **SHAPE))
    with pytest.raises(CheckpointError, match="give the checkpoint that was quantized"):
        ordered_like(other, layout, read_manifest(tmp_path / "out"))


def test_the_flags_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    words = ["quantize", str(base), "--scheme", "int4-rtn", "--group-size", "32"]
    for flag in ("--reorder", "--no-reorder"):
        out = tmp_path / flag
        monkeypatch.setattr("sys.argv", ["soroq", *words, flag, "-o", str(out)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        manifest = read_manifest(out)
        assert manifest is not None and (manifest.reordered is not None) == (flag == "--reorder")


def test_equal_sizes_keep_their_order(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if name.endswith("down_proj.weight"):
            tensors[name] = torch.ones_like(tensors[name])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(base)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    order = find_order(checkpoint, layout, RECIPE)
    inner = order.columns["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(inner, torch.arange(128))


def test_heads_are_as_wide_as_transformers_takes_them_to_be(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", head_dim=256, hidden_size=256)
    config = json.loads((base / "config.json").read_text())
    del config["head_dim"]  # 256 / 4 heads would divide too
    (base / "config.json").write_text(json.dumps(config))
    _, ordered = _ordered(base)
    logits = _logits(base)
    out = _write(ordered, base, tmp_path / "out")
    assert (_logits(out) - logits).abs().max() < 2e-5 * logits.abs().max()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mlp.gate_proj", (96, 64)), ("mlp.gate_proj", (128, 32)), ("self_attn.v_proj", (96, 64))],
)
def test_matrices_that_dont_fit_are_one_clear_error(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    base = write_tiny_model(tmp_path / "base", **SHAPE)
    tensors = load_file(base / "model.safetensors")
    tensors[f"model.layers.1.{name}.weight"] = torch.ones(shape, dtype=torch.bfloat16)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit config.json"):
        _ordered(base)
