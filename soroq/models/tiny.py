"""A random tiny decoder on disk, for tests and dry runs: every architecture in a few kilobytes.

    write_tiny_model(Path("tiny"))                     # Gemma 3, 3 blocks, hidden 64
    write_tiny_model(Path("tiny-llama"), "llama")

Weights have the heavy-tailed rows and the norm factors of real models in miniature, so that
quantizers have something to choose; text is tokenized byte by byte.
"""

import json
from pathlib import Path
from typing import Any

import torch

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURE_NAMES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def tiny_config(model_type: str = "gemma3_text", **changes: Any) -> dict[str, Any]:
    """Return a config.json for a tiny model; `changes` replace fields of SHAPE."""
    config = {
        **SHAPE,
        "model_type": model_type,
        "architectures": [ARCHITECTURE_NAMES[model_type]],
        "dtype": "bfloat16",
        "tie_word_embeddings": model_type == "gemma3_text",
        **changes,
    }
    if model_type == "gemma3_text":
        n = config["num_hidden_layers"]
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(n)]
        config |= {
            "layer_types": kinds,
            "sliding_window": 16,
            "query_pre_attn_scalar": config["head_dim"],
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        }
    return config


def write_tiny_model(
    directory: Path,
    model_type: str = "gemma3_text",
    *,
    seed: int = 0,
    shards: int = 1,
    **changes: Any,
) -> Path:
    """Write config, random bfloat16 weights and a byte tokenizer to `directory`; return it."""
    from safetensors.torch import save_file

    from soroq.models.runner import build_skeleton

    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(model_type, **changes)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in build_skeleton(config).named_parameters():
        tensors[name] = _random(name, parameter.shape, generator).to(torch.bfloat16)
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        part = names[index::shards]
        file = (
            "model.safetensors"
            if shards == 1
            else f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        )
        save_file({n: tensors[n] for n in part}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(t.nbytes for t in tensors.values())
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(directory)
    return directory


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        return values * 0.3 + (0.0 if shape[0] % 2 else 0.5)
    if name.endswith(".bias"):
        return values * 0.02
    heavy: torch.Tensor = 1 + 4 * (torch.rand(shape, generator=generator) > 0.98)
    scaled: torch.Tensor = values * heavy / shape[-1] ** 0.5
    return scaled


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
