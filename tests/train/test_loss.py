"""Chunked losses against dense ones in float64, and what they hold in memory at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soroq.train import loss as module
from soroq.train.loss import (
    IGNORED,
    chunked_cross_entropy,
    chunked_divergence,
    dense_cross_entropy,
)

# Sums of float32 in another order; bfloat16 has 8 bits, gradients are sums of such products.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
SHAPES = [(1, 8, 17), (33, 16, 300), (65, 32, 257)]


class LargestTensor(TorchDispatchMode):
    """Notes how large the largest tensor was that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.itemsize)
        return out


def _inputs(m: int, k: int, v: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    hidden = torch.randn(m, k).to(dtype).requires_grad_(True)
    weight = (torch.randn(v, k) * 0.3).requires_grad_(True)
    labels = torch.randint(0, v, (m,))
    labels[::3] = IGNORED if m > 1 else labels[0]
    return hidden, weight, labels


def _close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = (got.double() - wanted).norm() / wanted.norm().clamp(min=1e-12)
    assert error < TOLERANCE[dtype], float(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-K{}-V{}".format(*s))
def test_cross_entropy_and_gradients_equal_dense(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * shape[0] * 100)  # three slices or four
    hidden, weight, labels = _inputs(*shape, dtype)
    (chunked_cross_entropy(hidden, weight, labels) * 0.25).backward()
    exact_hidden = hidden.detach().double().requires_grad_(True)
    exact_weight = weight.detach().to(dtype).double().requires_grad_(True)
    logits = exact_hidden @ exact_weight.T
    kept = labels != IGNORED
    wanted = -logits.log_softmax(-1)[kept, labels[kept]].sum()
    (wanted * 0.25).backward()
    _close(chunked_cross_entropy(hidden, weight, labels).detach(), wanted.detach(), dtype)
    assert hidden.grad is not None and weight.grad is not None
    assert exact_hidden.grad is not None and exact_weight.grad is not None
    _close(hidden.grad, exact_hidden.grad, dtype)
    _close(weight.grad, exact_weight.grad, dtype)


def test_plain_twin_is_the_same_loss() -> None:
    hidden, weight, labels = _inputs(33, 16, 300, torch.float32)
    got, wanted = (f(hidden, weight, labels) for f in (chunked_cross_entropy, dense_cross_entropy))
    torch.testing.assert_close(got, wanted)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels = _inputs(9, 8, 40, torch.float32)
    frozen = weight.detach()
    chunked_cross_entropy(hidden, frozen, labels).backward()
    assert frozen.grad is None
    assert hidden.grad is not None
    assert hidden.grad[labels == IGNORED].abs().max() == 0


def test_logits_of_a_batch_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary, size = 512, 4096, 16
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * rows * 128)
    hidden, weight, labels = _inputs(rows, size, vocabulary, torch.float32)
    with LargestTensor() as chunked:
        chunked_cross_entropy(hidden, weight, labels).backward()
    with LargestTensor() as dense:
        dense_cross_entropy(hidden, weight, labels).backward()
    assert chunked.nbytes == 4 * rows * 128  # a slice; the head's gradient is as large
    assert dense.nbytes == 4 * rows * vocabulary


def test_divergence_and_gradients_equal_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * 300 * 7)
    hidden, weight, _ = _inputs(33, 16, 300, torch.float32)
    teacher, teacher_weight, _ = (t.detach() for t in _inputs(33, 16, 300, torch.float32))
    got = chunked_divergence(hidden, weight, teacher, teacher_weight)
    got.backward()
    exact = [t.detach().double().requires_grad_(True) for t in (hidden, weight)]
    wanted_log = (teacher.double() @ teacher_weight.double().T).log_softmax(-1)
    given_log = (exact[0] @ exact[1].T).log_softmax(-1)
    wanted = (wanted_log.exp() * (wanted_log - given_log)).sum()
    wanted.backward()
    _close(got.detach(), wanted.detach(), torch.float32)
    for tensor, reference in zip((hidden, weight), exact, strict=True):
        assert tensor.grad is not None and reference.grad is not None
        _close(tensor.grad, reference.grad, torch.float32)
