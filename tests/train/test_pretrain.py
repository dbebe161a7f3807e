"""Whole pretraining runs of a tiny Gemma 3: what is learned, resumed, refused and left behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import soroq.train.loop as loop_module
from soroq.core.errors import CalibrationError, NumericsError, OutputError, SoroqError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import open_checkpoint
from soroq.loading import load, load_tokenizer
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize
from soroq.train.config import Config
from soroq.train.data import Data
from soroq.train.distributed import join_world
from soroq.train.metrics import read_metrics
from soroq.train.model import build_model
from soroq.train.packing import Packer, Stream
from soroq.train.pretrain import pretrain

# The same sums in another order; AdamW's first steps divide by their own size, so a weight whose
# gradient is near 0 may go elsewhere by a share of the learning rate, 1e-3 a step.
MEAN_DIFFERENCE = 1.5e-4
LOSSES = {"rel": 2e-4}


def _silent(done: int, total: int, what: str) -> None: ...


def _run(tiny: Any, config: Config, out: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    pretrain(config, out, tiny.tokenizer, resume=resume, listen=_silent)
    return load_file(out / "model.safetensors")


def _losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from soroq.loading import load_tokenizer
from soroq.train.config import load_config
from soroq.train.pretrain import pretrain
torch.set_num_threads(1)
def listen(done, total, what):
    if done == 5 and what.startswith("loss"):
        os.kill(os.getpid(), signal.SIGKILL)
config = load_config(Path(sys.argv[1]))
tokenizer = load_tokenizer(config.model.source)
pretrain(config, Path(sys.argv[2]), tokenizer, resume=False, listen=listen)
"""


def _toml(config: Config) -> str:
    """Return a configuration as TOML; its tables hold texts, numbers, lists and one mapping."""
    lines = []
    for table, values in config.to_json().items():
        lines.append(f"[{table}]")
        for key, value in values.items():
            if isinstance(value, dict):
                inner = ", ".join(f"{k} = {v}" for k, v in value.items())
                lines.append(f"{key} = {{ {inner} }}")
            else:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_equals_uninterrupted(tiny: Any, tmp_path: Path, optimizer: str) -> None:
    config = tiny.config(train={"optimizer": optimizer})
    wanted = _run(tiny, config, tmp_path / "whole")
    (tmp_path / "c.toml").write_text(_toml(config))
    script = [sys.executable, "-c", KILLED, str(tmp_path / "c.toml"), str(tmp_path / "killed")]
    done = subprocess.run(script, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with pytest.raises(OutputError, match="--resume"):
        _run(tiny, config, tmp_path / "killed")
    got = _run(tiny, config, tmp_path / "killed", resume=True)
    assert _equal(got, wanted)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    record = json.loads((tmp_path / "killed" / "soroq-train.json").read_text())
    assert record == json.loads((tmp_path / "whole" / "soroq-train.json").read_text())
    assert len(record["losses"]) == 6 and set(record["validation"]) == {"0", "3", "6"}


def test_result_is_a_checkpoint_that_learned(tiny: Any, tmp_path: Path) -> None:
    before = load_file(tiny.model / "model.safetensors")
    config = tiny.config(train={"steps": 12}, run={"tensorboard": True})
    after = _run(tiny, config, tmp_path / "out")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    assert not any(torch.equal(after[name], before[name]) for name in before)
    losses = _losses(tmp_path / "out")
    assert losses[-1] < losses[0] - 2
    record = json.loads((tmp_path / "out" / "soroq-train.json").read_text())
    for language in ("tg", "en"):
        assert record["validation"]["12"][language] < record["validation"]["0"][language] - 2
    events = list((tmp_path / "out" / "tensorboard").glob("events*"))
    assert events and events[0].stat().st_size > 500
    assert not (tmp_path / "out.partial").exists()
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
    ids = torch.tensor([tokenizer(tiny.tajik * 3)["input_ids"]])
    recipe = Recipe(get_scheme("int8-rtn", group_size=32), n_samples=1, seq_len=8)
    quantize(str(tmp_path / "out"), tmp_path / "q", recipe=recipe, calibration=None)
    with torch.no_grad():
        trained = load(tmp_path / "out")(ids, labels=ids).loss
        quantized = load(tmp_path / "q")(ids, labels=ids).loss
        original = load(tiny.model)(ids, labels=ids).loss
    assert trained < original - 2
    assert abs(quantized - trained) < 0.1


def test_validation_is_the_loss_of_each_language(tiny: Any, tmp_path: Path) -> None:
    """Before the first step it is what transformers itself says of the same text."""
    one = tiny.with_corpus(tmp_path / "corpus", {"tg": [tiny.tajik], "en": [tiny.english]})
    config = one.config(train={"steps": 1}, run={"validation": 1})
    _run(tiny, config, tmp_path / "out")
    first = next(line for line in read_metrics(tmp_path / "out") if "validation/tg" in line)
    model = load(tiny.model)
    for language, text in (("tg", tiny.tajik), ("en", tiny.english)):
        ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])[:, :48]
        with torch.no_grad():
            wanted = float(model(ids, labels=ids).loss)
        assert first[f"validation/{language}"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch": 4}, id="no-accumulation"),
        pytest.param({"micro_batch": 1}, id="one-at-a-time"),
        pytest.param({"activation_checkpointing": True}, id="activation-checkpointing"),
    ],
)
def test_how_a_batch_is_computed_does_not_change_what_is_learned(
    tiny: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    wanted = _run(tiny, tiny.config(), tmp_path / "wanted")
    got = _run(tiny, tiny.config(train=changes), tmp_path / "got")
    assert _losses(tmp_path / "got") == pytest.approx(_losses(tmp_path / "wanted"), **LOSSES)
    if "activation_checkpointing" in changes:
        assert _equal(got, wanted)
    for name, tensor in got.items():
        error = (tensor.float() - wanted[name].float()).abs()
        assert error.mean() < MEAN_DIFFERENCE, name


def test_bfloat16_learns_like_float32(tiny: Any, tmp_path: Path) -> None:
    _run(tiny, tiny.config(train={"compute": "bfloat16"}), tmp_path / "bf16")
    _run(tiny, tiny.config(), tmp_path / "f32")
    assert _losses(tmp_path / "bf16") == pytest.approx(_losses(tmp_path / "f32"), rel=0.02)


def test_a_loss_that_is_nan_stops_and_names_the_batch(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = loop_module.LossModel.forward, 0

    def poisoned(self: Any, *args: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        loss: torch.Tensor = forward(self, *args)
        return loss * float("nan") if torch.is_grad_enabled() and calls == 7 else loss

    wanted = _run(tiny, tiny.config(), tmp_path / "wanted")
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.LossModel, "forward", poisoned)
        with pytest.raises(NumericsError) as stopped:
            _run(tiny, tiny.config(), tmp_path / "out")
    message = str(stopped.value)
    assert message.startswith("step 4: the loss is not finite with sequences [")
    assert "tg, round" in message and "documents" in message
    assert "step-00000002" in message  # the last good checkpoint
    assert _equal(_run(tiny, tiny.config(), tmp_path / "out", resume=True), wanted)


def test_a_full_disk_leaves_the_checkpoint_before(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soroq.train.checkpoint as checkpoint_module

    wanted = _run(tiny, tiny.config(), tmp_path / "wanted")
    save, calls = torch.save, 0

    def full(value: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.torch, "save", full)
        with pytest.raises(SoroqError, match=r"No space left on device.*step-00000002"):
            _run(tiny, tiny.config(), tmp_path / "out")
    left = sorted(p.name for p in (tmp_path / "out.partial" / "checkpoints").iterdir())
    assert left == ["step-00000002"]
    assert _equal(_run(tiny, tiny.config(), tmp_path / "out", resume=True), wanted)


LIMITED = """
import resource, sys
from pathlib import Path
from soroq.train import checkpoint
import torch
run = Path(sys.argv[1])
learned = {"w": torch.ones(1000)}
checkpoint.save_checkpoint(run, 1, learned, {}, {"step": 1}, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoint.save_checkpoint(run, 2, {"w": torch.ones(100_000)}, {}, {"step": 2}, 2)
except Exception as error:
    print(type(error).__name__, error)
tensors, _, state = checkpoint.load_checkpoint(checkpoint.latest_checkpoint(run))
print(state["step"], float(tensors["w"].sum()))
"""


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The operating system itself refuses the write here."""
    script = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(script, check=True, capture_output=True, text=True)
    error, kept = done.stdout.splitlines()
    assert error.startswith("OutputError can't write") and "step-00000001" in error
    assert kept == "1 1000.0"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    ("changes", "knob"),
    [
        ({"train": {"micro_batch": 2}}, "train.micro_batch = 1 "),
        ({"train": {"micro_batch": 1}}, "train.activation_checkpointing = true"),
        (
            {"train": {"micro_batch": 1, "activation_checkpointing": True}},
            "model.lora_rank = 16",
        ),
    ],
    ids=["micro-batch", "activation-checkpointing", "lora"],
)
def test_too_little_memory_names_the_knob(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    knob: str,
) -> None:
    def greedy(self: Any, *args: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50)  # the allocator's own error

    monkeypatch.setattr(loop_module.LossModel, "forward", greedy)
    with pytest.raises(SoroqError) as stopped:
        _run(tiny, tiny.config(**changes), tmp_path / "out")
    assert f"out of memory; set {knob}" in str(stopped.value)


def test_a_run_is_resumed_with_its_own_configuration_only(tiny: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        pretrain(tiny.config(), tmp_path / "out", tiny.tokenizer, resume=False, listen=stop)
    other = tiny.config(train={"learning_rate": 2e-3})
    with pytest.raises(SoroqError, match=r"another train\.learning_rate \(0\.001\)"):
        _run(tiny, other, tmp_path / "out", resume=True)
    _run(tiny, tiny.config(run={"keep": 5}), tmp_path / "out", resume=True)


def test_another_tokenizer_is_refused(tiny: Any, tmp_path: Path) -> None:
    card = json.loads((tiny.corpus / "corpus.json").read_text())
    (tmp_path / "corpus.json").write_text(json.dumps(card | {"tokenizer_sha256": "0" * 64}))
    config = tiny.config(data={"corpus": str(tmp_path)})
    with pytest.raises(CalibrationError, match="made with another tokenizer"):
        _run(tiny, config, tmp_path / "out")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param({"tg": ["{en}"] * 4, "en": ["{en}"]}, "mostly in en", id="english"),
        pytest.param(
            {"tg": ["Это не на таджикском языке, но и он был для них как из них."], "en": []},
            "mostly in ru",
            id="russian",
        ),
        pytest.param({"tg": ["{tg}"], "en": []}, "no train text in 'en'", id="empty"),
        pytest.param({"en": ["{en}"]}, "no train text in 'tg'; there is en", id="missing"),
    ],
)
def test_text_that_is_not_what_it_says_is_refused(
    tiny: Any, tmp_path: Path, texts: dict[str, list[str]], message: str
) -> None:
    written = {
        language: [text.format(tg=tiny.tajik, en=tiny.english) for text in documents]
        for language, documents in texts.items()
    }
    config = tiny.with_corpus(tmp_path / "corpus", written).config()
    with pytest.raises(CalibrationError, match=message):
        _run(tiny, config, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_llama_with_its_own_head_is_trained_too(tiny: Any, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "llama", "llama", tie_word_embeddings=False)
    config = tiny.config(model={"source": str(model)})
    after = _run(tiny, config, tmp_path / "out")
    before = load_file(model / "model.safetensors")
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    losses = _losses(tmp_path / "out")
    assert losses[-1] < losses[0] - 0.5


def test_mfu_counts_what_attention_really_sees(tiny: Any, tmp_path: Path) -> None:
    """Pairs of tokens are counted one by one in each block's mask."""
    model = loop_module.LossModel(
        build_model(open_checkpoint(tiny.model), torch.float32), torch.float32
    )
    stream = Stream([torch.arange(2, 32), torch.arange(2, 42)], 70, 0)
    packed = stream.next()
    data = Data(Packer({"tg": stream}, {"tg": 1.0}), {}, {})
    trainer = loop_module.Trainer(tiny.config(), model, data, tmp_path, join_world())
    pairs, window = 0, 16
    for kind in model.config.layer_types:
        for length in (30, 40):
            for query in range(length):
                first = max(0, query - window + 1) if kind == "sliding_attention" else 0
                pairs += query - first + 1
    linears = 3 * (64 * 128 * 2 + 64 * 64 * 2 + 64 * 128 * 3)
    head = 300 * 64
    forward = 2 * (linears + head) + 4 * 4 * 32 * pairs / 70
    assert trainer._flops([packed]) == pytest.approx(3 * forward)


def test_a_tied_head_that_is_stored_too_is_the_trained_one(tiny: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny.model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors")
    after = _run(tiny, tiny.config(model={"source": str(model)}), tmp_path / "out")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], tensors["lm_head.weight"])
