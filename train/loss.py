"""Cross-entropy and divergence over a vocabulary of 262,144 without a batch's logits in memory.

    loss = chunked_cross_entropy(hidden, head_weight, labels)      # the sum, not the mean

The logits of a few rows at a time are made, turned into the gradient of the loss (softmax minus
one-hot) and multiplied back at once, in the forward pass; the backward pass only scales. So a head
costs memory for CHUNK_BYTES of float32, whatever the batch is (the idea of Cut Cross-Entropy,
arXiv 2411.09009, without its kernel).
"""

from typing import Any

import torch

IGNORED = -100  # label of a token that is not learned
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # float32 logits in memory at a time


def chunk_rows(vocabulary: int, device: str = "cpu") -> int:
    """Return how many rows of logits are in memory at a time."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


def _add_product_(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a @ b to `total`, float32, in one pass where the types allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


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
        head = weight.detach().to(hidden.dtype)
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = None
        if wants_weight:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for rows in learned.split(chunk_rows(len(weight), hidden.device.type)):
            part, label = hidden[rows], labels[rows]
            logits = (part @ head.T).float()
            normalizer = logits.logsumexp(-1)
            total += (normalizer - logits.gather(1, label[:, None])[:, 0]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            gradient = logits.sub_(normalizer[:, None]).exp_()
            gradient[torch.arange(len(rows), device=rows.device), label] -= 1
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ head
            if grad_weight is not None:
                _add_product_(grad_weight, gradient.T, part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (scale,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None


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
        step = max(1, chunk_rows(len(weight), hidden.device.type) // 2)
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            wanted = (teacher[rows] @ original.T).float().log_softmax(-1)
            given = (hidden[rows] @ head.T).float().log_softmax(-1)
            share = wanted.exp()
            total += (share * (wanted - given)).sum()
            gradient = given.exp_().sub_(share).to(hidden.dtype)
            grad_hidden[rows] = gradient @ head
            if grad_weight is not None:
                _add_product_(grad_weight, gradient.T, hidden[rows])
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
