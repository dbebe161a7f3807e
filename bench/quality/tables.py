"""What one pass over a text leaves behind, position by position, and how two models compare.

The base model's distribution p at a position is kept as its TOP likeliest tokens and TAIL tokens
drawn from the rest (stratified over the cumulative distribution), never as 262,144 numbers. With
the other model's q at those tokens

    KL(p‖q) ≈ Σ_top (p log p/q − p + q) + P_tail · mean_tail(r − 1 − log r),   r = q / p

which is KL written with its zero-sum terms, so that every term is ≥ 0 and the second sum is an
unbiased estimate of what the tail adds. A model against itself gives exactly 0. (The estimator of
the tail is the k₃ of J. Schulman, "Approximating KL Divergence", 2020.)
"""

from dataclasses import dataclass, fields

import torch

TOP = 64
TAIL = 64
AGREE = 5  # top-5 agreement
ROWS = 16  # positions summarized at once: their distributions exist several times over


@dataclass(frozen=True)
class BaseTable:
    """The base model on P = n · (seq_len − 1) positions, all (P, …).

    nll (P,): −log p of the text's next token, nats; top_ids, top_logp (P, TOP), likeliest first;
    tail_ids, tail_logp (P, TAIL): drawn from the rest; tail_mass (P,): probability of the rest;
    entropy (P,): of p, nats.
    """

    nll: torch.Tensor
    top_ids: torch.Tensor
    top_logp: torch.Tensor
    tail_ids: torch.Tensor
    tail_logp: torch.Tensor
    tail_mass: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True)
class QuantTable:
    """The other model on the same positions: nll and kl (P,) in nats, top1 (P,) whether the
    likeliest token is the same, top5 (P,) the share of the base's five likeliest among its own.
    """

    nll: torch.Tensor
    kl: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor


def base_rows(log_p: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> BaseTable:
    """Summarize log-probabilities (p, vocabulary) float32 at positions with next tokens (p,)."""
    pairs = zip(log_p.split(ROWS), targets.split(ROWS), strict=True)
    return join_base([_summarize(rows, wanted, generator) for rows, wanted in pairs])


def _summarize(log_p: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> BaseTable:
    vocabulary = log_p.shape[1]
    top_logp, top_ids = log_p.topk(min(TOP, vocabulary), dim=1)
    p = log_p.exp()
    entropy = -(p * log_p.clamp_min(-1e4)).sum(1)
    p.scatter_(1, top_ids, 0.0)
    mass = p.cumsum(1, dtype=torch.float64)
    tail_mass = mass[:, -1].clone()
    # one draw from each of TAIL equal parts of the rest's mass
    steps = torch.arange(TAIL, dtype=torch.float64)
    u = (steps + torch.rand(len(p), TAIL, dtype=torch.float64, generator=generator)) / TAIL
    tail_ids = torch.searchsorted(mass, u * tail_mass[:, None], right=True)
    tail_ids = tail_ids.clamp_max(vocabulary - 1)
    return BaseTable(
        nll=-log_p.gather(1, targets[:, None])[:, 0],
        top_ids=top_ids.int(),
        top_logp=top_logp,
        tail_ids=tail_ids.int(),
        tail_logp=log_p.gather(1, tail_ids),
        tail_mass=tail_mass.float(),
        entropy=entropy,
    )


def quant_rows(log_q: torch.Tensor, targets: torch.Tensor, base: BaseTable) -> QuantTable:
    """Compare log-probabilities (p, vocabulary) float32 with the base's rows at those positions."""
    top_ids, tail_ids = base.top_ids.long(), base.tail_ids.long()
    top_p = base.top_logp.double().exp()
    d = log_q.gather(1, top_ids).double() - base.top_logp.double()
    top_part = (top_p * (torch.expm1(d) - d)).sum(1)
    d = log_q.gather(1, tail_ids).double() - base.tail_logp.double()
    # where the base itself gives nothing, the mass is zero too
    tail_part = (torch.expm1(d) - d).nan_to_num(nan=0.0).mean(1)
    kl = top_part + torch.where(base.tail_mass > 0, base.tail_mass.double() * tail_part, 0.0)
    best = log_q.topk(min(AGREE, log_q.shape[1]), dim=1).indices
    agreed = (top_ids[:, :AGREE, None] == best[:, None, :]).any(2).float().mean(1)
    return QuantTable(
        nll=-log_q.gather(1, targets[:, None])[:, 0],
        kl=kl.float(),
        top1=top_ids[:, 0] == best[:, 0],
        top5=agreed,
    )


def join_base(parts: list[BaseTable]) -> BaseTable:
    """Put parts one under the other."""
    return BaseTable(**_joined(parts))


def join_quant(parts: list[QuantTable]) -> QuantTable:
    """Put parts one under the other."""
    return QuantTable(**_joined(parts))


def rows_of(table: BaseTable, span: slice) -> BaseTable:
    """Return some positions of a table."""
    return BaseTable(**{f.name: getattr(table, f.name)[span] for f in fields(table)})


def _joined(parts: list[BaseTable] | list[QuantTable]) -> dict[str, torch.Tensor]:
    names = [f.name for f in fields(parts[0])]
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
