"""The end-to-end comparison feeds every program the same tokens and reads its logits rightly."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("soroq._cpu", reason="soroq._cpu is not built")

from soroq.bench.peers import decode_cpu
from soroq.bench.peers import race as racing
from soroq.bench.peers.decode_cpu import table
from soroq.bench.peers.players import Contender, Player, SoroqPlayer
from soroq.bench.peers.race import Lengths, Row, Speed, levels, perplexity, race, run
from soroq.bench.quality.sets import EvalSet

VOCABULARY = 8


class Counting:
    """A decoder that finds token t + 1 as likely as all others together, and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def rewind(self) -> None:
        self.calls.append(("rewind", []))

    def prefill(self, ids: torch.Tensor, *, all_logits: bool = False) -> torch.Tensor:
        self.calls.append(("prefill", ids.tolist()))
        logits = torch.zeros(len(ids), VOCABULARY)
        logits[torch.arange(len(ids)), (ids + 1) % VOCABULARY] = math.log(VOCABULARY - 1)
        return logits if all_logits else logits[-1]

    def best(self, ids: torch.Tensor) -> None:
        self.calls.append(("best", ids.tolist()))


def play(decoder: Counting) -> SoroqPlayer:
    player = SoroqPlayer.__new__(SoroqPlayer)
    player._decoder = decoder
    return player


def two_windows() -> EvalSet:
    ids = torch.tensor([[2, 3, 4], [2, 6, 7]])
    scored = torch.ones(2, 2, dtype=torch.bool)
    return EvalSet("tg", ids, scored, torch.tensor([9, 9]), ("other", "other"))


def test_decoding_goes_on_behind_the_depth_token_by_token() -> None:
    decoder = Counting()
    run(play(decoder), [2, 3, 4, 5, 6], Lengths(prefill=4, decode=2, depth=3))
    assert decoder.calls == [
        ("rewind", []),
        ("prefill", [2, 3, 4, 5]),
        ("rewind", []),
        ("prefill", [2, 3, 4]),
        ("best", [5]),
        ("best", [6]),
    ]


@pytest.mark.parametrize("stepwise", [False, True])
def test_perplexity_is_of_each_window_begun_anew(stepwise: bool) -> None:
    decoder = Counting()
    found = perplexity(partial(play(decoder).logits, stepwise=stepwise), two_windows())
    unlikely = math.log(2 * (VOCABULARY - 1))  # one of the 7 that share the other half
    assert math.log(found) == pytest.approx((3 * math.log(2) + unlikely) / 4)
    steps = ["prefill"] * (2 if stepwise else 1)
    assert [call for call, _ in decoder.calls] == ["rewind", *steps] * 2


def test_levels_are_perplexity_divergence_and_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "ROWS", 1)
    random = np.random.default_rng(0)
    truth = {2: random.normal(size=VOCABULARY), 3: random.normal(size=VOCABULARY)}
    truth[6] = random.normal(size=VOCABULARY)
    padded = random.normal(size=(7, VOCABULARY + 2))

    def original(ids: Sequence[int]) -> Any:
        return np.stack([truth[i] for i in ids]).astype(np.float32)

    def other(ids: Sequence[int]) -> Any:
        return np.stack([padded[i] for i in ids]).astype(np.float32)

    windows = two_windows()
    found = levels({"same": original, "other": other}, original, windows)
    assert found["same"]["kl"] == 0 and found["same"]["top1"] == 1
    nats, kl, same = [], [], []
    for window in windows.ids.tolist():
        for token, target in zip(window, window[1:], strict=False):
            p = np.exp(truth[token]) / np.exp(truth[token]).sum()
            logits = padded[token][:VOCABULARY]
            q = np.exp(logits) / np.exp(logits).sum()
            nats.append(-math.log(q[target]))
            kl.append(float((p * np.log(p / q)).sum()))
            same.append(p.argmax() == q.argmax())
    assert found["other"]["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert found["other"]["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert found["other"]["top1"] == pytest.approx(np.mean(same), abs=1e-4)


class Idle(Player):
    """Does nothing."""

    def rewind(self) -> None: ...

    def feed(self, ids: Sequence[int]) -> None: ...

    def close(self) -> None: ...

    def _rows(self, ids: Sequence[int]) -> Any:
        return np.zeros((len(ids), VOCABULARY), np.float32)


def test_table_pairs_prefill_and_decode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decode_cpu.ceilings, "read_gb_s", lambda threads: 50.0)
    monkeypatch.setattr(racing, "rest", lambda: None)
    (tmp_path / "weights").write_bytes(b"\0" * 250_000)
    rows = [
        Row(Contender(name, "soroq", name.split()[0], str(tmp_path)), Idle())
        for name in ("soroq q", "llama.cpp Q4_0 e8")
    ]
    lengths = Lengths(512, 128, 1)
    race(rows, list(range(600)), lengths, 3)
    assert [len(row.speeds) for row in rows] == [3, 3]
    for row, seconds in zip(rows, (0.001, 0.002), strict=True):
        row.speeds = [Speed(seconds, 2 * seconds)] * 3
    entries = decode_cpu.records(rows, lengths, 2, {})
    assert [entry["phase"] for entry in entries] == ["prefill", "decode"] * 2
    said = table(entries).splitlines()
    rate, fast = "512000 (512000–512000)", "64000.0 (64000.0–64000.0)"
    assert said[2] == f"| soroq q | 2 | 0 | {rate} | {fast} | 0.32 |"
    assert said[3].startswith("| llama.cpp Q4_0 e8 | 2 | 0 | 256000 ")
