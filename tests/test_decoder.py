"""The C++ decoder says what transformers says, however the tokens are handed over."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import soroq.decoder
from soroq.core.errors import CheckpointError
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.kernels import panels
from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize

pytestmark = pytest.mark.skipif(not panels.is_built(), reason="soroq._cpu is not built")

# Logits relative to their norm. Keys and values are kept in bfloat16 (8 bits), transformers' in
# float32; int8 rounds activations to 7 bits as well.
CLOSE = {"exact": 1.5e-2, "int16": 1.5e-2, "int8-coarse": 5e-2, "int8": 5e-2}
# One token at a time or many: sums in another order, which now and then tip a key or a value to the
# next bfloat16.
PIECES = 5e-3
IDS = torch.randint(4, 260, (70,), generator=torch.Generator().manual_seed(0))
TYPES = ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"]


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _quantized(directory: Path, model_type: str = "gemma3_text", scheme: str = "int4-rtn") -> Path:
    write_tiny_model(directory / "base", model_type)
    embed = QuantArgs(bits=8, group_size=32) if model_type == "gemma3_text" else None
    recipe = Recipe(get_scheme(scheme, group_size=32), embed=embed)
    quantize(directory / "base", directory / "out", recipe=recipe, calibration=None)
    return directory / "out"


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("quantized", [True, False])
def test_logits_equal_transformers(model_type: str, quantized: bool, tmp_path: Path) -> None:
    # 70 tokens: beyond Gemma's window of 16 here, and more than the blocks of any kernel
    out = _quantized(tmp_path, model_type)
    source = out if quantized else tmp_path / "base"
    with torch.no_grad():
        want = load(source, packed=False)(IDS[None]).logits[0]
    for precision in soroq.decoder.PRECISIONS:
        decoder = soroq.decoder.load(source, precision=precision, context=80)
        logits = decoder.prefill(IDS, all_logits=True)
        assert _error(logits, want) < CLOSE[precision]


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_tokens_may_come_in_any_pieces(model_type: str, tmp_path: Path) -> None:
    decoder = soroq.decoder.load(_quantized(tmp_path, model_type), precision="exact", context=80)
    whole = decoder.prefill(IDS, all_logits=True)
    for pieces in ([1] * 70, [2, 3, 4, 5, 6, 50], [69, 1]):
        decoder.rewind()
        rows = [decoder.prefill(part, all_logits=True) for part in IDS.split(pieces)]
        assert _error(torch.cat(rows), whole) < PIECES
    assert decoder.length == 70
    decoder.rewind(40)
    assert decoder.length == 40
    last = decoder.prefill(IDS[40:])
    assert _error(last, whole[-1]) < PIECES


def test_threads_change_no_bit(tmp_path: Path) -> None:
    from soroq import _cpu

    out = _quantized(tmp_path)
    before = _cpu.num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            _cpu.set_num_threads(n)
            decoder = soroq.decoder.load(out, context=80)
            prefill = decoder.prefill(IDS[:65], all_logits=True)
            steps = [decoder.prefill(token) for token in IDS[65:].split(1)]
            results.append(torch.cat([prefill, *(s[None] for s in steps)]))
    finally:
        _cpu.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_greedy_text_is_what_its_logits_say(tmp_path: Path) -> None:
    decoder = soroq.decoder.load(_quantized(tmp_path), context=80)
    tokens = list(decoder.generate(IDS[:8], max_new_tokens=12))
    assert len(tokens) == 12
    decoder.rewind()
    rows = decoder.prefill(torch.cat([IDS[:8], torch.tensor(tokens)]), all_logits=True)
    best, second = rows[7:-1].topk(2).values.unbind(1)
    for i, token in enumerate(tokens):  # one or many tokens at once: other last digits
        assert rows[7 + i].argmax() == token or float(best[i] - second[i]) < 2e-2
    decoder.rewind()
    stopped = list(decoder.generate(IDS[:8], max_new_tokens=12, stop=[tokens[4]]))
    assert stopped == tokens[: tokens.index(tokens[4])]


def test_best_are_the_likeliest_in_order(tmp_path: Path) -> None:
    decoder = soroq.decoder.load(_quantized(tmp_path), context=80)
    logits = decoder.prefill(IDS[:9])
    decoder.rewind()
    tokens, scores = decoder.best(IDS[:9], 20)
    want = logits.topk(20)
    assert tokens == want.indices.tolist()
    assert scores == want.values.tolist()


def test_drawn_text_is_decided_by_its_seed(tmp_path: Path) -> None:
    decoder = soroq.decoder.load(_quantized(tmp_path), context=80)
    texts = []
    for seed in (0, 0, 1):
        decoder.rewind()
        texts.append(list(decoder.generate(IDS[:4], max_new_tokens=20, temperature=1.0, seed=seed)))
    assert texts[0] == texts[1] != texts[2]


def test_the_context_is_never_overrun(tmp_path: Path) -> None:
    decoder = soroq.decoder.load(_quantized(tmp_path), context=16)
    assert len(list(decoder.generate(IDS[:10], max_new_tokens=100))) == 7  # the last isn't taken
    with pytest.raises(ValueError, match="70 tokens behind 16 don't fit a context of 16"):
        decoder.prefill(IDS)
    decoder.rewind()
    with pytest.raises(ValueError, match="token 300 is not in the vocabulary of 300"):
        decoder.prefill(torch.tensor([5, 300]))
    with pytest.raises(ValueError, match="0 tokens"):
        decoder.prefill(torch.tensor([], dtype=torch.int64))
    assert decoder.length == 0
    with pytest.raises(ValueError, match="k must be 0 to 64"):
        decoder.best(IDS[:3], 65)


def test_one_copy_serves_embedding_and_head(tmp_path: Path) -> None:
    out = _quantized(tmp_path)
    decoder = soroq.decoder.load(out)
    dense = soroq.decoder.load(tmp_path / "base")
    assert decoder.weight_bytes < dense.weight_bytes / 1.6
    file = (out / "model.safetensors").stat().st_size
    assert decoder.weight_bytes < 1.35 * file  # 300 and 32 rows fill panels of 64


@pytest.mark.parametrize("scheme", ["fp8-rtn"])
def test_what_it_cannot_run_is_one_line(scheme: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base")
    recipe = Recipe(get_scheme(scheme))
    quantize(tmp_path / "base", tmp_path / "out", recipe=recipe, calibration=None)
    with pytest.raises(CheckpointError, match=r"float8 weights have no CPU kernels; use soroq\."):
        soroq.decoder.load(tmp_path / "out")
    assert "float8" in soroq.decoder.objection(tmp_path / "out")
    assert soroq.decoder.objection(tmp_path / "base") == ""
    with pytest.raises(
        CheckpointError, match="precision 'int4' is not int8-coarse, int8, int16, exact"
    ):
        soroq.decoder.load(tmp_path / "base", precision="int4")


def test_models_in_panels_say_what_dequantized_ones_say(tmp_path: Path) -> None:
    out = _quantized(tmp_path)
    ids = IDS.view(2, 35)
    with torch.no_grad():
        want = load(out, packed=False)(ids).logits
        for precision, close in (("exact", 1e-5), ("int16", 1e-3), ("int8", 5e-2)):
            model = load(out, precision=precision)
            assert _error(model(ids).logits, want) < close
            assert model.lm_head.weight is model.model.embed_tokens.packed.weight


def test_generate_streams_from_the_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from soroq.commands import show

    out = str(_quantized(tmp_path))
    text = show.run_generate(out, "Душанбе", 8, 0.0, 0, True)
    assert capsys.readouterr().out.strip("\n") == text.strip("\n")
    monkeypatch.setattr(soroq.decoder, "objection", lambda source: "not here")
    assert show.run_generate(out, "Душанбе", 8, 0.0, 0, True) == text  # transformers says the same


def test_doctor_names_the_kernels_and_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    from soroq.commands.kernels import run_doctor

    run_doctor()
    told = capsys.readouterr().out
    assert soroq.decoder.isa() in told and "GB/s" in told and "GOP/s" in told


def test_generating_does_not_import_transformers(tmp_path: Path) -> None:
    # 160 MB, more than many models
    code = f"""
import sys
from soroq.cli import app
try:
    app(["generate", {str(_quantized(tmp_path))!r}, "-p", "Душанбе", "-n", "3"])
except SystemExit as stop:
    assert not stop.code
print("LOADED", [name for name in ("transformers", "accelerate") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
