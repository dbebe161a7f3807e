"""ARCHITECTURES by model_type, and how a checkpoint's config and names are matched to one."""

from collections.abc import Collection
from typing import Any

from soroq.core.errors import CheckpointError
from soroq.models.architecture import Architecture, DecoderLayout
from soroq.models.gemma3 import GEMMA3
from soroq.models.llama import LLAMA

QUANTIZED_MARKS = ("weight_packed", "qweight", "W_q")  # compressed-tensors, GPTQ and AWQ, HQQ

ARCHITECTURES: dict[str, Architecture] = {
    model_type: arch for arch in (GEMMA3, LLAMA) for model_type in arch.model_types
}


def find_layout(config: dict[str, Any], names: Collection[str]) -> DecoderLayout:
    """Return where the decoder of a checkpoint lies.

    Raises CheckpointError for an architecture not in ARCHITECTURES or tensors that are missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"model_type {model_type!r} is not supported; supported: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    arch = ARCHITECTURES[model_type]
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise CheckpointError(f"config.json: text_config is {text!r}, not an object")
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if not isinstance(text.get(key), int) or text[key] < 1:
            raise CheckpointError(
                f"config.json: {key} is {text.get(key)!r}, not a positive number; the file is "
                "incomplete"
            )
    for prefix in arch.text_prefixes:
        embedding = f"{prefix}embed_tokens.weight"
        if embedding in names or embedding + "_packed" in names:
            layout = DecoderLayout(arch, text, prefix)
            break
    else:
        tried = " or ".join(f"{prefix}embed_tokens.weight" for prefix in arch.text_prefixes)
        raise CheckpointError(f"no embedding found: looked for {tried}")
    for index in range(layout.n_blocks):
        for path in arch.linears:
            module = f"{layout.block(index)}.{path}"
            if not any(f"{module}.{mark}" in names for mark in ("weight", *QUANTIZED_MARKS)):
                raise CheckpointError(
                    f"{module}.weight is missing from the checkpoint (config.json promises "
                    f"{layout.n_blocks} blocks)"
                )
    return layout
