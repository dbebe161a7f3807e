"""Llama-shaped decoders: Llama 2/3, Mistral, Qwen 2 and Qwen 3; RMSNorm multiplies by w."""

from soroq.models.architecture import LLAMA_GROUPS, Architecture, decoder_edges

LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    linear_groups=LLAMA_GROUPS,
    edges=decoder_edges("post_attention_layernorm"),
    norm_offset=0.0,
)
