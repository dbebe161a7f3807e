"""Whole runs of quantization-aware training on a tiny Gemma 3: what it gains, keeps and refuses."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.errors import CheckpointError, OutputError, SchemeError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import open_stored
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.manifest import read_manifest
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize
from soroq.train.config import Config
from soroq.train.model import build_model
from soroq.train.qat import qat
from soroq.train.student import build_student, candidate_tokens

RATES = {"scale_rate": 2e-3, "norm_rate": 2e-3}


def _silent(done: int, total: int, what: str) -> None: ...


@pytest.fixture(scope="module")
def start(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in int4 by plain rounding, groups of 32 with zero points."""
    out = tmp_path_factory.mktemp("start") / "int4"
    recipe = Recipe(get_scheme("int4-rtn", group_size=32))
    quantize(str(tiny.model), out, recipe=recipe, calibration=None)
    return out


def _config(tiny: Any, start: Path, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "qat": {"start": str(start), **RATES},
        "train": {"steps": 12, "learning_rate": 0.02, "warmup": 0.2},
        "run": {"validate_every": 6, "checkpoint_every": 4},
    }
    for table, values in changes.items():
        given[table] = given.get(table, {}) | values
    config: Config = tiny.config(**given)
    return config


def _run(tiny: Any, config: Config, out: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    qat(config, out, tiny.tokenizer, resume=resume, listen=_silent)
    return load_file(out / "model.safetensors")


def _divergence(original: Any, other: Any, ids: torch.Tensor) -> float:
    """Return the mean KL in float64 over the whole vocabulary."""
    with torch.no_grad():
        p = original(ids).logits.double().log_softmax(-1)
        q = other(ids).logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_trained_model_is_closer_to_its_original_in_the_same_bits(
    tiny: Any, start: Path, tmp_path: Path
) -> None:
    before = load_file(start / "model.safetensors")
    after = _run(tiny, _config(tiny, start), tmp_path / "out")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    fixed = ("weight_zero_point", "weight_shape", "embed_tokens.weight")
    assert all(torch.equal(before[n], after[n]) for n in before if n.endswith(fixed))
    for kind in ("weight_packed", "weight_scale", "layernorm.weight"):
        names = [n for n in before if n.endswith(kind)]
        assert not all(torch.equal(before[n], after[n]) for n in names), kind
    record = json.loads((tmp_path / "out" / "soroq-train.json").read_text())
    first, last = record["validation"]["0"], record["validation"]["12"]
    assert all(last[language] < 0.9 * first[language] for language in ("tg", "en"))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.trained is not None
    assert 0 < manifest.trained["codes_changed"] < manifest.trained["codes"] // 2
    assert manifest.trained["kl_after"] == last
    assert "trained since | 12 steps" in (tmp_path / "out" / "README.md").read_text()

    ids = torch.tensor([tiny.tokenizer(tiny.tajik * 3)["input_ids"]])[:, :48]
    original = load(tiny.model)
    gained = _divergence(original, load(tmp_path / "out", packed=False), ids)
    assert gained < 0.95 * _divergence(original, load(start, packed=False), ids)


def test_an_ordered_start_is_trained_towards_the_ordered_original(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = replace(get_scheme("int4-rtn", group_size=32), reordered=True)
    quantize(str(tiny.model), tmp_path / "start", recipe=Recipe(scheme), calibration=None)
    seen: list[Any] = []

    def keep(start: Any, original: Any) -> Any:
        seen.append(original)
        return build_student(start, original)

    monkeypatch.setattr("soroq.train.qat.build_student", keep)
    _run(tiny, _config(tiny, tmp_path / "start", train={"steps": 1}), tmp_path / "out")
    name = "model.layers.0.mlp.down_proj"
    rounded = StoredWeights(open_stored(tmp_path / "start")).load_quantized(name)[0]
    distance = (seen[0].load(f"{name}.weight").float() - rounded.dequantize()).abs()
    step = rounded.scales.float().repeat_interleave(32, 1)
    assert float((distance / step).max()) < 1
    made = read_manifest(tmp_path / "out")
    assert made is not None and made.reordered is not None
    (tmp_path / "start" / "soroq.json").unlink()
    with pytest.raises(CheckpointError, match=r"another order and soroq\.json"):
        _run(tiny, _config(tiny, tmp_path / "start", train={"steps": 1}), tmp_path / "again")


def test_what_validation_says_is_the_divergence_of_the_checkpoint(
    tiny: Any, start: Path, tmp_path: Path
) -> None:
    """One document of one sequence, all of whose next tokens count: the checker's KL of it."""
    one = tiny.with_corpus(tmp_path / "corpus", {"tg": [tiny.tajik], "en": [tiny.english]})
    config = _config(one, start, train={"steps": 2}, run={"validation": 1, "validate_every": 2})
    _run(one, config, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "soroq-train.json").read_text())
    original = load(tiny.model)
    for step, path in (("0", start), ("2", tmp_path / "out")):
        ids = torch.tensor([tiny.tokenizer(tiny.tajik)["input_ids"]])[:, :48]
        with torch.no_grad():
            hidden = load(path, packed=False)(ids, output_hidden_states=True)
            wanted = original(ids)
        kept = candidates(one, config)
        p = wanted.logits[0, :-1, kept].double().log_softmax(-1)
        q = hidden.logits[0, :-1, kept].double().log_softmax(-1)
        kl = float((p.exp() * (p - q)).sum(-1).mean())
        # norms are rounded to bfloat16 when they are stored
        assert record["validation"][step]["tg"] == pytest.approx(
            kl, rel=1e-4 if step == "0" else 0.02
        )


def candidates(tiny: Any, config: Config) -> torch.Tensor:
    """Return the tokens that the run's divergence is over."""
    from soroq.io.checkpoint import open_checkpoint
    from soroq.train.data import read_pretraining_data
    from soroq.train.qat import lookahead

    teacher = build_model(open_checkpoint(tiny.model), torch.float32).eval()
    sequences = lookahead(config, read_pretraining_data(config, tiny.tokenizer))
    assert sequences is not None
    return candidate_tokens(teacher, sequences, torch.float32, torch.device("cpu"))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from soroq.loading import load_tokenizer
from soroq.train.config import load_config
from soroq.train.qat import qat
torch.set_num_threads(1)
def listen(done, total, what):
    if done == 7 and what.startswith("loss"):
        os.kill(os.getpid(), signal.SIGKILL)
config = load_config(Path(sys.argv[1]))
qat(config, Path(sys.argv[2]), load_tokenizer(config.model.source), resume=False, listen=listen)
"""


def test_killed_and_resumed_equals_uninterrupted(tiny: Any, start: Path, tmp_path: Path) -> None:
    from tests.train.test_pretrain import _toml

    config = _config(tiny, start)
    wanted = _run(tiny, config, tmp_path / "whole")
    (tmp_path / "c.toml").write_text(_toml(config))
    script = [sys.executable, "-c", KILLED, str(tmp_path / "c.toml"), str(tmp_path / "killed")]
    done = subprocess.run(script, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(OutputError, match="--resume"):
        _run(tiny, config, tmp_path / "killed")
    other = _config(tiny, start, qat={"scale_rate": 1e-4})
    with pytest.raises(SchemeError, match=r"another qat.scale_rate"):
        _run(tiny, other, tmp_path / "killed", resume=True)
    got = _run(tiny, config, tmp_path / "killed", resume=True)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_folded_and_gptq_starts_keep_their_format(tiny: Any, tmp_path: Path) -> None:
    ids = torch.randint(3, 250, (4, 48), generator=torch.Generator().manual_seed(0))
    manifest = {"name": "random", "n": 4, "seq_len": 48, "sha256": ids_sha256(ids)}
    calibration = CalibrationSet(ids, ("tg",) * 4, manifest)
    recipe = Recipe(get_scheme("int4-awq", group_size=32), n_samples=4, seq_len=48)
    quantize(str(tiny.model), tmp_path / "awq", recipe=recipe, calibration=calibration)
    from soroq.pipeline.convert import convert

    convert(str(tmp_path / "awq"), tmp_path / "gptq", "gptq", listen=_silent)
    config = _config(tiny, tmp_path / "gptq", train={"steps": 2})
    _run(tiny, config, tmp_path / "out")
    stored = StoredWeights(open_stored(tmp_path / "out"))
    assert stored.format.name == "gptq" and len(stored.quantized) == 21


def test_what_cannot_be_trained_is_refused(tiny: Any, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SchemeError, match="qat.start is missing"):
        _run(tiny, tiny.config(), out)
    with pytest.raises(CheckpointError, match="is not quantized"):
        _run(tiny, _config(tiny, tiny.model), out)
    with pytest.raises(SchemeError, match="lora_rank"):
        _run(tiny, _config(tiny, start, model={"lora_rank": 4}), out)
    other = write_tiny_model(tmp_path / "other", intermediate_size=96)
    with pytest.raises(CheckpointError, match=r"config.json differs"):
        build_student(open_stored(start), open_stored(other))
    hqq = open_stored(Path(__file__).parents[1] / "io" / "golden" / "hqq")
    with pytest.raises(SchemeError, match="integer zero points or none"):
        build_student(hqq, hqq)
    recipe = Recipe(get_scheme("fp8-rtn"))
    quantize(str(tiny.model), tmp_path / "fp8", recipe=recipe, calibration=None)
    with pytest.raises(SchemeError, match="qat trains int4 and int8"):
        _run(tiny, _config(tiny, tmp_path / "fp8"), out)
    assert not out.exists()
