"""soroq convert: every scheme in every format, equal or refused; and what readers make of it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from soroq import cli
from soroq.core.errors import CheckpointError, SoroqError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import open_checkpoint
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import FORMATS
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.convert import convert
from soroq.pipeline.run import quantize

SCHEMES = {
    "int4-asym": ("int4-rtn", 32, False),
    "int4-sym": ("int4-rtn", 32, True),
    "int4-row": ("int4-rtn", None, True),
    "int8": ("int8-rtn", 32, True),
    "fp8": ("fp8-rtn", "", None),
}
REFUSED = {
    ("int8", "awq"): "AWQ holds 4-bit",
    ("fp8", "awq"): "not float8",
    ("int8", "awq-gemv"): "AWQ holds 4-bit",
    ("fp8", "awq-gemv"): "not float8",
    ("fp8", "gptq"): "not float8",
    ("fp8", "gptq-v2"): "not float8",
    ("fp8", "hqq"): "not float8",
    ("fp8", "mlx"): "not float8",
    ("int4-row", "mlx"): "groups of 32, 64 or 128, not of the row",
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("convert")
    base = write_tiny_model(root / "base", "llama", num_hidden_layers=1)
    for name, (scheme, group, symmetric) in SCHEMES.items():
        made = get_scheme(scheme, group_size=group, symmetric=symmetric)
        quantize(base, root / name, recipe=Recipe(made), calibration=None)
    return {name: root / name for name in ("base", *SCHEMES)}


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_equal_in_every_format_or_refused(
    quantized: dict[str, Path], scheme: str, name: str, tmp_path: Path
) -> None:
    source, out = quantized[scheme], tmp_path / "out"
    if (scheme, name) in REFUSED:
        with pytest.raises(FormatError, match=REFUSED[scheme, name]):
            convert(source, out, name)
        assert not list(tmp_path.iterdir())
        return
    convert(source, out, name)
    before, after = (StoredWeights(open_checkpoint(path)) for path in (source, out))
    assert after.format.name == name
    assert after.quantized == before.quantized
    for module in before.quantized:
        old, new = (s.load_quantized(module)[0] for s in (before, after))
        assert torch.equal(new.dequantize(), old.dequantize())
        if old.args.dtype == "int":
            words = after.open(module).rows(3, 9)[0]
            assert torch.equal(words, before.open(module).rows(3, 9)[0])
    ids = torch.arange(10, 30)[None]
    assert torch.equal(load(out, packed=False)(ids).logits, load(source, packed=False)(ids).logits)
    assert torch.equal(load(out)(ids).logits, load(source)(ids).logits)
    (step,) = json.loads((out / "soroq.json").read_text())["converted"]
    assert step["from"] == "compressed-tensors"
    assert step["to"] == name
    assert step["source_sha256"] == open_checkpoint(source).sha256()


@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq", "awq-gemv", "hqq", "mlx"])
def test_there_and_back_gives_the_same_tensors(
    quantized: dict[str, Path], name: str, tmp_path: Path
) -> None:
    convert(quantized["int4-asym"], tmp_path / "there", name)
    convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    first, last = open_checkpoint(quantized["int4-asym"]), open_checkpoint(tmp_path / "back")
    assert first.names() == last.names()
    for tensor in first.names():
        assert torch.equal(first.load(tensor).double(), last.load(tensor).double())


def test_dense_and_unknown_and_full_places_are_refused(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not quantized"):
        convert(quantized["base"], tmp_path / "a", "gptq")
    with pytest.raises(SoroqError, match="unknown format"):
        convert(quantized["int4-sym"], tmp_path / "a", "gguff")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(SoroqError, match="not empty"):
        convert(quantized["int4-sym"], tmp_path / "full", "gptq")


@pytest.mark.skipif(
    not (importlib.util.find_spec("gptqmodel") and importlib.util.find_spec("optimum")),
    reason="gptqmodel and optimum are not installed",
)
@pytest.mark.parametrize("scheme", ["int4-sym", "int4-asym"])
@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq"])
def test_transformers_through_gptqmodel_gives_the_same_logits(
    quantized: dict[str, Path], scheme: str, name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    convert(quantized[scheme], tmp_path / "out", name)
    ids = torch.arange(10, 40)[None]
    ours = load(tmp_path / "out", packed=False)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, device_map="cpu"
    )
    assert any("Aten" in type(m).__name__ or "Torch" in type(m).__name__ for m in model.modules())
    quantized_there = [n for n, m in model.named_modules() if hasattr(m, "qweight")]
    assert len(quantized_there) == 7 * model.config.num_hidden_layers
    for module in quantized_there:  # gptqmodel multiplies codes by scales in the scales' float16
        weight = ours.get_submodule(module).weight
        weight.data = weight.data.half().float()
    expected, theirs = ours(ids).logits, model(ids).logits
    assert float((theirs - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize("scheme", ["int4-sym", "int4-asym"])
def test_only_asymmetric_weights_change_in_float16(quantized: dict[str, Path], scheme: str) -> None:
    """Why readers that dequantize in float16 (gptqmodel) differ from soroq: 12 bits there, of 11.

    A bfloat16 scale has 8 bits; codes are −8 … 7, code − zero point is −15 … 15.
    """
    model = load(quantized[scheme], packed=False)
    weights = [m.weight for n, m in model.named_modules() if n.endswith("_proj")]
    changed = 0
    for weight in weights:
        half = weight.half().float()
        changed += int((half != weight).sum())
        assert bool(((half - weight).abs() <= weight.abs() * 2.0**-11).all())
    assert (changed == 0) == (scheme == "int4-sym")


def _soroq(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["soroq", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_quantize_writes_another_format_at_once(
    quantized: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["quantize", str(quantized["base"]), "--scheme", "int4-rtn", "--group-size", "32"]
    assert _soroq(monkeypatch, *words, "-o", str(tmp_path / "awq"), "--format", "awq") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["awq"]  # nothing is left beside it
    convert(quantized["int4-asym"], tmp_path / "wanted", "awq")
    made, wanted = (open_checkpoint(tmp_path / name) for name in ("awq", "wanted"))
    assert made.config["quantization_config"] == wanted.config["quantization_config"]
    assert sorted(made.names()) == sorted(wanted.names())
    assert all(torch.equal(made.load(name), wanted.load(name)) for name in wanted.names())

    capsys.readouterr()
    float8 = ["quantize", str(quantized["base"]), "--scheme", "fp8-rtn", "--format", "gptq"]
    assert _soroq(monkeypatch, *float8, "-o", str(tmp_path / "no")) == 2
    assert "fp8-rtn can't be gptq" in capsys.readouterr().err
    mixed = [*words, "--override", "*down_proj:int8-rtn", "--format", "gptq"]
    assert _soroq(monkeypatch, *mixed, "-o", str(tmp_path / "no")) == 2
    assert "one set of numbers" in capsys.readouterr().err
    assert not (tmp_path / "no").exists() and not (tmp_path / "no.soroq").exists()


def test_quantize_goes_on_with_the_conversion(
    quantized: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(quantized["int4-asym"], tmp_path / "out.soroq")  # as left by a killed run
    words = ["quantize", str(quantized["base"]), "--scheme", "int4-rtn", "--group-size", "32"]
    assert (
        _soroq(monkeypatch, *words, "-o", str(tmp_path / "out"), "--format", "gptq", "--resume")
        == 0
    )
    assert StoredWeights(open_checkpoint(tmp_path / "out")).format.name == "gptq"
    assert not (tmp_path / "out.soroq").exists()
