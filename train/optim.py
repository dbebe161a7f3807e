"""Optimizers over the parameters that are learned: AdamW, or Muon for matrices and AdamW beside it.

Norms, biases and embeddings are not decayed. Muon (Jordan et al., 2024) orthogonalizes the update
of a matrix; embeddings and heads are no such matrices, so AdamW keeps them.
"""

from collections.abc import Callable, Iterable
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


class CodeAdam(torch.optim.Optimizer):
    """Adam with one second moment for each row of a matrix instead of one for each number.

    Parameters are codes (N, K), and a learning rate is in steps of the code. Adam moves each number
    about as far, whatever its gradient is, so that after some steps as many codes change that don't
    matter as such that do. With a row's mean square in the denominator (as Adam-mini has one for
    each block, arXiv 2406.16793) those move that have a gradient. It takes 4 bytes a number, not 8.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients that there are."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["row_avg_sq"] = parameter.new_zeros(parameter.shape[0], 1)
                state["step"] += 1
                n = float(state["step"])
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                square = parameter.grad.square().mean(1, keepdim=True)
                state["row_avg_sq"].lerp_(square, 1 - second)
                scale = (state["row_avg_sq"] / (1 - second**n)).sqrt_().add_(group["eps"])
                rate = group["lr"] / (1 - first**n)
                parameter.addcdiv_(state["exp_avg"], scale.expand_as(parameter), value=-rate)
