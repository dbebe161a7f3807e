"""Numbers of a decoder that a runtime of one's own needs: scales, windows, rotary tables.

    facts = read_facts(layout, context=2048)

Where config.json says everything in words that are known here they are read from it alone, which
costs nothing; otherwise off transformers' own modules, whose import takes 160 MB.
"""

from dataclasses import dataclass
from typing import Any

import torch

from soroq.models.architecture import DecoderLayout
from soroq.nn.panels import name_activation

Tables = tuple[torch.Tensor, torch.Tensor]
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu"}


@dataclass(frozen=True)
class DecoderFacts:
    """What runs between the products.

    activation: "gelu" (tanh), "silu" or None, something else. windows: positions that a block's
    queries see, themselves included; 0: all. tables: different cosines and sines (context,
    head_dim / 2) float32, of which block i uses tables[rotary[i]]. refused: what no runtime of ours
    does, in words.
    """

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    eps: float
    embed_scale: float
    attention_scale: float
    activation: str | None
    windows: tuple[int, ...]
    tables: tuple[Tables, ...]
    rotary: tuple[int, ...]
    refused: tuple[str, ...] = ()


def read_facts(layout: DecoderLayout, context: int) -> DecoderFacts:
    """Return a decoder's facts with tables for `context` positions."""
    return facts_of_config(layout, context) or facts_of_modules(layout, context)


def facts_of_config(layout: DecoderLayout, context: int) -> DecoderFacts | None:
    """Return facts from config.json alone, or None where it leaves something to defaults."""
    config = layout.text_config
    kind = config.get("model_type")
    gemma = kind == "gemma3_text"
    needed = ["num_key_value_heads", "intermediate_size", "vocab_size", "rms_norm_eps", "head_dim"]
    needed.append("hidden_activation" if gemma else "hidden_act")
    if gemma:
        needed += ["query_pre_attn_scalar", "sliding_window", "layer_types"]
    if any(config.get(key) is None for key in needed):
        return None
    kinds = _attention_kinds(config, gemma, layout.n_blocks)
    thetas = _thetas(config, gemma)
    if kinds is None or thetas is None or not set(kinds) <= set(thetas):
        return None
    names = sorted(set(kinds))
    scalar = config["query_pre_attn_scalar"] if gemma else config["head_dim"]
    return DecoderFacts(
        hidden=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        kv_heads=int(config["num_key_value_heads"]),
        ffn=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        eps=float(config["rms_norm_eps"]),
        embed_scale=config["hidden_size"] ** 0.5 if gemma else 1.0,
        attention_scale=float(scalar) ** -0.5,
        activation=_ACTIVATIONS.get(config[needed[5]]),
        windows=tuple(
            int(config["sliding_window"]) if name == "sliding_attention" else 0 for name in kinds
        ),
        tables=tuple(_tables(thetas[name], layout.head_dim, context) for name in names),
        rotary=tuple(names.index(name) for name in kinds),
        refused=_refused(config.get),
    )


def facts_of_modules(layout: DecoderLayout, context: int) -> DecoderFacts:
    """Return facts as transformers' modules hold them."""
    from soroq.models.runner import DecoderRunner

    runner = DecoderRunner(layout)
    model = runner.model
    config, blocks = model.config, model.model.layers
    refused = _refused(lambda name: getattr(config, name, None))
    tables, rotary = _different(runner.rotary_tables(context), layout.head_dim)
    if not tables:
        refused += ("rotary embeddings don't turn whole heads in halves",)
    return DecoderFacts(
        hidden=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        ffn=int(config.intermediate_size),
        vocabulary=int(config.vocab_size),
        eps=float(config.rms_norm_eps),
        embed_scale=float(getattr(model.model.embed_tokens, "embed_scale", 1.0)),
        attention_scale=float(blocks[0].self_attn.scaling),
        activation=name_activation(blocks[0].mlp.act_fn),
        windows=tuple(window_of(config, block.self_attn) for block in blocks),
        tables=tuple(tables),
        rotary=tuple(rotary),
        refused=refused,
    )


def _refused(get: Any) -> tuple[str, ...]:
    reasons = []
    if get("final_logit_softcapping") or get("attn_logit_softcapping"):
        reasons.append("logits are capped")
    if get("use_bidirectional_attention"):
        reasons.append("attention looks ahead")
    return tuple(reasons)


def window_of(config: Any, attention: Any) -> int:
    """Return how many positions a transformers block's queries see, themselves included; 0: all."""
    window = getattr(attention, "sliding_window", None)
    if not hasattr(attention, "sliding_window") and config.model_type == "mistral":
        window = getattr(config, "sliding_window", None)
    return int(window or 0)


def _attention_kinds(config: dict[str, Any], gemma: bool, n_blocks: int) -> list[str] | None:
    """Return each block's kind of attention, None where that isn't plain."""
    if not gemma:
        slides = config.get("use_sliding_window") or config.get("layer_types")
        if slides or config["model_type"] == "mistral":
            return None
        return ["full_attention"] * n_blocks
    kinds = config["layer_types"]
    known = {"sliding_attention", "full_attention"}
    return kinds if len(kinds) == n_blocks and set(kinds) <= known else None


def _thetas(config: dict[str, Any], gemma: bool) -> dict[str, float] | None:
    """Return the base of the angles for each kind of attention; None if they are scaled."""
    parameters = config.get("rope_parameters")
    if parameters is None:  # as transformers wrote it before its version 5
        if config.get("rope_scaling") is not None or config.get("rope_theta") is None:
            return None
        found = {"full_attention": float(config["rope_theta"])}
        if gemma:
            if config.get("rope_local_base_freq") is None:
                return None
            found["sliding_attention"] = float(config["rope_local_base_freq"])
        return found
    kinds = parameters if gemma else {"full_attention": parameters}
    found = {}
    for kind, values in kinds.items():
        plain = isinstance(values, dict) and values.get("rope_type") == "default"
        if not plain or values.keys() != {"rope_type", "rope_theta"}:
            return None
        found[kind] = float(values["rope_theta"])
    return found


def _tables(theta: float, head_dim: int, context: int) -> Tables:
    """Rotary tables (arXiv 2104.09864): angle of pair i at position p is p · theta^(−2i / D)."""
    steps = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = torch.arange(context).float()[:, None] * steps
    return angles.cos(), angles.sin()


def _different(all_tables: list[Tables], head_dim: int) -> tuple[list[Tables], list[int]]:
    """Return the different tables, halves, and which one each block uses; none if not halves."""
    half = head_dim // 2
    tables: list[Tables] = []
    which: list[int] = []
    for cosines, sines in all_tables:
        if cosines.shape[1] != 2 * half or not torch.equal(cosines[:, :half], cosines[:, half:]):
            return [], []
        pair = (cosines[:, :half].contiguous(), sines[:, :half].contiguous())
        for index, known in enumerate(tables):
            if torch.equal(known[0], pair[0]) and torch.equal(known[1], pair[1]):
                which.append(index)
                break
        else:
            which.append(len(tables))
            tables.append(pair)
    return tables, which
