"""Decoder: a quantized checkpoint run whole by the C++ kernels, without transformers' forward.

    decoder = soroq.decoder.load("gemma3-270m-int4")
    logits = decoder.prefill(ids)                       # ids (n,): the last token's logits
    for token in decoder.generate(ids, max_new_tokens=64):
        ...

Weights lie in panels (`soroq.kernels.panels`), keys and values in bfloat16, and a step is one call.
What is in a block, its window and its rotary tables: `soroq.decoder_facts`. What isn't supported
is one clear error; `soroq.load` runs those models.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.decoder_facts import DecoderFacts, read_facts
from soroq.io.checkpoint import Checkpoint, open_stored, read_json
from soroq.io.stored import StoredMatrix, StoredWeights
from soroq.io.writer import sha256_file
from soroq.kernels import panels
from soroq.kernels.panels import PanelWeight
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout

CONTEXT = 2048
# name → precision of products with many tokens, and of those with one or two and of the head
PRECISIONS = {
    "int8-coarse": ("int8-coarse", "int16"),
    "int8": ("int8", "int16"),
    "int16": ("int16", "int16"),
    "exact": ("exact", "exact"),
}
TOP_K = 64  # candidates of a sampled token: the most that a step hands back
DEFAULT_PRECISION = "int8"


class Decoder:
    """One sequence of tokens and the model that goes on with it.

    prefill and decode append tokens; rewind forgets. Not for use from several threads at once.
    """

    def __init__(self, handle: Any, vocabulary: int, context: int, weight_bytes: int) -> None:
        self._handle = handle
        self.vocabulary = vocabulary
        self.context = context
        self.weight_bytes = weight_bytes

    @property
    def length(self) -> int:
        """Tokens taken so far."""
        return int(self._handle.length)

    def rewind(self, n: int = 0) -> None:
        """Forget all tokens behind the first n."""
        self._handle.rewind(n)

    def prefill(self, ids: torch.Tensor, *, all_logits: bool = False) -> torch.Tensor:
        """Append ids int64 (n,); return float32 logits of the last token, or of all (n, V).

        Raises ValueError when they don't fit the context or the vocabulary.
        """
        logits = torch.empty(len(ids) if all_logits else 1, self.vocabulary)
        self._handle.step(ids.to(torch.int64).contiguous(), logits)
        return logits if all_logits else logits[0]

    def best(self, ids: torch.Tensor, k: int = 1) -> tuple[list[int], list[float]]:
        """Append ids int64 (n,); return the k likeliest next tokens and their logits."""
        tokens, scores = self._handle.step(ids.to(torch.int64).contiguous(), None, k)
        return tokens, scores

    def generate(
        self,
        ids: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
    ) -> Iterator[int]:
        """Append ids (n,), then yield tokens one by one until one of `stop`, which isn't yielded.

        temperature 0: the likeliest; otherwise drawn from the TOP_K likeliest.
        """
        generator = torch.Generator().manual_seed(seed)
        k = 1 if temperature == 0 else min(TOP_K, self.vocabulary)
        step = ids
        for _ in range(min(max_new_tokens, self.context - self.length - len(ids) + 1)):
            tokens, scores = self.best(step, k)
            token = tokens[0]
            if k > 1:
                weights = (torch.tensor(scores) / temperature).softmax(0)
                token = tokens[int(torch.multinomial(weights, 1, generator=generator))]
            if token in stop:
                return
            yield token
            step = torch.tensor([token])


def load(
    source: str | Path, *, context: int = CONTEXT, precision: str = DEFAULT_PRECISION
) -> Decoder:
    """Return a Decoder for the checkpoint in `source` with room for `context` tokens.

    precision: what activations are multiplied as (`soroq.kernels.cpu.panels`); "int8" is int16 with
    one or two tokens and at the head, where that costs nothing. Raises CheckpointError when the
    model needs something that the C++ decoder doesn't have.
    """
    if not panels.is_built():
        raise CheckpointError("soroq._cpu is not built; pip install . compiles it")
    if precision not in PRECISIONS:
        raise CheckpointError(f"precision {precision!r} is not {', '.join(PRECISIONS)}")
    checkpoint = open_stored(source)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    facts = read_facts(layout, context)
    _refuse_unknown(checkpoint, layout, facts)
    return _Builder(checkpoint, layout, facts).build(context, precision)


def isa() -> str:
    """Return the name of the instruction set that the kernels use here, 'none' if not built."""
    if not panels.is_built():
        return "none"
    from soroq import _cpu

    return str(_cpu.isa())


@cache
def build() -> str:
    """Return a hash of the compiled kernels: what they compute may change when it does."""
    from soroq import _cpu

    return sha256_file(Path(str(_cpu.__file__)))


def end_tokens(source: str | Path) -> list[int]:
    """Return the tokens that end a text, as generation_config.json or config.json has them."""
    checkpoint = open_stored(source)
    file = Path(checkpoint.path) / "generation_config.json"
    settings = read_json(file) if file.is_file() else checkpoint.config
    end = settings.get("eos_token_id")
    return list(end) if isinstance(end, list) else [] if end is None else [int(end)]


def objection(source: str | Path) -> str:
    """Return why `load` can't run a checkpoint, '' if it can."""
    if not panels.is_built():
        return "soroq._cpu is not built"
    try:
        checkpoint = open_stored(source)
        layout = find_layout(checkpoint.config, set(checkpoint.names()))
        _refuse_unknown(checkpoint, layout, read_facts(layout, 1))
    except CheckpointError as error:
        return str(error)
    return ""


def _refuse_unknown(checkpoint: Checkpoint, layout: DecoderLayout, facts: DecoderFacts) -> None:
    names = checkpoint.names()
    reasons = list(facts.refused)
    if any(
        name.endswith((".o_proj.bias", ".gate_proj.bias", ".up_proj.bias", ".down_proj.bias"))
        for name in names
    ):
        reasons.append("o_proj or the MLP has biases")
    if layout.head_dim % 16:
        reasons.append(f"head_dim {layout.head_dim} is no multiple of 16")
    if facts.activation is None:
        reasons.append("the MLP's activation is neither GELU (tanh) nor SiLU")
    if any(name.endswith("weight_scale_inv") for name in names) or any(
        checkpoint.info(name).dtype == torch.float8_e4m3fn
        for name in names
        if name.endswith("q_proj.weight")
    ):
        reasons.append("float8 weights have no CPU kernels")
    if reasons:
        raise CheckpointError(
            f"{checkpoint.path}: the C++ decoder can't run this: {', '.join(reasons)}; "
            "use soroq.load"
        )


class _Builder:
    """Turns a checkpoint's tensors into panels, one matrix in memory at a time."""

    def __init__(self, checkpoint: Checkpoint, layout: DecoderLayout, facts: DecoderFacts) -> None:
        self._checkpoint, self._layout, self._facts = checkpoint, layout, facts
        self._names = set(checkpoint.names())
        self._weights = StoredWeights(checkpoint)
        self._bytes = 0

    def build(self, context: int, precision: str) -> Decoder:
        from soroq import _cpu

        facts = self._facts
        values = {
            "hidden": facts.hidden,
            "heads": facts.heads,
            "kv_heads": facts.kv_heads,
            "head_dim": self._layout.head_dim,
            "ffn": facts.ffn,
            "vocabulary": facts.vocabulary,
            "context": context,
            "eps": facts.eps,
            "embed_scale": facts.embed_scale,
            "attention_scale": facts.attention_scale,
            "gelu": facts.activation == "gelu",
            "precision": PRECISIONS[precision][0],
            "few_precision": PRECISIONS[precision][1],
        }
        embedding = self._panels(self._layout.embedding.removesuffix(".weight"))
        prefix = self._layout.prefix
        untied = f"{prefix.removesuffix('model.')}lm_head"
        tied = (
            f"{untied}.weight" not in self._names and f"{untied}.weight_packed" not in self._names
        )
        head = embedding if tied else self._panels(untied)
        handle = _cpu.Decoder(
            values,
            [self._block(index) for index in range(self._layout.n_blocks)],
            list(facts.tables),
            self._norm(f"{prefix}norm"),
            embedding.handle,
            head.handle,
        )
        return Decoder(handle, facts.vocabulary, context, self._bytes)

    def _block(self, index: int) -> dict[str, Any]:
        name = self._layout.block(index)
        parts: dict[str, Any] = {
            "window": self._facts.windows[index],
            "rotary": self._facts.rotary[index],
        }
        for part in ("q", "k", "v", "o"):
            module = f"{name}.self_attn.{part}_proj"
            parts[part] = self._panels(module).handle
            if f"{module}.bias" in self._names:
                parts[f"{part}_bias"] = self._checkpoint.load(f"{module}.bias", dtype=torch.float32)
        gate, up = (self._weights.open(f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
        parts["gate_up"] = self._keep(_pair(f"{name}.mlp", gate, up)).handle
        parts["down"] = self._panels(f"{name}.mlp.down_proj").handle
        gemma = f"{name}.pre_feedforward_layernorm.weight" in self._names
        norms = {"input_norm": "input_layernorm"}
        if gemma:
            norms["after_attention_norm"] = "post_attention_layernorm"
            norms["before_ffn_norm"] = "pre_feedforward_layernorm"
            norms["after_ffn_norm"] = "post_feedforward_layernorm"
        else:
            norms["before_ffn_norm"] = "post_attention_layernorm"
        for part in ("q_norm", "k_norm"):
            if f"{name}.self_attn.{part}.weight" in self._names:
                norms[part] = f"self_attn.{part}"
        return parts | {key: self._norm(f"{name}.{path}") for key, path in norms.items()}

    def _norm(self, module: str) -> torch.Tensor:
        weight = self._checkpoint.load(f"{module}.weight", dtype=torch.float32)
        return weight + self._layout.architecture.norm_offset

    def _panels(self, module: str) -> PanelWeight:
        return self._keep(panels.pack(self._weights.open(module)))

    def _keep(self, weight: PanelWeight) -> PanelWeight:
        self._bytes += weight.nbytes
        return weight


def _pair(module: str, gate: StoredMatrix, up: StoredMatrix) -> PanelWeight:
    try:
        return panels.pack_pair(gate, up)
    except ValueError as error:
        raise CheckpointError(f"{module}: {error}; use soroq.load") from error
