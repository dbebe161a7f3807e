"""Guards of readers and writers: wrong rows, broken promises, lost files, rotary scaling."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from soroq.core.errors import CheckpointError, OutputError
from soroq.io.checkpoint import open_checkpoint
from soroq.io.gguf import llama3_rope, rope_parameters
from soroq.io.safetensors_file import TensorInfo
from soroq.io.writer import ShardedWriter
from soroq.models.registry import find_layout
from soroq.models.runner import build_skeleton
from soroq.models.tiny import write_tiny_model


@pytest.mark.parametrize("row", [-1, 10_000])
def test_rows_outside_of_the_matrix_are_refused(row: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "tiny"))
    with pytest.raises(CheckpointError, match="asked for, it has"):
        checkpoint.load_rows("model.embed_tokens.weight", torch.tensor([0, row]))


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float16)])
def test_a_tensor_that_is_not_what_was_promised_is_not_written(
    other: torch.Tensor, tmp_path: Path
) -> None:
    writer = ShardedWriter(tmp_path)
    writer.add_lazy("w", TensorInfo((2, 3), torch.float32, 24), lambda: other)
    with pytest.raises(OutputError, match="w: promised as"):
        writer.finish({}, {})
    assert not (tmp_path / "model.safetensors").exists()


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    writer = ShardedWriter(tmp_path)
    writer.add("w", torch.zeros(2))
    with pytest.raises(OutputError, match="w is written twice"):
        writer.add("w", torch.zeros(2))


def test_licences_and_terms_travel_with_the_weights(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "tiny")
    wanted = {"GEMMA_TERMS.html", "Terms of use.txt", "LICENSE", "Notice.md", "chat_template.jinja"}
    for name in (*wanted, "optimizer.pt"):
        (source / name).write_text(name)
    out = tmp_path / "out"
    out.mkdir()
    open_checkpoint(source).copy_side_files(out)
    copied = {file.name for file in out.iterdir()}
    assert wanted <= copied
    assert "optimizer.pt" not in copied


def test_linear_rotary_scaling_of_a_gguf_is_kept() -> None:
    metadata = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    rope = rope_parameters(metadata, "gemma3", 1e6, Path("m.gguf"))
    assert rope == {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    with pytest.raises(CheckpointError, match="'longrope' is not supported"):
        rope_parameters({"llama.rope.scaling.type": "longrope"}, "llama", 1e4, Path("m.gguf"))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rotary_scaling_is_found_from_its_factors(factor: float) -> None:
    rope = {
        "rope_theta": 5e5, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(head_dim=64, rope_parameters=rope, max_position_embeddings=131_072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 5e5 ** (torch.arange(0, 64, 2).float() / 64)
    found = llama3_rope(plain / scaled, 5e5, {"head_dim": 64}, Path("m.gguf"))
    assert found == rope
    with pytest.raises(CheckpointError, match=r"not those of Llama 3\.1"):
        llama3_rope(torch.linspace(1, 3, 32), 5e5, {"head_dim": 64}, Path("m.gguf"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": ["llama"]},
        {"num_hidden_layers": "many"},
        {"hidden_size": 0},
        {"num_attention_heads": None},
        {"text_config": 3},
        {"rope_parameters": 7},
        {"layer_types": ["odd"]},
        {"vocab_size": -1},
    ],
)
def test_nonsense_in_config_json_is_one_clear_error(
    changes: dict[str, object], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "tiny"))
    config = checkpoint.config | changes
    with pytest.raises(CheckpointError, match=r"config\.json|not supported"):
        build_skeleton(find_layout(config, set(checkpoint.names())).text_config)
