"""Blocks run one by one give what the whole transformers model gives."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from soroq.core.errors import CheckpointError
from soroq.models.registry import find_layout
from soroq.models.runner import DecoderRunner
from soroq.models.tiny import ARCHITECTURE_NAMES, tiny_config, write_tiny_model


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURE_NAMES))
def test_block_by_block_equals_the_whole_model(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path, model_type)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(4, 260, (2, 40))
    with torch.no_grad():
        want = model.model(ids, output_hidden_states=True).hidden_states
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        layout = find_layout(tiny_config(model_type), names)
        runner = DecoderRunner(layout)
        x = runner.embed(ids, file.get_tensor(layout.embedding)[ids.flatten()])
        for index in range(layout.n_blocks):
            torch.testing.assert_close(x, want[index], rtol=1e-5, atol=1e-5)
            prefix = layout.block(index) + "."
            tensors = {n[len(prefix) :]: file.get_tensor(n) for n in names if n.startswith(prefix)}
            with torch.no_grad():
                x = runner.run_block(runner.build_block(index, tensors), index, x)


def test_unknown_architecture_names_what_is_supported() -> None:
    with pytest.raises(
        CheckpointError, match="'mamba' is not supported; supported: gemma3, .*qwen3"
    ):
        find_layout({"model_type": "mamba"}, set())


def test_missing_linear_is_named(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys()) - {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        find_layout(tiny_config(), names)


def test_multimodal_names_are_found_behind_their_prefix() -> None:
    config = {"model_type": "gemma3", "text_config": tiny_config()}
    text = find_layout(tiny_config(), _names("model."))
    for prefix in ("language_model.model.", "model.language_model."):
        layout = find_layout(config, _names(prefix))
        assert layout.prefix == prefix
        assert layout.block(1) == text.block(1).replace("model.", prefix, 1)


def _names(prefix: str) -> set[str]:
    paths = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = {f"{prefix}layers.{i}.{p}.weight" for i in range(3) for p in (*paths, *mlp)}
    return names | {f"{prefix}embed_tokens.weight"}
