"""The end-to-end comparison feeds every program the same tokens and reads its logits rightly."""

import argparse
import math
from functools import partial

import pytest
import torch

pytest.importorskip("soroq._cpu", reason="soroq._cpu is not built")

from soroq.bench.peers import decode_cpu
from soroq.bench.peers.decode_cpu import (
    Row,
    Speed,
    perplexity,
    race,
    run_soroq,
    soroq_logits,
    table,
)
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


def test_decoding_goes_on_behind_the_depth_token_by_token() -> None:
    decoder = Counting()
    run_soroq(decoder, [2, 3, 4, 5, 6], 4, 2, 3)
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
    ids = torch.tensor([[2, 3, 4], [2, 6, 7]])
    scored = torch.ones(2, 2, dtype=torch.bool)
    windows = EvalSet("tg", ids, scored, torch.tensor([9, 9]), ("other", "other"))
    decoder = Counting()
    found = perplexity(partial(soroq_logits, decoder, stepwise=stepwise), windows)
    unlikely = math.log(2 * (VOCABULARY - 1))  # one of the 7 that share the other half
    assert math.log(found) == pytest.approx((3 * math.log(2) + unlikely) / 4)
    steps = ["prefill"] * (2 if stepwise else 1)
    assert [call for call, _ in decoder.calls] == ["rewind", *steps] * 2


def test_table_pairs_prefill_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cpu.ceilings, "read_gb_s", lambda threads: 50.0)
    monkeypatch.setattr(decode_cpu, "rest", lambda: None)
    speeds = {"soroq q": Speed(0.5, 1.0), "llama.cpp Q4_0 e8": Speed(1.0, 2.0)}
    rows = [
        Row(name, name.split()[0], 250_000_000, lambda s=speed: s, lambda ids: torch.zeros(1))
        for name, speed in speeds.items()
    ]
    race(rows, 3)
    assert [len(row.speeds) for row in rows] == [3, 3]
    options = argparse.Namespace(prefill=512, decode=128, depth=1, stepwise=False)
    entries = decode_cpu.records(rows, options, 2, {})
    assert [entry["phase"] for entry in entries] == ["prefill", "decode"] * 2
    said = table(entries).splitlines()
    assert said[2] == "| soroq q | 2 | 250 | 1024 (1024–1024) | 128.0 (128.0–128.0) | 0.64 |"
    assert said[3].startswith("| llama.cpp Q4_0 e8 | 2 | 250 | 512 ")
