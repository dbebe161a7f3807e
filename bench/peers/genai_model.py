"""onnxruntime-genai's own int4 model of a Gemma 3 checkpoint, by its model builder.

    python bench/peers/genai_model.py BASE WORK/genai-int4     # BASE: a bfloat16 checkpoint

Needs onnxruntime-genai 0.18 beside soroq's pinned packages; minutes and about 3 GB of memory. The
builder is patched in this process alone, where it breaks on Gemma 3 with transformers 5, whose
configuration keeps the rotary bases of the two kinds of layers in a nested dictionary:

- `Model.make_rope_init` reads `rope_parameters["rope_type"]`: it gets the full-attention part;
- `Gemma3Model` reads `config.rope_local_base_freq`: it gets the sliding part's base.

Options: one int4 tensor for embedding and head (otherwise the embedding is float32, 671 MB), int8
activations (accuracy level 4), logits of the last token alone.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

OPTIONS = {
    "accuracy_level": 4,
    "shared_embeddings": True,
    "prune_lm_head": True,
}


def flatten_rope(config: Any) -> None:
    """Give a transformers 5 configuration the attributes that the builder looks for, in place."""
    nested = config.rope_parameters
    if not isinstance(nested, dict) or "full_attention" not in nested:
        return
    config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]
    config.rope_theta = nested["full_attention"]["rope_theta"]
    config.rope_parameters = dict(nested["full_attention"])


def patch(builder: Any) -> None:
    """Let the builder's Gemma 3 see a flat configuration; its weights come by the nested one."""
    original = builder.Gemma3Model.__init__

    def patched(self: Any, config: Any, *rest: Any) -> None:
        flatten_rope(config)
        original(self, config, *rest)

    builder.Gemma3Model.__init__ = patched


def main() -> None:
    """Build one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    from onnxruntime_genai.models import builder

    patch(builder)
    with tempfile.TemporaryDirectory() as cache:
        pairs = [f"{name}={str(value).lower()}" for name, value in OPTIONS.items()]
        given = ("", str(options.base), str(options.out), "int4", "cpu", cache)
        builder.create_model(*given, **builder.parse_extra_options(*given, pairs))


if __name__ == "__main__":
    main()
