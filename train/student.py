"""Student and teacher of quantization-aware training: a quantized model and its original.

The student is a quantized checkpoint's text decoder whose integer linears are `FakeQuantLinear`s;
codes, scales and norms learn, embedding and head stay. Its loss is the divergence of its next-token
distribution from the original's, over the tokens that the run will see and those that the original
finds likely there: no label is needed, and a small text does (LLM-QAT, arXiv 2305.17888).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from soroq.core.errors import CheckpointError, SchemeError
from soroq.core.qtensor import QuantizedTensor
from soroq.io.checkpoint import Checkpoint
from soroq.io.stored import StoredWeights
from soroq.models.registry import find_layout
from soroq.models.runner import build_skeleton
from soroq.train.config import QatConfig, TrainConfig
from soroq.train.fake_quant import FakeQuantLinear
from soroq.train.loss import IGNORED, chunked_divergence
from soroq.train.metrics import flops_per_token
from soroq.train.model import LossModel
from soroq.train.optim import Optimizers
from soroq.train.packing import Packed

BETAS = (0.9, 0.95)
TOP = 64  # likely tokens at each sampled position that join the candidates
SAMPLED_POSITIONS = 2048
LEAST_ALIKE = 0.2  # cosine of a weight and its rounding; a fold in between moves it, an order more


class Student(LossModel):
    """A quantized model that returns Σ KL(original ‖ it) over the labels to be learned.

    candidates int64 (C,): the tokens that both distributions are over.
    """

    def __init__(
        self,
        model: Any,
        teacher: Any,
        candidates: torch.Tensor,
        compute: torch.dtype,
        qat: QatConfig,
    ) -> None:
        super().__init__(model, compute)
        self._qat = qat
        self._teacher = (teacher,)  # in a tuple: it is no part of what is trained or kept
        self._head: torch.Tensor
        self._original: torch.Tensor
        self.register_buffer("_head", model.lm_head.weight.detach()[candidates].float())
        self.register_buffer("_original", teacher.lm_head.weight.detach()[candidates].float())

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over tokens, positions, labels int64 (n, seq_len), float32."""
        learned = labels != IGNORED
        with torch.no_grad():
            wanted = hidden_states(self._teacher[0], tokens, positions, self.compute)[learned]
        hidden = hidden_states(self.model, tokens, positions, self.compute)[learned]
        # Logits in bfloat16 would be off by as much as the divergence is.
        return chunked_divergence(hidden.float(), self._head, wanted.float(), self._original)

    def optimizers(self, train: TrainConfig) -> Optimizers:
        """Return Adam over codes, scales and norms, each at a rate of its own."""
        groups: dict[str, list[nn.Parameter]] = {"latent": [], "delta": [], "other": []}
        for name, parameter in self.learned():
            kind = name.rpartition(".")[2]
            groups[kind if kind in groups else "other"].append(parameter)
        peak, qat = train.learning_rate, self._qat
        rates = {"latent": peak, "delta": qat.scale_rate, "other": qat.norm_rate}
        given = [{"params": groups[k], "share": rate / peak} for k, rate in rates.items()]
        return Optimizers([torch.optim.Adam(given, lr=peak, betas=BETAS, fused=True)])

    def flops_per_token(self, keys: float) -> float:
        """Return the operations of a training step, and of the original's forward pass."""
        linear = sum(p.numel() for n, p in self.learned() if n.endswith(".latent"))
        step = flops_per_token(self.config, linear, self._head.numel(), keys, 1.0)
        return step * 4 / 3

    def to(self, *args: Any, **kwargs: Any) -> "Student":
        self._teacher[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)


def hidden_states(
    model: Any, tokens: torch.Tensor, positions: torch.Tensor, compute: torch.dtype
) -> torch.Tensor:
    """Return what the head gets (n, seq_len, hidden), products computed in `compute`."""
    with torch.autocast(tokens.device.type, compute, enabled=compute != torch.float32):
        hidden: torch.Tensor = model.model(
            input_ids=tokens, position_ids=positions, use_cache=False
        ).last_hidden_state
    return hidden


def build_student(start: Checkpoint, original: Checkpoint) -> Any:
    """Return the causal model of a quantized checkpoint with FakeQuantLinears in it, float32.

    Raises CheckpointError when it isn't quantized, or not a quantized `original`; SchemeError for
    numbers that can't be trained.
    """
    if not start.config.get("quantization_config"):
        raise CheckpointError(
            f"{start.path} is not quantized; qat.start is what soroq quantize wrote"
        )
    layout = find_layout(start.config, set(start.names()))
    other = find_layout(original.config, set(original.names()))
    if shape_of(layout.text_config) != shape_of(other.text_config):
        raise CheckpointError(f"{start.path} is not {original.path} quantized: config.json differs")
    model = build_skeleton(layout.text_config)
    stored, originals = StoredWeights(start), set(original.names())
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(start.names()) - stored.parts()):
        target = layout.text_name(name)
        if target is not None:
            state[target] = start.load(name, dtype=torch.float32)
    for module in sorted(stored.quantized):
        target = layout.text_name(module)
        if target is None:
            continue
        weight, activation, _ = stored.load_quantized(module)
        if module + ".weight" == layout.embedding or target == "lm_head":
            state[f"{target}.weight"] = weight.dequantize()
            continue
        _refuse_numbers(start, module, weight, activation)
        parent, _, child = target.rpartition(".")
        bias, name = state.pop(f"{target}.bias", None), f"{module}.weight"
        before = original.load(name) if name in originals else None
        if before is not None:
            _refuse_others(start, original, module, weight.dequantize(), before)
        linear = FakeQuantLinear(weight, bias, before)
        setattr(model.get_submodule(parent), child, linear)
        own = {f"{target}.{name}": value for name, value in linear.state_dict().items()}
        state |= own
    tied = bool(model.config.tie_word_embeddings)
    if tied:
        state.pop("lm_head.weight", None)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if tied:
        model.tie_weights()
        missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise CheckpointError(
            f"{start.path}: missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    for name, parameter in model.named_parameters():
        learned = name.endswith((".latent", ".delta")) or parameter.ndim == 1
        parameter.requires_grad_(learned)
    return model.train()


def _refuse_others(
    start: Checkpoint,
    original: Checkpoint,
    module: str,
    rounded: torch.Tensor,
    weight: torch.Tensor,
) -> None:
    """Raise CheckpointError when a weight (N, K) is plainly not `rounded` before its rounding."""
    rounded, weight = rounded.float().flatten(), weight.float().flatten()
    alike = float(rounded @ weight / (rounded.norm() * weight.norm()))  # nan where one is all zeros
    if alike < LEAST_ALIKE:
        raise CheckpointError(
            f"{start.path}: {module} is not {original.path}'s quantized (cosine {alike:.2f}): it "
            "is another model's, or its channels are in another order and soroq.json, which says "
            "so, is missing"
        )


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a text model's config.json decides its shape and what it computes."""
    others = {
        "quantization_config",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "architectures",
    }
    return {key: value for key, value in config.items() if key not in others}


def fake_linears(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """Yield the linears of a student by name."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear):
            yield name, module


def _refuse_numbers(
    start: Checkpoint, module: str, weight: QuantizedTensor, activation: Any
) -> None:
    if weight.args.dtype != "int" or activation is not None or weight.has_real_zeros:
        raise SchemeError(
            f"{start.path}: {module} has no integer codes alone; qat trains int4 and int8 weights "
            "with integer zero points or none"
        )


@torch.no_grad()
def candidate_tokens(
    teacher: Any, sequences: Sequence[Packed], compute: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the tokens of all sequences and what the original finds likely in them, int64 (C,).

    The likely ones are the TOP at SAMPLED_POSITIONS positions, spread over the sequences.
    """
    seen = torch.cat([packed.tokens for packed in sequences]).unique()
    stride = max(1, len(sequences) * len(sequences[0].tokens) // SAMPLED_POSITIONS)
    every = max(1, len(sequences) * 16 // SAMPLED_POSITIONS)  # 16 positions or more of a sequence
    found = [seen]
    for packed in sequences[::every]:
        tokens, positions = packed.tokens[None].to(device), packed.positions[None].to(device)
        hidden = hidden_states(teacher, tokens, positions, compute)[0, :: max(1, stride // every)]
        logits = hidden.to(compute) @ teacher.lm_head.weight.detach().to(compute).T
        found.append(logits.topk(min(TOP, logits.shape[-1])).indices.flatten().cpu().unique())
    candidates: torch.Tensor = torch.cat(found).unique()
    return candidates
