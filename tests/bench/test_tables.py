"""The one-pass tables against the whole distribution in float64."""

import pytest
import torch

from soroq.bench.quality.tables import base_rows, join_base, quant_rows, rows_of

V, P = 3000, 400


def _models(noise: float, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.randn(P, V, dtype=torch.float64) * spread
    other = logits + noise * torch.randn(P, V, dtype=torch.float64)
    targets = torch.randint(0, V, (P,))
    return logits.log_softmax(1), other.log_softmax(1), targets


def _tables(log_p: torch.Tensor, log_q: torch.Tensor, targets: torch.Tensor, seed: int = 0):  # type: ignore[no-untyped-def]
    base = base_rows(log_p.float(), targets, torch.Generator().manual_seed(seed))
    return base, quant_rows(log_q.float(), targets, base)


@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("spread", [0.5, 3.0], ids=["flat", "peaked"])
def test_divergence_is_that_of_the_whole_vocabulary(noise: float, spread: float) -> None:
    log_p, log_q, targets = _models(noise, spread)
    exact = (log_p.exp() * (log_p - log_q)).sum(1)
    draws = torch.stack([_tables(log_p, log_q, targets, seed)[1].kl for seed in range(20)]).double()
    # unbiased: the mean over positions and draws, with four standard errors of its own
    means = draws.mean(1)
    error = float(means.std() / len(means) ** 0.5)
    assert abs(float(means.mean() - exact.mean())) < 4 * error + 1e-4 * float(exact.mean())
    # and one draw is good to a few percent over a few hundred positions
    assert abs(float(means[0] / exact.mean()) - 1) < 0.1


def test_a_model_against_itself_is_exactly_zero() -> None:
    log_p, _, targets = _models(0.0, 2.0)
    base, same = _tables(log_p, log_p, targets)
    assert float(same.kl.abs().max()) == 0.0
    assert bool(same.top1.all())
    assert float(same.top5.min()) == 1.0
    assert torch.equal(same.nll, base.nll)


def test_columns_are_what_they_say() -> None:
    log_p, log_q, targets = _models(0.5, 2.0)
    base, quant = _tables(log_p, log_q, targets)
    torch.testing.assert_close(base.nll.double(), -log_p[range(P), targets], rtol=1e-5, atol=1e-5)
    entropy = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(base.entropy.double(), entropy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quant.nll.double(), -log_q[range(P), targets], rtol=1e-5, atol=1e-5)
    assert torch.equal(quant.top1, log_p.argmax(1) == log_q.argmax(1))
    five = [
        len(set(a.tolist()) & set(b.tolist())) / 5
        for a, b in zip(log_p.topk(5).indices, log_q.topk(5).indices, strict=True)
    ]
    assert quant.top5.tolist() == pytest.approx(five)
    kept = log_p.topk(64).values.exp().sum(1)
    torch.testing.assert_close(base.tail_mass.double(), 1 - kept, rtol=1e-3, atol=1e-5)
    drawn = torch.gather(log_p, 1, base.tail_ids.long())
    torch.testing.assert_close(base.tail_logp.double(), drawn, rtol=1e-5, atol=1e-5)
    assert not bool((base.tail_ids[:, :, None] == base.top_ids[:, None, :]).any())


def test_a_vocabulary_smaller_than_the_table_is_exact() -> None:
    logits, other = torch.randn(50, 20), torch.randn(50, 20)
    targets = torch.randint(0, 20, (50,))
    log_p, log_q = logits.double().log_softmax(1), other.double().log_softmax(1)
    _, quant = _tables(log_p, log_q, targets)
    exact = (log_p.exp() * (log_p - log_q)).sum(1)
    torch.testing.assert_close(quant.kl.double(), exact, rtol=1e-4, atol=1e-5)


def test_joined_parts_are_the_whole() -> None:
    log_p, _, targets = _models(0.1, 1.0)
    base, _ = _tables(log_p, log_p, targets)
    again = join_base([rows_of(base, slice(0, 100)), rows_of(base, slice(100, None))])
    assert torch.equal(again.top_ids, base.top_ids)
    assert torch.equal(again.tail_mass, base.tail_mass)


def test_records_name_no_private_folders() -> None:
    from soroq.bench.record import command_line

    typed = [
        "/a/bin/soroq",
        "check",
        "cpu:/home/me/out",
        "--text",
        "tg=/data/valid.jsonl",
        "-n",
        "4",
    ]
    assert command_line(typed) == "soroq check cpu:out --text tg=valid.jsonl -n 4"
    assert command_line(["x.py", "--who", "4b down", "out/a"]) == "x.py --who 4b down out/a"
