"""config.json as the metadata of a GGUF: the opposite of soroq.io.gguf.make_config.

llama.cpp builds into its code what its files can't say (Gemma's pattern of sliding windows, the
scale of its queries); a model that differs there is refused. Keys: the GGUF specification and
llama.cpp's llama-arch.cpp.
"""

from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.io.gguf import BLOCK_NAMES, GEMMA_NORMS, LLAMA_NORMS

ARCHITECTURES = {
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
PERIOD = 6  # of Gemma 3's blocks, the last of so many attends to everything


def architecture_of(config: dict[str, Any]) -> str:
    """Return llama.cpp's name of an architecture. Raises CheckpointError for others."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"model_type {model_type!r} can't be written as GGUF; {', '.join(ARCHITECTURES)} can"
        )
    return ARCHITECTURES[model_type]


def tensor_name(name: str, architecture: str) -> str | None:
    """Return llama.cpp's name of a tensor; `name` begins behind the decoder's prefix.

    None for a tensor that it doesn't know.
    """
    top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    path, _, part = name.rpartition(".")
    if path in top:
        return f"{top[path]}.{part}"
    norms = GEMMA_NORMS if architecture == "gemma3" else LLAMA_NORMS
    inner = {ours: theirs for theirs, ours in {**BLOCK_NAMES, **norms}.items()}
    layers, _, rest = path.partition(".")
    index, _, module = rest.partition(".")
    if layers != "layers" or module not in inner:
        return None
    return f"blk.{index}.{inner[module]}.{part}"


def model_metadata(config: dict[str, Any], architecture: str, head_dim: int) -> dict[str, Any]:
    """Return the `<architecture>.*` keys. Raises CheckpointError for what llama.cpp can't do."""
    heads = int(config["num_attention_heads"])
    if architecture == "qwen2" and heads * head_dim != config["hidden_size"]:
        raise CheckpointError(f"{heads} heads of {head_dim}: llama.cpp's qwen2 wants hidden_size")
    keys: dict[str, Any] = {
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
    }
    rope = rope_of(config)
    keys["rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        keys["rope.scaling.type"] = rope["rope_type"]
        keys["rope.scaling.factor"] = float(rope["factor"])
        if rope["rope_type"] == "yarn":
            original = rope["original_max_position_embeddings"]
            keys["rope.scaling.original_context_length"] = int(original)
    elif rope["rope_type"] not in ("default", "llama3"):
        raise CheckpointError(
            f"rotary scaling {rope['rope_type']!r} can't be written as GGUF; linear, yarn and "
            "llama3 can"
        )
    if architecture == "gemma3":
        keys |= _gemma(config, heads, head_dim)
    elif config.get("use_sliding_window"):
        raise CheckpointError("use_sliding_window: llama.cpp has none for this architecture")
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def rope_of(config: dict[str, Any], kind: str = "full_attention") -> dict[str, Any]:
    """Return rope_type, rope_theta, … as transformers 5 keeps them, also from older fields."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get(kind, rope)
    if not rope:
        theta = config.get("rope_theta", 1e4)
        if kind == "sliding_attention":
            return {"rope_type": "default", "rope_theta": config.get("rope_local_base_freq", 1e4)}
        rope = {"rope_theta": theta, **(config.get("rope_scaling") or {})}
    rope.setdefault("rope_type", rope.get("type", "default"))
    return dict(rope)


def rope_factors(config: dict[str, Any], head_dim: int) -> torch.Tensor | None:
    """Return what llama.cpp divides each frequency by, float32 (head_dim / 2,); None: 1.

    Llama 3.1's scaling is no key of a GGUF, it is the tensor rope_freqs.weight.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    asked = LlamaConfig(head_dim=head_dim, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](asked, torch.device("cpu"))
    factors: torch.Tensor = plain / scaled
    return factors


def _gemma(config: dict[str, Any], heads: int, head_dim: int) -> dict[str, Any]:
    n_blocks = int(config["num_hidden_layers"])
    scalar = int(config["hidden_size"]) // heads if n_blocks == 62 else head_dim
    pattern = ["full" if (i + 1) % PERIOD == 0 else "sliding" for i in range(n_blocks)]
    kinds = config.get("layer_types") or [f"{kind}_attention" for kind in pattern]
    differs = {
        "layer_types": kinds != [f"{kind}_attention" for kind in pattern],
        "query_pre_attn_scalar": config.get("query_pre_attn_scalar", scalar) != scalar,
        "rope_parameters.sliding_attention": rope_of(config, "sliding_attention")["rope_theta"]
        != 1e4,
        "final_logit_softcapping": config.get("final_logit_softcapping") is not None,
    }
    for key, differ in differs.items():
        if differ:
            raise CheckpointError(f"config.json: {key} is not what llama.cpp has for Gemma 3")
    return {"attention.sliding_window": int(config["sliding_window"])}
