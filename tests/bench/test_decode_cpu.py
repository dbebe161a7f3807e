"""The end-to-end comparison feeds every program the same tokens and reads its logits rightly."""

import argparse
import math
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("soroq._cpu", reason="soroq._cpu is not built")

from soroq.bench.peers import decode_cpu
from soroq.bench.peers.decode_cpu import Row, Speed, race, run_soroq, soroq_nll, table
from soroq.bench.quality.sets import EvalSet

VOCABULARY = 8


class Counting:
    """A decoder that finds token t + 1 as likely as all others together, and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def prefill(self, ids: Sequence[int]) -> torch.Tensor:
        self.calls.append(("prefill", list(ids)))
        return self._logits(ids[-1])

    def decode(self, ids: Sequence[int]) -> torch.Tensor:
        self.calls.append(("decode", list(ids)))
        return self._logits(ids[-1])

    def _logits(self, token: int) -> torch.Tensor:
        logits = torch.zeros(1, VOCABULARY)
        logits[0, (token + 1) % VOCABULARY] = math.log(VOCABULARY - 1)
        return logits


def test_decoding_goes_on_behind_the_depth_token_by_token() -> None:
    decoder = Counting()
    run_soroq(decoder, [2, 3, 4, 5, 6], 4, 2, 3)
    assert decoder.calls == [
        ("prefill", [2, 3, 4, 5]),
        ("prefill", [2, 3, 4]),
        ("decode", [5]),
        ("decode", [6]),
    ]


def test_nats_are_of_each_window_begun_anew() -> None:
    ids = torch.tensor([[2, 3, 4], [2, 6, 7]])
    scored = torch.ones(2, 2, dtype=torch.bool)
    windows = EvalSet("tg", ids, scored, torch.tensor([9, 9]), ("other", "other"))
    decoder = Counting()
    unlikely = math.log(2 * (VOCABULARY - 1))  # the half that 7 others share
    assert soroq_nll(decoder, windows) == pytest.approx((3 * math.log(2) + unlikely) / 4)
    assert [call for call, _ in decoder.calls] == ["prefill", "decode"] * 2


def test_table_pairs_prefill_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cpu.ceilings, "read_gb_s", lambda threads: 50.0)
    monkeypatch.setattr(decode_cpu, "rest", lambda: None)
    speeds = {"soroq q": Speed(0.5, 1.0), "llama.cpp Q4_0 e8": Speed(1.0, 2.0)}
    rows = [
        Row(name, name.split()[0], 250_000_000, lambda s=speed: s, lambda windows: 0.0)
        for name, speed in speeds.items()
    ]
    race(rows, 3)
    assert [len(row.speeds) for row in rows] == [3, 3]
    options = argparse.Namespace(prefill=512, decode=128, depth=1)
    entries = decode_cpu.records(rows, options, 2, {})
    assert [entry["phase"] for entry in entries] == ["prefill", "decode"] * 2
    said = table(entries).splitlines()
    assert said[2] == "| soroq q | 2 | 250 | 1024 (1024–1024) | 128.0 (128.0–128.0) | 0.64 |"
    assert said[3].startswith("| llama.cpp Q4_0 e8 | 2 | 250 | 512 ")
