"""Adapters: only they learn, the merged weights are what peft itself runs, a kill loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soroq.core.errors import SchemeError
from soroq.loading import load
from soroq.train.metrics import read_metrics
from soroq.train.pretrain import pretrain

# Merged weights are rounded to the checkpoint's bfloat16: 8 bits, over three blocks.
MERGED = {"rtol": 0.0, "atol": 0.15}
LORA = {"lora_rank": 4, "lora_alpha": 8}


def _run(tiny: Any, config: Any, out: Path, resume: bool = False) -> list[float]:
    pretrain(config, out, tiny.tokenizer, resume=resume, listen=lambda *_: None)
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def test_merged_weights_are_the_adapter_that_lies_beside_them(tiny: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    config = tiny.config(
        model=LORA | {"lora_targets": ["q_proj", "down_proj"]},
        train={"steps": 12, "learning_rate": 1e-2},
    )
    losses = _run(tiny, config, tmp_path / "out")
    assert losses[-1] < losses[0] - 0.5
    before = load_file(tiny.model / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "q_proj" in n or "down_proj" in n}
    ids = torch.tensor([tiny.tokenizer(tiny.tajik)["input_ids"]])
    adapted = PeftModel.from_pretrained(load(tiny.model), tmp_path / "out" / "adapter")
    with torch.no_grad():
        wanted, original = adapted(ids).logits, load(tiny.model)(ids).logits
        got = load(tmp_path / "out")(ids).logits
    torch.testing.assert_close(got, wanted, **MERGED)
    assert (original - wanted).abs().max() > 10 * MERGED["atol"]
    record = json.loads((tmp_path / "out" / "soroq-train.json").read_text())
    assert record["learned_parameters"] == 4 * 3 * ((64 + 128) + (128 + 64))


def test_a_stopped_run_goes_on_with_the_same_adapters(tiny: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise Stop

    config = tiny.config(model=LORA)
    wanted = _run(tiny, config, tmp_path / "whole")
    with pytest.raises(Stop):
        pretrain(config, tmp_path / "out", tiny.tokenizer, resume=False, listen=stop)
    folder = tmp_path / "out.partial" / "checkpoints" / "step-00000004"
    names = load_file(folder / "learned.safetensors").keys()
    assert names and all("lora_" in name for name in names)
    assert _run(tiny, config, tmp_path / "out", resume=True) == wanted
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_bfloat16_adapters_learn_like_float32(tiny: Any, tmp_path: Path) -> None:
    one = _run(tiny, tiny.config(model=LORA, train={"compute": "bfloat16"}), tmp_path / "a")
    other = _run(tiny, tiny.config(model=LORA), tmp_path / "b")
    assert one == pytest.approx(other, rel=0.02)


def test_activation_checkpointing_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    config = tiny.config(model=LORA, train={"activation_checkpointing": True})
    wanted = _run(tiny, tiny.config(model=LORA), tmp_path / "a")
    assert _run(tiny, config, tmp_path / "b") == wanted


def test_an_unknown_target_names_the_nearest(tiny: Any, tmp_path: Path) -> None:
    config = tiny.config(model=LORA | {"lora_targets": ["qproj"]})
    with pytest.raises(SchemeError, match="'qproj' is no linear of the model; did you mean 'q_pro"):
        _run(tiny, config, tmp_path / "out")
