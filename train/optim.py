"""Optimizers over the parameters that are learned: AdamW, or Muon for matrices and AdamW beside it.

Norms, biases and embeddings are not decayed. Muon (Jordan et al., 2024) orthogonalizes the update
of a matrix; embeddings and heads are no such matrices, so AdamW keeps them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)
MUON_RATE = "match_rms_adamw"  # scales Muon's steps to AdamW's, so both take one learning rate


class Optimizers:
    """One or two torch optimizers that step together."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    def step(self, rate: float) -> None:
        """Make one step at a learning rate, or a group's share of it, and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            part.step()
            part.zero_grad(set_to_none=True)


def make_optimizers(model: nn.Module, name: str, rate: float, weight_decay: float) -> Optimizers:
    """Return the optimizers of all parameters of `model` that want gradients."""
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in learned if is_matrix(n, p)]
    others = [p for n, p in learned if not is_matrix(n, p)]
    if name == "muon":
        muon: Any = torch.optim.Muon(
            matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn=MUON_RATE
        )
        return Optimizers([part for part in (muon, _adamw([(others, 0.0)], rate)) if part])
    adamw = _adamw([(matrices, weight_decay), (others, 0.0)], rate)
    return Optimizers([adamw] if adamw else [])


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Tell a linear's weight from norms, biases, embeddings and heads."""
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


def _adamw(
    groups: Iterable[tuple[list[nn.Parameter], float]], rate: float
) -> torch.optim.Optimizer | None:
    given = [{"params": params, "weight_decay": decay} for params, decay in groups if params]
    return torch.optim.AdamW(given, lr=rate, betas=BETAS, fused=True) if given else None
