"""Sequences out of documents: nothing is lost, nothing is seen across, any place is found again."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soroq.core.errors import CalibrationError
from soroq.io.checkpoint import open_checkpoint
from soroq.train.loss import IGNORED
from soroq.train.model import LossModel, build_model
from soroq.train.packing import Example, Packed, Packer, Stream

BOS = 2
# float32: the same products in matrices of another size are summed in another order.

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def _documents(sizes: list[int]) -> list[torch.Tensor]:
    """Return documents whose tokens, BOS aside, are all different."""
    documents, at = [], 10
    for size in sizes:
        documents.append(torch.tensor([BOS, *range(at, at + size - 1)], dtype=torch.int32))
        at += size
    return documents


@given(sizes=lengths, seq_len=st.integers(8, 40), seed=st.integers(0, 5))
def test_cut_reads_every_token_once_a_round(sizes: list[int], seq_len: int, seed: int) -> None:
    documents = _documents(sizes)
    stream = Stream(documents, seq_len, seed)
    seen: list[int] = []
    while stream.state()["epoch"] == 0:
        packed = stream.next()
        assert packed.n_tokens == seq_len
        seen += packed.tokens.tolist()
    whole = [t for d in documents for t in d[1:].tolist()]
    first_round = [t for t in seen if t != BOS][: len(whole)]
    assert sorted(first_round) == sorted(whole)


@given(sizes=lengths, seq_len=st.integers(8, 40), fill=st.sampled_from(["cut", "whole"]))
def test_labels_are_the_next_token_and_end_with_the_document(
    sizes: list[int], seq_len: int, fill: Any
) -> None:
    stream = Stream(_documents(sizes), seq_len, 0, fill)
    for _ in range(5):
        packed = stream.next()
        tokens, positions = packed.tokens.tolist(), packed.positions.tolist()
        for i, label in enumerate(packed.labels.tolist()):
            if label != IGNORED:
                assert label == tokens[i + 1] and positions[i + 1] == positions[i] + 1
                assert i + 1 < packed.n_tokens
        for i in range(packed.n_tokens):
            assert (positions[i] == 0) == (tokens[i] == BOS)


@given(
    sizes=lengths, before=st.integers(0, 9), fill=st.sampled_from(["cut", "whole"]), seed=st.just(3)
)
def test_a_restored_packer_goes_on_alike(
    sizes: list[int], before: int, fill: Any, seed: int
) -> None:
    def make() -> Packer:
        parts = {n: Stream(_documents(sizes), 16, seed + i, fill) for i, n in enumerate("ab")}
        return Packer(parts, {"a": 3.0, "b": 1.0})

    packer = make()
    for _ in range(before):
        packer.next()
    state = packer.state()
    wanted = [packer.next() for _ in range(8)]
    again = make()
    again.restore(state)
    for one, other in zip(wanted, (again.next() for _ in range(8)), strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.labels, other.labels)
        assert one.where == other.where


def test_whole_never_cuts_and_counts_what_is_too_long() -> None:
    documents = _documents([5, 40, 6, 7])
    stream = Stream(documents, 16, 0, "whole", pad=0)
    for _ in range(12):
        packed = stream.next()
        text = packed.tokens[: packed.n_tokens].tolist()
        starts = [i for i, t in enumerate(text) if t == BOS] + [len(text)]
        for a, b in zip(starts, starts[1:], strict=False):
            assert any(text[a:b] == d[:16].tolist() for d in documents)
        assert packed.tokens[packed.n_tokens :].eq(0).all()
    assert stream.truncated >= 1


def test_tokens_not_to_be_learned_have_no_label() -> None:
    tokens = torch.tensor([BOS, 11, 12, 13, 14])
    learned = torch.tensor([False, False, False, True, True])
    packed = Stream([Example(tokens, learned)], 8, 0, "whole").next()
    assert packed.labels[:5].tolist() == [IGNORED, IGNORED, 13, 14, IGNORED]


def test_shares_are_kept_at_every_moment() -> None:
    streams = {n: Stream(_documents([20, 30]), 16, 0) for n in ("en", "tg")}
    packer = Packer(streams, {"tg": 0.8, "en": 0.2})
    languages = [packer.next().where.split(",")[0] for _ in range(50)]
    assert languages.count("en") == 10
    for n in range(1, 51):
        assert abs(languages[:n].count("en") - 0.2 * n) < 1


def test_no_documents_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no documents"):
        Stream([], 16, 0)


def _gradients(model: LossModel, parts: list[Packed]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of sequences and its gradients, each sequence run alone."""
    model.zero_grad()
    total = 0.0
    for p in parts:
        loss = model(p.tokens[None], p.positions[None], p.labels[None])
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.learned() if p.grad is not None}


def test_no_attention_across_documents(tiny: Any) -> None:
    """Documents in one sequence have the loss, and the gradients, that they have alone.

    They are longer than the sliding window of 16, and of the tiny Gemma 3's three blocks two slide.
    """
    documents = [
        torch.cat([torch.tensor([BOS]), torch.randint(4, 260, (n,))]) for n in (24, 1, 30, 5)
    ]
    together = Stream(documents, 64, 0, "whole").next()
    assert together.n_tokens == 64
    alone = [Stream([d], len(d), 0, "whole").next() for d in documents]
    model = LossModel(build_model(open_checkpoint(tiny.model), torch.float32), torch.float32)
    loss, gradients = _gradients(model, [together])
    wanted_loss, wanted = _gradients(model, alone)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():  # a single number may be what two large sums leave
        error = float((gradient - wanted[name]).norm() / wanted[name].norm())
        assert error < 1e-5, name
    crossing = Packed(
        together.tokens, torch.arange(64), together.labels, 64, "positions that go on"
    )
    assert abs(_gradients(model, [crossing])[0] - wanted_loss) > 1e-3 * wanted_loss
