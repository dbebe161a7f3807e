"""The race of whole models: everybody in one process, in turn, on the same tokens.

Prefill is one call with all tokens, for the last one's logits; decode is a call a token, for that
token's logits, behind `depth` others. `levels` compares all logits on whole windows of text.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from soroq.bench.kernels.cpu_race import order, rest, summarize
from soroq.bench.peers.players import Contender, Player
from soroq.bench.quality.sets import EvalSet

ROWS = 64  # logits compared at once


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prefill, of a run of decoding, and before the decoded ones."""

    prefill: int = 512
    decode: int = 128
    depth: int = 1

    @property
    def needed(self) -> int:
        return max(self.prefill, self.depth + self.decode)


@dataclass(frozen=True)
class Speed:
    """Seconds of one prefill and of one run of decoding."""

    prefill_s: float
    decode_s: float


@dataclass
class Row:
    """A contender, loaded, and how fast it was each time."""

    contender: Contender
    player: Player
    speeds: list[Speed] = field(default_factory=list)


def run(player: Player, ids: Sequence[int], lengths: Lengths) -> Speed:
    """Time one prefill and one run of decoding."""
    player.rewind()
    begin = time.perf_counter()
    player.feed(ids[: lengths.prefill])
    prefill_s = time.perf_counter() - begin
    player.rewind()
    if lengths.depth:
        player.feed(ids[: lengths.depth])
    begin = time.perf_counter()
    for token in ids[lengths.depth : lengths.depth + lengths.decode]:
        player.feed([token])
    return Speed(prefill_s, time.perf_counter() - begin)


def race(rows: Sequence[Row], ids: Sequence[int], lengths: Lengths, repeats: int) -> None:
    """Run everybody once to warm up, then in turn."""
    by_name = {row.contender.name: row for row in rows}
    for row in rows:
        run(row.player, ids, lengths)
    for turn in range(repeats):
        for name in order(list(by_name), turn):
            rest()
            by_name[name].speeds.append(run(by_name[name].player, ids, lengths))


def speed_entries(row: Row, lengths: Lengths, read_gb_s: float) -> list[dict[str, Any]]:
    """Return an entry of prefill and one of decode, in tokens a second.

    The floor of a token is the time that reading all weights takes at the measured bandwidth.
    """
    found = []
    nbytes = row.contender.model_bytes()
    for phase, n_tokens in (("prefill", lengths.prefill), ("decode", lengths.decode)):
        samples = [n_tokens / getattr(speed, f"{phase}_s") for speed in row.speeds]
        entry: dict[str, Any] = {
            "kernel": row.contender.name,
            "peer": row.contender.peer,
            "phase": phase,
            "n_tokens": n_tokens,
            "depth": lengths.depth if phase == "decode" else 0,
            "unit": "tokens/s",
            "bytes": nbytes,
            "read_gb_s": round(read_gb_s, 2),
        } | summary(samples, 2)
        if phase == "decode":
            floor = read_gb_s * 1e9 / nbytes  # tokens a second
            entry |= {"floor": round(floor, 1), "fraction": round(entry["median"] / floor, 4)}
        found.append(entry)
    return found


def summary(samples: Sequence[float], digits: int) -> dict[str, Any]:
    """Return raw samples, their median and 20th and 80th percentile, rounded."""
    found = summarize(samples)
    return {
        "samples": [round(sample, digits) for sample in samples],
        "median": round(found.median, digits),
        "p20": round(found.p20, digits),
        "p80": round(found.p80, digits),
    }


def perplexity(logits: Callable[[Sequence[int]], Any], windows: EvalSet) -> float:
    """Return exp of the nats a token, each window begun anew."""
    total = 0.0
    for row in windows.ids.tolist():
        for likely, target in zip(logits(row[:-1]), row[1:], strict=True):
            log_probs = torch.as_tensor(likely).double().log_softmax(0)
            total -= float(log_probs[target])
    return math.exp(total / windows.n_tokens)


@dataclass
class Level:
    """Sums over the scored tokens of a text: nats, KL(original ‖ model), equal likeliest tokens."""

    nats: float = 0.0
    kl: float = 0.0
    same: int = 0
    n: int = 0

    def facts(self) -> dict[str, float]:
        """Return the averages a token."""
        return {
            "perplexity": round(math.exp(self.nats / self.n), 4),
            "kl": round(self.kl / self.n, 6),
            "top1": round(self.same / self.n, 4),
        }


def levels(
    logits: Mapping[str, Callable[[Sequence[int]], Any]],
    original: Callable[[Sequence[int]], Any],
    windows: EvalSet,
) -> dict[str, dict[str, float]]:
    """Return perplexity and, against the original's logits, KL in nats and top-1 agreement."""
    found = {name: Level() for name in logits}
    for row in windows.ids.tolist():
        truth = torch.as_tensor(original(row[:-1])).log_softmax(1)
        targets = torch.tensor(row[1:])
        for name, call in logits.items():
            said = torch.as_tensor(call(row[:-1]))
            if said.shape != truth.shape:
                said = said[:, : truth.shape[1]]  # some pad the vocabulary
            for at in range(0, len(targets), ROWS):
                part = slice(at, at + ROWS)
                _add(found[name], truth[part], said[part], targets[part])
    return {name: level.facts() for name, level in found.items()}


def _add(level: Level, truth: torch.Tensor, said: torch.Tensor, targets: torch.Tensor) -> None:
    """Add rows: truth holds log-probabilities, said logits."""
    p, q = truth, said.float().log_softmax(1)
    level.nats -= float(q.gather(1, targets[:, None]).double().sum())
    level.kl += float((p.exp() * (p - q)).sum(1).double().sum())
    level.same += int((truth.argmax(1) == said.argmax(1)).sum())
    level.n += len(targets)


def text_ids(texts: Mapping[str, EvalSet], n: int) -> list[int]:
    """Return n token ids: running text if there is one."""
    found = [int(token) for windows in texts.values() for token in windows.ids.flatten()]
    random = torch.Generator().manual_seed(0)
    found += torch.randint(1000, 200_000, (n,), generator=random).tolist()
    return [2, *found[1:n]]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, *rows]
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([texts[0], "| --- " * len(head) + "|", *texts[1:]]) + "\n"


def spread(entry: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    """Return "median (p20–p80)"."""
    middle, low, high = (f"{entry[key] * scale:.{digits}f}" for key in ("median", "p20", "p80"))
    return f"{middle} ({low}–{high})"
