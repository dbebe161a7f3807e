"""From tables to numbers with intervals: one text, two models.

Units of every interval are windows: the tokens of one text help each other, its windows hardly.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from soroq.bench.quality.sets import EvalSet
from soroq.bench.quality.stats import (
    Floats,
    Interval,
    mean_interval,
    quantile_interval,
    smallest_visible_mean,
)
from soroq.bench.quality.tables import BaseTable, QuantTable

WORST = 8
CONTEXT = 24  # tokens shown in front of a worst token


@dataclass(frozen=True)
class WorstToken:
    """A position where the models differ most: what stood there and what each expected."""

    kl: float
    context: str
    token: str
    nll_base: float
    nll: float
    base_expected: str
    kind: str
    position: int


class Share(NamedTuple):
    """A part of a text's tokens: nats a token; shares in [0, 1]; bits a byte only where the part
    is whole windows, else nan. In JSON a list in this order.
    """

    n_tokens: int
    delta_nll: float
    kl: float
    top1: float
    top5: float
    perplexity_base: float
    perplexity: float
    bits_per_byte_base: float
    bits_per_byte: float


@dataclass(frozen=True)
class TextResult:
    """One text: nats a token unless said; bits_per_byte of UTF-8.

    by_kind and by_position: name → Share; smallest_visible: the ΔNLL that these
    windows would have shown 4 times in 5; non_finite: positions with NaN or infinity.
    """

    name: str
    n_tokens: int
    n_windows: int
    perplexity_base: float
    perplexity: float
    bits_per_byte_base: float
    bits_per_byte: float
    entropy_base: float
    delta_nll: Interval
    kl: Interval
    kl_p99: Interval
    kl_max: float
    top1: Interval
    top5: Interval
    smallest_visible: float
    non_finite: int
    by_kind: dict[str, Share]
    by_position: dict[str, Share]
    window_nll_base: list[float]
    window_nll: list[float]
    window_kl: list[float]
    window_top1: list[float]
    window_top5: list[float]
    worst: list[WorstToken]


def compare_text(
    eval_set: EvalSet, base: BaseTable, quant: QuantTable, tokenizer: Any, *, level: float = 0.95
) -> TextResult:
    """Sum up what two models' tables say about a set; tokenizer shows the worst tokens."""
    shape = eval_set.scored.shape
    scored = eval_set.scored
    weight = scored.double()
    nll_base, nll, kl = (t.double().view(shape) for t in (base.nll, quant.nll, quant.kl))
    finite = torch.isfinite(nll) & torch.isfinite(kl)
    broken = int((scored & ~finite).sum())
    n = int(scored.sum())
    per_window = weight.sum(1)

    def by_window(values: torch.Tensor) -> Floats:
        return ((values * weight).nan_to_num().sum(1) / per_window).numpy()

    delta = by_window(nll) - by_window(nll_base)
    total_bytes = float(eval_set.n_bytes.sum())
    mean_base = float((nll_base * weight).sum() / n)
    mean = float((nll * weight).sum() / n) if not broken else math.nan
    window_kl = by_window(kl)
    top1 = by_window(quant.top1.double().view(shape))
    top5 = by_window(quant.top5.double().view(shape))
    return TextResult(
        name=eval_set.name,
        n_tokens=n,
        n_windows=shape[0],
        perplexity_base=math.exp(mean_base),
        perplexity=_perplexity(mean),
        bits_per_byte_base=mean_base * n / math.log(2) / total_bytes,
        bits_per_byte=mean * n / math.log(2) / total_bytes,
        entropy_base=float((base.entropy.double().view(shape) * weight).sum() / n),
        delta_nll=mean_interval(delta, level=level),
        kl=mean_interval(window_kl, level=level),
        kl_p99=quantile_interval(kl_by_window(eval_set, quant), 0.99, level=level),
        kl_max=float(kl[scored].max()),
        top1=mean_interval(top1, level=level),
        top5=mean_interval(top5, level=level),
        smallest_visible=smallest_visible_mean(delta, level=level),
        non_finite=broken,
        by_kind=_by_kind(eval_set, base, quant),
        by_position=_by_position(eval_set, base, quant),
        window_nll_base=by_window(nll_base).tolist(),
        window_nll=by_window(nll).tolist(),
        window_kl=window_kl.tolist(),
        window_top1=top1.tolist(),
        window_top5=top5.tolist(),
        worst=_worst(eval_set, base, nll, kl, tokenizer),
    )


def kl_by_window(eval_set: EvalSet, quant: QuantTable) -> list[Floats]:
    """Return the divergence of every scored token, an array a window."""
    kl = quant.kl.double().view(eval_set.scored.shape)
    return [row[mask].numpy() for row, mask in zip(kl, eval_set.scored, strict=True)]


def _perplexity(nll: float) -> float:
    return math.exp(nll) if not nll > 700 else math.inf


def _share(
    mask: torch.Tensor, base: BaseTable, quant: QuantTable, n_bytes: float = math.nan
) -> Share:
    """Sum up the positions in mask (n, seq_len − 1); n_bytes: of the text they are."""
    counted = mask.flatten()
    columns = (base.nll, quant.nll, quant.kl, quant.top1, quant.top5)
    nll_base, nll, kl, top1, top5 = (float(c[counted].double().mean()) for c in columns)
    n = int(counted.sum())
    bits = n / math.log(2) / n_bytes if n_bytes else math.nan
    return Share(
        n, nll - nll_base, kl, top1, top5, _perplexity(nll_base), _perplexity(nll),
        nll_base * bits, nll * bits,
    )  # fmt: skip


def _by_kind(eval_set: EvalSet, base: BaseTable, quant: QuantTable) -> dict[str, Share]:
    result = {}
    for kind in sorted(set(eval_set.kinds)):
        rows = torch.tensor([k == kind for k in eval_set.kinds])
        n_bytes = float(eval_set.n_bytes[rows].sum())
        result[kind] = _share(eval_set.scored & rows[:, None], base, quant, n_bytes)
    return result


def _by_position(eval_set: EvalSet, base: BaseTable, quant: QuantTable) -> dict[str, Share]:
    """Group next-token positions 1–15, 16–63, 64–255, …: by fours, as error grows with context."""
    result = {}
    scored = eval_set.scored
    start, end, length = 0, 15, scored.shape[1]
    while start < length:
        mask = torch.zeros_like(scored)
        mask[:, start : min(end, length)] = True
        mask &= scored
        if bool(mask.any()):
            result[f"{start + 1}-{min(end, length)}"] = _share(mask, base, quant)
        start, end = end, end * 4 + 3
    return result


def _worst(
    eval_set: EvalSet, base: BaseTable, nll: torch.Tensor, kl: torch.Tensor, tokenizer: Any
) -> list[WorstToken]:
    shape = eval_set.scored.shape
    ranked = torch.where(eval_set.scored, kl, -1.0).nan_to_num(nan=math.inf).flatten()
    found = []
    for index in ranked.topk(min(WORST, eval_set.n_tokens)).indices.tolist():
        window, position = divmod(index, shape[1])
        ids = eval_set.ids[window]
        begin = max(1, position + 1 - CONTEXT)
        found.append(
            WorstToken(
                kl=float(kl[window, position]),
                context=tokenizer.decode(ids[begin : position + 1]),
                token=tokenizer.decode(ids[position + 1]),
                nll_base=float(base.nll[index]),
                nll=float(nll[window, position]),
                base_expected=tokenizer.decode(int(base.top_ids[index, 0])),
                kind=eval_set.kinds[window],
                position=position + 1,
            )
        )
    return found
