"""What of a model decides its bytes: shapes, out of a config.json or by a published name."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError
from soroq.core.scheme import QuantArgs

GLOBAL_EVERY = 6  # Gemma 3: five sliding layers, then a global one


@dataclass(frozen=True)
class ModelShape:
    """A decoder. `window` tokens are all that a sliding layer keeps; 0: no layer slides."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    sliding_layers: int
    tied: bool

    def linears(self) -> Iterator[tuple[int, int]]:
        """Return (N, K) of one block's linears."""
        yield self.heads * self.head_dim, self.hidden
        yield self.kv_heads * self.head_dim, self.hidden
        yield self.kv_heads * self.head_dim, self.hidden
        yield self.hidden, self.heads * self.head_dim
        yield self.intermediate, self.hidden
        yield self.intermediate, self.hidden
        yield self.hidden, self.intermediate

    @property
    def parameters(self) -> int:
        """Weights of linears and of the embedding, and of a head that isn't tied."""
        block = sum(N * K for N, K in self.linears())
        return self.layers * block + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, linears: QuantArgs | None, embed: QuantArgs | None) -> tuple[int, int]:
        """Return bytes of all weights, and of those that one token reads: all but an untied
        embedding, of which a row is read. None is bfloat16. Norms count as nothing.
        """
        block = sum(_bytes(shape, linears) for shape in self.linears())
        matrix = _bytes((self.vocabulary, self.hidden), embed)
        read = self.layers * block + matrix
        return (read if self.tied else read + matrix), read

    def kv_bytes(self, context: int, bits: int = 16) -> int:
        """Return bytes of keys and values of one sequence of `context` tokens."""
        kept = min(context, self.window) if self.window else context
        tokens = self.sliding_layers * kept + (self.layers - self.sliding_layers) * context
        return tokens * 2 * self.kv_heads * self.head_dim * bits // 8


def _bytes(shape: tuple[int, int], args: QuantArgs | None) -> int:
    N, K = shape
    return N * K * 2 if args is None else round(N * K * args.bits_per_weight(shape) / 8)


def _gemma3(
    name: str, hidden: int, wide: int, layers: int, heads: int, kv: int, dim: int, window: int
) -> ModelShape:
    vocabulary = 262_144 if hidden < 2000 else 262_208
    sliding = layers - layers // GLOBAL_EVERY
    return ModelShape(name, hidden, wide, layers, heads, kv, dim, vocabulary, window, sliding, True)


# Gemma Team, arXiv 2503.19786, and the published config.json files (270m: 2025-08)
PUBLISHED = {
    m.name: m
    for m in (
        _gemma3("gemma3-270m", 640, 2048, 18, 4, 1, 256, 512),
        _gemma3("gemma3-1b", 1152, 6912, 26, 4, 1, 256, 512),
        _gemma3("gemma3-4b", 2560, 10240, 34, 8, 4, 256, 1024),
        _gemma3("gemma3-12b", 3840, 15360, 48, 16, 8, 256, 1024),
        _gemma3("gemma3-27b", 5376, 21504, 62, 32, 16, 128, 1024),
    )
}


def find_shape(model: str) -> ModelShape:
    """Return the shape of a published name, a checkpoint's directory, a .gguf or a config.json.

    Raises CheckpointError when it is none of them.
    """
    if model in PUBLISHED:
        return PUBLISHED[model]
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
    elif path.exists():
        from soroq.io.checkpoint import open_checkpoint

        config = open_checkpoint(path).config
    else:
        raise CheckpointError(
            f"{model} is no file, no directory and none of {', '.join(PUBLISHED)}"
        )
    return shape_of(path.name, config)


def shape_of(name: str, config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a transformers configuration describes.

    Raises CheckpointError with the field that is missing.
    """
    text = config.get("text_config", config)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    if str(config.get("model_type", "")).startswith("gemma"):
        tied = True
    try:
        layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])
        hidden = int(text["hidden_size"])
        kinds = text.get("layer_types")
        window = int(text.get("sliding_window") or 0)
        if kinds is not None:
            sliding = sum(kind == "sliding_attention" for kind in kinds)
        else:
            every = int(text.get("sliding_window_pattern") or 0)
            sliding = layers - layers // every if every and window else 0
        return ModelShape(
            name,
            hidden,
            int(text["intermediate_size"]),
            layers,
            heads,
            int(text.get("num_key_value_heads") or heads),
            int(text.get("head_dim") or hidden // heads),
            int(text["vocab_size"]),
            window if sliding else 0,
            sliding,
            tied,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its configuration has no usable {error}") from error
