"""Perplexity and divergence against their definitions in float64, and windows of text."""

from pathlib import Path

import pytest
import torch

from soroq.bench.quality.divergence import Outputs, compare, run_model
from soroq.bench.quality.windows import make_windows, read_texts
from soroq.core.errors import CalibrationError
from soroq.loading import load
from soroq.models.tiny import write_tiny_model


def test_numbers_equal_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (3, 20), generator=generator)
    base = Outputs(torch.randn(3, 20, 8, generator=generator), torch.randn(50, 8))
    other = Outputs(base.hidden + 0.1 * torch.randn(3, 20, 8), base.head)
    got = compare(base, other, ids)
    p = (base.hidden[:, :-1].double() @ base.head.double().T).softmax(-1)
    q = (other.hidden[:, :-1].double() @ other.head.double().T).softmax(-1)
    target = ids[:, 1:, None]
    nll_p, nll_q = -p.gather(-1, target).log(), -q.gather(-1, target).log()
    kl = (p * (p / q).log()).sum(-1)
    assert got.n_tokens == 57
    assert got.nll_base == pytest.approx(float(nll_p.mean()), rel=1e-5)
    assert got.delta_nll == pytest.approx(float((nll_q - nll_p).mean()), abs=1e-5)
    assert got.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert got.kl_max == pytest.approx(float(kl.max()), rel=1e-4)
    assert got.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    windows = (nll_q - nll_p).mean((1, 2))
    assert got.delta_nll_se == pytest.approx(float(windows.std() / 3**0.5), rel=1e-3)


def test_nll_equals_the_loss_that_transformers_computes(tmp_path: Path) -> None:
    model = load(write_tiny_model(tmp_path))
    ids = torch.randint(4, 260, (4, 33))
    outputs = run_model(model, ids)
    got = compare(outputs, outputs, ids)
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert got.nll == pytest.approx(loss, rel=1e-4)
    assert got.delta_nll == 0
    assert got.kl == pytest.approx(0, abs=1e-6)
    assert got.top1 == 1


def test_windows_hold_each_token_once_behind_bos() -> None:
    ids = make_windows(["abcdefgh", "ij"], lambda t: list(t.encode()), bos=2, seq_len=5)
    assert ids[:, 0].tolist() == [2, 2, 2]
    assert bytes(ids[:, 1:].flatten().tolist()) == b"abcdefgh\n\nij"


def test_too_short_or_missing_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="one window needs 511"):
        make_windows(["a"], lambda t: [1], bos=2)
    with pytest.raises(CalibrationError, match="does not exist"):
        read_texts(tmp_path / "no.txt")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(CalibrationError, match="not readable as text"):
        read_texts(tmp_path / "bad.jsonl")
