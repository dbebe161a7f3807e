"""The graph of a decoder: what soroq.models knows of a checkpoint, written as ONNX nodes.

Inputs: input_ids (B, S), attention_mask (B, T) int64, past_key_values.N.key and .value
(B, heads, P, head_dim). Outputs: logits float32 (B, S or 1, V), present.N.key and .value. These
names are those of transformers.js, optimum and onnxruntime-genai.

*Unequal lengths.* GroupQueryAttention holds each row of a batch from position 0 on and takes
padding behind it only. Rows padded in front, as transformers pads, are turned at the graph's
beginning until their padding stands behind, and turned back before the head; the mask tells by how
much. Positions follow from the mask too, so there is no position_ids.

*Windows.* local_window_size w masks i − j ≥ w, as transformers' sliding_window does.

*Rotary embeddings.* Angles are computed for the step's own tokens, so there is no table in the file
or in memory, and no longest context.
"""

from dataclasses import dataclass

import torch
from onnx import TensorProto

from soroq.decoder_facts import window_of
from soroq.export.facts import refuse_unknown, rotary_frequencies
from soroq.export.graph import MICROSOFT, GraphBuilder
from soroq.export.linears import Heads, LinearWriter, StoredHead
from soroq.export.tensors import ONNX_TYPES
from soroq.io.checkpoint import Checkpoint
from soroq.models.architecture import DecoderLayout
from soroq.models.runner import DecoderRunner
from soroq.nn.panels import name_activation

END = (1 << 63) - 1  # slices up to the end


@dataclass(frozen=True)
class Step:
    """Names of values that all blocks share: rows and lengths of this step, rotary tables."""

    ids: str
    sequence: str
    lengths: str
    total: str
    rows: str
    tables: list[tuple[str, str]]


class DecoderGraph:
    """Builds one decoder's graph. Raises CheckpointError for what it has no nodes for."""

    def __init__(
        self,
        graph: GraphBuilder,
        checkpoint: Checkpoint,
        layout: DecoderLayout,
        linears: LinearWriter,
    ) -> None:
        self._graph, self._checkpoint, self._layout = graph, checkpoint, layout
        self._linears = linears
        self._runner = DecoderRunner(layout)
        self._model = self._runner.model
        self._config = self._model.config
        self._eps = float(self._config.rms_norm_eps)
        self._names = set(checkpoint.names())
        self.outputs_of_blocks: list[str] = []
        refuse_unknown(checkpoint, self._runner)

    @property
    def vocabulary(self) -> int:
        return int(self._config.vocab_size)

    @property
    def n_blocks(self) -> int:
        return self._layout.n_blocks

    @property
    def kv_heads(self) -> int:
        return int(self._config.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        return self._layout.head_dim

    def build(self) -> tuple[str, str]:
        """Add all nodes up to the head; return (logits of all rows, logits of the last).

        Both are in the graph; a file gets the nodes of one of them (`soroq.export.onnx_cpu`).
        """
        layout = self._layout
        step = self._begin()
        embedding = layout.embedding.removesuffix(".weight")
        table = self._linears.store(embedding, "embedding")
        scale = float(getattr(self._model.model.embed_tokens, "embed_scale", None) or 1.0)
        residual = self._linears.embed(table, step.ids, scale, "embedding")
        first = self._norm(f"{layout.block(0)}.input_layernorm", "layers.0/input_norm")
        x = self._normalize(residual, first, "layers.0/normed")
        for index in range(layout.n_blocks):
            x, residual = self._block(index, x, residual, step)
        untied = f"{layout.prefix.removesuffix('model.')}lm_head"
        head = self._linears.store(untied, "head") if self._linears.has(untied) else table
        everything = self._logits(head, self._turn_back(x, step), "all")
        return everything, self._logits(head, self._last(x, step), "last")

    def _begin(self) -> Step:
        """Add what comes before the first block, from the ids and the mask."""
        graph, c = self._graph, self._graph.constant
        sequence = graph.node("Shape", ["input_ids"], "step/sequence", start=1, end=2)  # (1,)
        shape = graph.node("Shape", ["input_ids"], "step/shape")
        mask_shape = graph.node("Shape", ["attention_mask"], "step/mask_shape", start=1, end=2)
        total = graph.node("Squeeze", [mask_shape, c([0])], "step/total_int64")
        total = graph.node("Cast", [total], "step/total", to=TensorProto.INT32)
        lengths = graph.node(
            "ReduceSum", ["attention_mask", c([1])], "step/lengths", keepdims=1
        )  # (B, 1)
        seqlens = graph.node("Sub", [lengths, c(1)], "step/seqlens_int64")
        seqlens = graph.node("Squeeze", [seqlens, c([1])], "step/seqlens_1d")
        seqlens = graph.node("Cast", [seqlens], "step/seqlens", to=TensorProto.INT32)
        # How many tokens of padding stand before each row's first one.
        start = graph.node("Neg", [sequence], "step/slice_start")
        own = graph.node("Slice", ["attention_mask", start, c([END]), c([1])], "step/own_mask")
        own = graph.node("Cast", [own], "step/own_mask_int32", to=TensorProto.INT32)
        lead = graph.node("ArgMax", [own], "step/lead", axis=1, keepdims=1)  # (B, 1)
        scalar = graph.node("Squeeze", [sequence, c([0])], "step/sequence_scalar")
        ramp = graph.node("Range", [c(0), scalar, c(1)], "step/ramp")  # (S,)
        turned = graph.node("Add", [ramp, lead], "step/turned_long")
        turned = graph.node("Mod", [turned, sequence], "step/turned")
        ids = graph.node("GatherElements", ["input_ids", turned], "step/ids", axis=1)
        back = graph.node("Sub", [ramp, lead], "step/back_long")
        graph.node("Mod", [back, sequence], "step/back")
        # Positions: what a row had before, then one by one.
        before = graph.node("Sub", [lengths, sequence], "step/before_signed")
        before = graph.node("Max", [before, c(0)], "step/before")
        positions = graph.node("Add", [before, ramp], "step/positions")  # (B, S)
        positions = graph.node("Reshape", [positions, c([-1, 1])], "step/positions_flat")
        positions = graph.node("Cast", [positions], "step/positions_float", to=TensorProto.FLOAT)
        count = graph.node("Size", ["input_ids"], "step/count")
        rows = graph.node("Range", [c(0), count, c(1)], "step/rows_flat")
        rows = graph.node("Reshape", [rows, shape], "step/rows")  # each token's row of the tables
        tables = self._rotary(positions)
        return Step(ids, sequence, seqlens, total, rows, tables)

    def _rotary(self, positions: str) -> list[tuple[str, str]]:
        """Return each block's cosines and sines (B · S, head_dim / 2) of this step's tokens."""
        graph = self._graph
        made: dict[str, tuple[str, str]] = {}
        tables = []
        for name, frequencies, scaling in rotary_frequencies(self._runner, self._checkpoint):
            if name not in made:
                kind = ONNX_TYPES[graph.compute]
                factor = graph.weight(f"rotary/{name}", frequencies[None], torch.float32)
                angles = graph.node("Mul", [positions, factor], f"rotary/{name}/angles")
                pair = []
                for op in ("Cos", "Sin"):
                    value = graph.node(op, [angles], f"rotary/{name}/{op.lower()}")
                    if scaling != 1.0:
                        given = torch.tensor(scaling)
                        by = graph.weight(f"{value}/scaling", given, torch.float32)
                        value = graph.node("Mul", [value, by], f"{value}/scaled")
                    if graph.compute != torch.float32:
                        value = graph.node("Cast", [value], f"{value}/cast", to=kind)
                    pair.append(value)
                made[name] = (pair[0], pair[1])
            tables.append(made[name])
        return tables

    def _block(self, index: int, x: str, residual: str, step: Step) -> tuple[str, str]:
        """Add one block; return the next block's normalized input and the residual."""
        at, block = f"layers.{index}", self._layout.block(index)
        x = self._attention(index, x, step)
        gemma = f"{block}.pre_feedforward_layernorm.weight" in self._names
        if gemma:
            weight = self._norm(f"{block}.post_attention_layernorm", f"{at}/post_attention_norm")
            x = self._normalize(x, weight, f"{at}/attention_normed")
            before = self._norm(f"{block}.pre_feedforward_layernorm", f"{at}/pre_ffn_norm")
        else:
            before = self._norm(f"{block}.post_attention_layernorm", f"{at}/pre_ffn_norm")
        x, residual = self._skip(x, residual, before, f"{at}/ffn_input", f"{at}/middle")
        x = self._ffn(index, x)
        if gemma:
            weight = self._norm(f"{block}.post_feedforward_layernorm", f"{at}/post_ffn_norm")
            x = self._normalize(x, weight, f"{at}/ffn_normed")
        following = index + 1
        if following < self._layout.n_blocks:
            norm = f"{self._layout.block(following)}.input_layernorm"
            weight = self._norm(norm, f"layers.{following}/input_norm")
            result = self._skip(x, residual, weight, f"layers.{following}/normed", f"{at}/output")
        else:
            weight = self._norm(f"{self._layout.prefix}norm", "final_norm")
            result = self._skip(x, residual, weight, "final/normed", f"{at}/output")
        self.outputs_of_blocks.append(f"{at}/output")
        return result

    def _attention(self, index: int, x: str, step: Step) -> str:
        graph, at = self._graph, f"layers.{index}/attention"
        name = f"{self._layout.block(index)}.self_attn"
        attention = self._model.model.layers[index].self_attn
        q, k, v = self._linears.project([f"{name}.{part}_proj" for part in "qkv"], x, f"{at}/qkv")
        heads = int(self._config.num_attention_heads)
        if f"{name}.q_norm.weight" in self._names:
            q = self._normalize_heads(q, heads, f"{name}.q_norm", f"{at}/q_norm")
            k = self._normalize_heads(k, self.kv_heads, f"{name}.k_norm", f"{at}/k_norm")
        cosines, sines = step.tables[index]
        q, k = (
            graph.node(
                "RotaryEmbedding",
                [value, step.rows, cosines, sines],
                f"{at}/{part}_rotated",
                domain=MICROSOFT,
            )
            for part, value in (("q", q), ("k", k))
        )
        past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        mixed = self._linears.attend(
            [q, k, v, *past, step.lengths, step.total],
            [f"{at}/mixed", *present],
            Heads(heads, self.kv_heads, int(attention.head_dim)),
            scale=float(attention.scaling),
            window=window_of(self._model.config, attention) or 0,
        )
        return self._linears.project([f"{name}.o_proj"], mixed, f"{at}/o")[0]

    def _ffn(self, index: int, x: str) -> str:
        at, name = f"layers.{index}/mlp", f"{self._layout.block(index)}.mlp"
        kind = name_activation(self._model.model.layers[index].mlp.act_fn)
        assert kind is not None  # refuse_unknown
        x = self._linears.gate(f"{name}.gate_proj", f"{name}.up_proj", x, kind, at)
        return self._linears.project([f"{name}.down_proj"], x, f"{at}/down")[0]

    def _logits(self, head: StoredHead, x: str, which: str) -> str:
        """Return logits float32 for rows x."""
        y = self._linears.multiply(head, x, f"head/{which}")
        if self._graph.compute == torch.float32:
            return y
        return self._graph.node("Cast", [y], f"head/{which}/float", to=TensorProto.FLOAT)

    def _turn_back(self, x: str, step: Step) -> str:
        """Return rows (B, S, hidden) in the order in which the tokens were given."""
        graph, c = self._graph, self._graph.constant
        first = self._first_rows(step, "turn_back")
        rows = graph.node("Add", [first, "step/back"], "turn_back/rows")  # (B, S)
        flat = graph.node("Reshape", [x, c([-1, int(self._config.hidden_size)])], "turn_back/flat")
        return graph.node("Gather", [flat, rows], "turn_back/hidden")

    def _last(self, x: str, step: Step) -> str:
        """Return each row's last token (B, 1, hidden), wherever its padding is."""
        graph, c = self._graph, self._graph.constant
        first = self._first_rows(step, "last")
        lengths = graph.node("Min", ["step/lengths", step.sequence], "last/lengths")
        last = graph.node("Sub", [lengths, c(1)], "last/offset")
        rows = graph.node("Add", [first, last], "last/rows")  # (B, 1)
        flat = graph.node("Reshape", [x, c([-1, int(self._config.hidden_size)])], "last/flat")
        return graph.node("Gather", [flat, rows], "last/hidden")

    def _first_rows(self, step: Step, name: str) -> str:
        """Return where each row of the batch begins among all tokens (B, 1)."""
        graph, c = self._graph, self._graph.constant
        batch = graph.node("Shape", ["input_ids"], f"{name}/batch", start=0, end=1)
        batch = graph.node("Squeeze", [batch, c([0])], f"{name}/batch_scalar")
        ramp = graph.node("Range", [c(0), batch, c(1)], f"{name}/ramp")
        first = graph.node("Mul", [ramp, step.sequence], f"{name}/first_flat")
        return graph.node("Unsqueeze", [first, c([1])], f"{name}/first")

    def _norm(self, module: str, name: str) -> str:
        """Store a norm's factor, 1 + w where the architecture has it so."""
        weight = self._checkpoint.load(f"{module}.weight", dtype=torch.float32)
        factor = weight + self._layout.architecture.norm_offset
        return self._graph.weight(f"{name}/factor", factor.to(self._graph.compute))

    def _normalize(self, x: str, factor: str, name: str) -> str:
        return self._graph.node(
            "SimplifiedLayerNormalization", [x, factor], name, axis=-1, epsilon=self._eps
        )

    def _normalize_heads(self, x: str, heads: int, module: str, name: str) -> str:
        graph, size = self._graph, self.head_dim
        factor = self._norm(module, name)
        x = graph.node("Reshape", [x, graph.constant([0, 0, heads, size])], f"{name}/heads")
        x = self._normalize(x, factor, f"{name}/normed")
        return graph.node("Reshape", [x, graph.constant([0, 0, heads * size])], f"{name}/flat")

    def _skip(self, x: str, residual: str, factor: str, name: str, total: str) -> tuple[str, str]:
        """Return (the norm of x + residual, x + residual)."""
        outputs = self._graph.nodes_of(
            "SkipSimplifiedLayerNormalization",
            [x, residual, factor],
            [name, "", "", total],
            domain=MICROSOFT,
            epsilon=self._eps,
        )
        return outputs[0], outputs[3]
