"""The model that is trained: transformers' own, in float32, with the loss inside its forward.

    checkpoint = open_checkpoint("gemma3-270m")
    model = LossModel(build_model(checkpoint, torch.float32), torch.bfloat16)
    model(tokens, positions, labels).backward()

The loss is part of the forward so that a sharded model (FSDP2) has its head's weight at hand there.
Weights, gradients and the optimizer's state are float32; products are computed in `compute`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from soroq.core.errors import CheckpointError
from soroq.io.checkpoint import Checkpoint
from soroq.models.registry import find_layout
from soroq.models.runner import build_skeleton
from soroq.train.config import TrainConfig
from soroq.train.loss import chunked_cross_entropy
from soroq.train.metrics import flops_per_token
from soroq.train.optim import Optimizers, make_optimizers


def build_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return the causal model of a checkpoint with all weights in `dtype`.

    Raises CheckpointError for a quantized one, an architecture that isn't known, or tensors that
    don't fit config.json.
    """
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(f"{checkpoint.path} is quantized; train the original, quantize after")
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    model = build_skeleton(layout.text_config)
    if getattr(model.config, "final_logit_softcapping", None):
        raise CheckpointError(f"{checkpoint.path}: final_logit_softcapping can't be trained here")
    tied = bool(model.config.tie_word_embeddings)
    state: dict[str, torch.Tensor] = {}
    for name in checkpoint.names():
        target = layout.text_name(name)
        if target is not None and not (tied and target == "lm_head.weight"):
            state[target] = checkpoint.load(name, dtype=dtype)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path} does not fit its config.json: {reason}") from None
    if tied:
        model.tie_weights()
        missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path}: missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.train()


class LossModel(nn.Module):
    """A causal model that returns its loss: Σ −log p(label) over the labels to be learned."""

    def __init__(self, model: Any, compute: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over tokens, positions, labels int64 (n, seq_len), float32."""
        device = tokens.device.type
        with torch.autocast(device, self.compute, enabled=self.compute != torch.float32):
            hidden = self.model.model(
                input_ids=tokens, position_ids=positions, use_cache=False
            ).last_hidden_state
        rows = hidden.flatten(0, 1).to(self.compute)
        return chunked_cross_entropy(rows, self.model.lm_head.weight, labels.flatten())

    @property
    def config(self) -> Any:
        return self.model.config

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, by its name in the text-only model."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def optimizers(self, train: TrainConfig) -> Optimizers:
        """Return what steps the parameters that are learned."""
        return make_optimizers(self.model, train.optimizer, train.learning_rate, train.weight_decay)

    def flops_per_token(self, keys: float) -> float:
        """Return the floating-point operations a token takes that sees so many, on the average."""
        blocks = self.model.model.layers.named_parameters()
        linear = sum(p.numel() for _, p in blocks if p.ndim == 2)
        share = sum(p.numel() for _, p in self.learned())
        share /= sum(p.numel() for p in self.model.parameters())
        return flops_per_token(self.config, linear, self.model.lm_head.weight.numel(), keys, share)

    def checkpoint_activations(self) -> None:
        """Keep only what goes into each block, and run it again for its gradient."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type that products are computed in: of `train.compute`."""
    if name == "auto":
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
