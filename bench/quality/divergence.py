"""Perplexity of two models and the divergence between them, on the same tokens.

Per scored position t with base p and other q: NLL = −log q(x_t), KL(p‖q) = Σ_v p log(p/q) in nats,
top-1 agreement = [argmax p = argmax q]. A model runs once to its final hidden states (n,
L, hidden), which are kept; logits are formed chunk by chunk, so that two heads 262,144 wide never
meet in full.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

CHUNK = 256


@dataclass(frozen=True)
class Outputs:
    """Final hidden states (n, seq_len, hidden) of one model, and its head (vocabulary, hidden)."""

    hidden: torch.Tensor
    head: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """Means over scored tokens; delta_nll_se is the standard error over windows, paired."""

    n_tokens: int
    nll_base: float
    nll: float
    delta_nll: float
    delta_nll_se: float
    kl: float
    kl_p99: float
    kl_max: float
    top1: float

    @property
    def perplexity_base(self) -> float:
        return math.exp(self.nll_base)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


def run_model(model: Any, ids: torch.Tensor, batch: int = 4) -> Outputs:
    """Return what a causal model makes of ids (n, seq_len), in float32."""
    parts = []
    with torch.inference_mode():
        for rows in ids.split(batch):
            parts.append(model.model(input_ids=rows, use_cache=False).last_hidden_state.float())
        head = model.lm_head
        weight = head.weight if hasattr(head, "weight") else head.dense()
    return Outputs(torch.cat(parts), weight.detach().float())


def compare(base: Outputs, other: Outputs, ids: torch.Tensor) -> Comparison:
    """Compare two models' outputs on ids (n, seq_len); every token but the first is scored."""
    n, seq_len = ids.shape
    targets = ids[:, 1:].reshape(-1)
    hidden_base = base.hidden[:, :-1].flatten(0, 1)
    hidden = other.hidden[:, :-1].flatten(0, 1)
    columns: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, targets.numel(), CHUNK):
            span = slice(start, start + CHUNK)
            log_p = (hidden_base[span] @ base.head.t()).log_softmax(-1)
            log_q = (hidden[span] @ other.head.t()).log_softmax(-1)
            picked = targets[span, None]
            columns.append(
                torch.stack(
                    [
                        -log_p.gather(1, picked)[:, 0],
                        -log_q.gather(1, picked)[:, 0],
                        (log_p.exp() * (log_p - log_q)).sum(-1),
                        (log_p.argmax(-1) == log_q.argmax(-1)).float(),
                    ]
                )
            )
    nll_base, nll, kl, same = torch.cat(columns, 1).double()
    delta = (nll - nll_base).view(n, seq_len - 1).mean(1)
    return Comparison(
        n_tokens=targets.numel(),
        nll_base=float(nll_base.mean()),
        nll=float(nll.mean()),
        delta_nll=float(delta.mean()),
        delta_nll_se=float(delta.std() / n**0.5) if n > 1 else float("nan"),
        kl=float(kl.mean()),
        kl_p99=float(kl.quantile(0.99)),
        kl_max=float(kl.max()),
        top1=float(same.mean()),
    )
