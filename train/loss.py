"""Cross-entropy and divergence over a vocabulary of 262,144 without a batch's logits in memory.

    loss = chunked_cross_entropy(hidden, head_weight, labels)      # the sum, not the mean

Logits are made for all tokens and a slice of the vocabulary at a time: once for the softmax's
normalizer, and again for the gradient (softmax minus one-hot), which is multiplied back at once, in
the forward pass; the backward pass only scales. So a head costs memory for CHUNK_BYTES of float32
and its own gradient, whatever the batch is (the idea of Cut Cross-Entropy, arXiv 2411.09009, but in
plain products). Slices of the vocabulary, not of the tokens: each row of the head's gradient is
written once, where slices of tokens would add to all of it again and again.
"""

from typing import Any

import torch

IGNORED = -100  # label of a token that is not learned
CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 512 << 20}  # float32 logits in memory at a time


def chunk_width(rows: int, device: str = "cpu") -> int:
    """Return how many columns of logits are in memory at a time, for that many tokens."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * max(1, rows)))


def dense_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The plain twin of `chunked_cross_entropy`: all logits at once."""
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype)).float()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return Σ −log p(label), float32, over the rows whose label is not IGNORED.

    hidden (M, K), of the type that products are computed in; weight (V, K), converted to that;
    labels int64 (M,). Gradients reach hidden, and weight if it wants them.
    """
    loss: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        learned = (labels != IGNORED).nonzero().flatten()
        rows, label = hidden.detach()[learned], labels[learned]
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        width = chunk_width(len(rows), hidden.device.type)
        starts = range(0, len(weight), width)
        normalizer = torch.full(label.shape, -torch.inf, device=hidden.device)
        chosen = torch.zeros(label.shape, device=hidden.device)
        logits = torch.empty(0)
        for start in starts:
            logits = (rows @ _slice(weight, start, width, rows.dtype).T).float()
            place, inside = _places(label, start, logits)
            chosen = torch.where(inside, logits.gather(1, place)[:, 0], chosen)
            normalizer = torch.logaddexp(normalizer, logits.logsumexp(-1))
        grad_rows = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        grad_weight = None
        if wants_weight:
            grad_weight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        for start in starts if wants_hidden or wants_weight else ():
            head = _slice(weight, start, width, rows.dtype)
            if len(starts) > 1:
                logits = (rows @ head.T).float()
            place, inside = _places(label, start, logits)
            softmax = logits.sub_(normalizer[:, None]).exp_()
            gradient = softmax.scatter_add_(1, place, -inside[:, None].float()).to(rows.dtype)
            if wants_hidden:
                grad_rows += gradient @ head
            if grad_weight is not None:
                grad_weight[start : start + width] = gradient.T @ rows
        grad_hidden = torch.zeros_like(hidden).index_copy_(0, learned, grad_rows.to(hidden.dtype))
        ctx.save_for_backward(grad_hidden if wants_hidden else None, grad_weight)
        ctx.weight_dtype = weight.dtype
        return (normalizer - chosen).sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (scale,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None


def _slice(weight: torch.Tensor, start: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return weight.detach()[start : start + width].to(dtype)


def _places(
    label: torch.Tensor, start: int, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the labels' columns (n, 1) in logits that begin at `start`, and which are there."""
    place = label - start
    return place.clamp(0, logits.shape[1] - 1)[:, None], (place >= 0) & (place < logits.shape[1])


def chunked_divergence(
    hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, teacher_weight: torch.Tensor
) -> torch.Tensor:
    """Return Σ KL(teacher ‖ student), float32, over rows, both heads a chunk at a time.

    hidden, teacher (M, K): what stands before each head; weights (V, K). Gradients reach hidden
    and weight.
    """
    loss: torch.Tensor = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        hidden, weight, teacher, teacher_weight
    )
    return loss


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        teacher: torch.Tensor,
        teacher_weight: torch.Tensor,
    ) -> torch.Tensor:
        head = weight.detach().to(hidden.dtype)
        original = teacher_weight.to(teacher.dtype)
        wants_weight = ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        if wants_weight:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        step = max(1, chunk_width(2 * len(weight), hidden.device.type))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            wanted = (teacher[rows] @ original.T).float().log_softmax(-1)
            given = (hidden[rows] @ head.T).float().log_softmax(-1)
            share = wanted.exp()
            total += (share * (wanted - given)).sum()
            gradient = given.exp_().sub_(share).to(hidden.dtype)
            grad_hidden[rows] = gradient @ head
            if grad_weight is not None:
                grad_weight += gradient.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (scale,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight, None, None
