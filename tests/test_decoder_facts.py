"""What config.json says of a decoder is what transformers' modules hold."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from soroq.decoder_facts import facts_of_config, facts_of_modules
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import ARCHITECTURES
from soroq.models.tiny import tiny_config

ROTARY = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}


def _layout(model_type: str, **changes: Any) -> DecoderLayout:
    return DecoderLayout(ARCHITECTURES[model_type], tiny_config(model_type, **changes), "model.")


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2", "qwen3"])
def test_config_says_what_the_modules_hold(model_type: str) -> None:
    changes = {} if model_type == "gemma3_text" else ROTARY | {"hidden_act": "silu"}
    layout = _layout(model_type, **changes)
    of_config, of_modules = facts_of_config(layout, 600), facts_of_modules(layout, 600)
    assert of_config is not None
    for field in fields(of_modules):
        if field.name not in ("tables", "rotary"):
            assert getattr(of_config, field.name) == getattr(of_modules, field.name), field.name
    for block in range(layout.n_blocks):
        pairs = [facts.tables[facts.rotary[block]] for facts in (of_config, of_modules)]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*pairs, strict=True))


def test_names_of_before_transformers_5() -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
    layout = _layout("gemma3_text")
    config = {k: v for k, v in layout.text_config.items() if k != "rope_parameters"} | old
    facts = facts_of_config(DecoderLayout(layout.architecture, config, "model."), 40)
    new = facts_of_config(layout, 40)
    assert facts is not None and new is not None
    for mine, theirs in zip(facts.tables, new.tables, strict=True):
        assert torch.equal(mine[0], theirs[0])


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3_text", {"head_dim": None}),
        ("llama", {"hidden_act": "silu"}),  # no rotary parameters
        ("llama", {"hidden_act": "silu", "rope_theta": 1e4, "rope_scaling": {"rope_type": "x"}}),
        ("qwen3", ROTARY | {"hidden_act": "silu", "use_sliding_window": True}),
        ("mistral", ROTARY | {"hidden_act": "silu"}),
    ],
)
def test_what_config_leaves_open_is_left_to_transformers(
    model_type: str, changes: dict[str, Any]
) -> None:
    assert facts_of_config(_layout(model_type, **changes), 8) is None


def test_refusals() -> None:
    facts = facts_of_config(_layout("gemma3_text", final_logit_softcapping=30.0), 8)
    assert facts is not None and facts.refused == ("logits are capped",)
    layout = _layout("gemma3_text")
    layout.text_config["hidden_activation"] = "relu"
    facts = facts_of_config(layout, 8)
    assert facts is not None and facts.activation is None
