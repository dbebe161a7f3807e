"""Architectures: names of blocks and linears, and where a scale may move from one place to another.

Everything the pipeline must know of a model family stands in one `Architecture`; a family is one
entry of `soroq.models.registry.ARCHITECTURES`. Paths are relative to a block
(`model.layers.{i}`), names of checkpoint tensors are `<block>.<path>.weight`.
"""

from dataclasses import dataclass
from typing import Any, Literal

# what transformers takes where config.json names none; elsewhere hidden size / heads
HEAD_DIMS = {"gemma3": 256, "gemma3_text": 256, "qwen3": 128}


@dataclass(frozen=True)
class Edge:
    """A place where a per-channel scale s moves through without changing the block's function.

    kind 'norm': an RMSNorm `source` feeds `targets`; its factor is divided by s, the targets'
    columns multiplied. kind 'linear': rows of the linear `source` are divided, columns of the one
    target multiplied; between them only element-wise products and, for attention, the averaging
    over tokens, which act on each channel alone. gate: the linear whose outputs the source's are
    multiplied with; None for norms and for attention, where channels belong to heads.
    """

    kind: Literal["norm", "linear"]
    source: str
    targets: tuple[str, ...]
    gate: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One family of decoders.

    linear_groups: linears that read the same input, in the order in which they are quantized.
    norm_offset: RMSNorm multiplies by (norm_offset + w): 1 for Gemma, 0 elsewhere.
    text_prefixes: where the decoder's tensors may start, the longest first.
    """

    model_types: tuple[str, ...]
    linear_groups: tuple[tuple[str, ...], ...]
    edges: tuple[Edge, ...]
    norm_offset: float
    text_prefixes: tuple[str, ...] = ("model.",)

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(path for group in self.linear_groups for path in group)

    @property
    def norms(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each norm that linears read, and all that do."""
        return tuple((edge.source, edge.targets) for edge in self.edges if edge.kind == "norm")


def context_length(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model was made for, as its config.json says; None if it doesn't."""
    for part in (config, config.get("text_config")):
        given = part.get("max_position_embeddings") if isinstance(part, dict) else None
        if isinstance(given, int) and given > 0:
            return given
    return None


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_GROUPS = (_QKV, ("self_attn.o_proj",), _GATE_UP, ("mlp.down_proj",))


def decoder_edges(mlp_norm: str) -> tuple[Edge, ...]:
    """Return the four edges of a gated decoder block whose MLP stands behind `mlp_norm`."""
    return (
        Edge("norm", "input_layernorm", _QKV),
        Edge("linear", "self_attn.v_proj", ("self_attn.o_proj",)),
        Edge("norm", mlp_norm, _GATE_UP),
        Edge("linear", "mlp.up_proj", ("mlp.down_proj",), gate="mlp.gate_proj"),
    )


LLAMA_GROUPS = _GROUPS


@dataclass(frozen=True)
class DecoderLayout:
    """A checkpoint's decoder: its architecture, text configuration and tensor names."""

    architecture: Architecture
    text_config: dict[str, Any]
    prefix: str

    @property
    def n_blocks(self) -> int:
        return int(self.text_config["num_hidden_layers"])

    @property
    def head_dim(self) -> int:
        given = self.text_config.get("head_dim")
        given = given or HEAD_DIMS.get(str(self.text_config.get("model_type")))
        if given is None:
            return int(self.text_config["hidden_size"] // self.text_config["num_attention_heads"])
        return int(given)

    def block(self, index: int) -> str:
        return f"{self.prefix}layers.{index}"

    def text_name(self, name: str) -> str | None:
        """Return a tensor's name in the text-only model, None if it isn't part of it."""
        if name.startswith(self.prefix):
            return "model." + name.removeprefix(self.prefix)
        return name.removeprefix("language_model.") if "lm_head" in name else None

    @property
    def embedding(self) -> str:
        return f"{self.prefix}embed_tokens.weight"
