"""Distillation: tune a quantized model's scales towards the original's next-token distribution.

Codes stay; each group's scale s becomes s·(1 + δ) with δ learned (and the pipeline learns the
norms with it), so that the result is stored in the same bits. The aim is KL(original ‖ quantized)
at the head, the same that the checker measures. Learned scales through a frozen integer grid
follow LSQ (arXiv 1902.08153); distilling from the original model's logits instead of learning from
text follows LLM-QAT (arXiv 2305.17888): no label is needed, and a small set does.
"""

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor, take_rows

CHUNK = 512  # positions whose logits exist at once, fewer
LOGITS = 1 << 25  # where that would be more numbers than this
HEAD_ROWS = 16384  # of the head that are float32 at once
Matrix = torch.Tensor | QuantizedTensor


class ScaledLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ = (codes − zeros) · s · (1 + δ); δ (N, K // G) float32 is learned.

    Integer codes with groups along K only.
    """

    def __init__(
        self, quantized: QuantizedTensor, delta: nn.Parameter, bias: torch.Tensor | None
    ) -> None:
        super().__init__()
        group = quantized.shape[1] // quantized.scales.shape[1]
        steps = quantized.codes.view(quantized.shape[0], -1, group)
        if quantized.zeros is not None:  # int4 minus int4: still fits int8
            steps = steps - quantized.zeros[..., None]
        self.steps = steps
        self.scales = quantized.scales.float()
        self.delta = delta
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y (…, N) for x (…, K)."""
        scale = self.scales * (1 + self.delta)
        weight = (self.steps.float() * scale[..., None]).flatten(1)
        return nn.functional.linear(x, weight, self.bias)


def tuned_scales(scales: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return s·(1 + δ) in the dtype in which scales are stored."""
    return (scales.float() * (1 + delta.detach())).to(scales.dtype)


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    head: torch.Tensor,
    student_head: Matrix | None = None,
) -> tuple[float, torch.Tensor]:
    """Return mean KL(p ‖ q) in nats and its gradient with respect to `student`.

    student, teacher (tokens, hidden): what the head gets; head (candidates, hidden) in any floating
    dtype, converted in slices. student_head: the student's own, where it isn't the same. p and q
    are the softmax over the candidates alone. The gradient of the logits is (q − p) / tokens.
    """
    own: Matrix = head if student_head is None else student_head
    gradient = torch.empty_like(student)
    total = 0.0
    at_once = max(1, min(CHUNK, LOGITS // len(head)))
    with torch.no_grad():
        for start in range(0, len(student), at_once):
            span = slice(start, start + at_once)
            log_p = _logits(teacher[span], head).log_softmax(-1)
            log_q = _logits(student[span], own).log_softmax(-1)
            p = log_p.exp()
            total += float(log_p.sub_(log_q).mul_(p).sum(dtype=torch.float64))
            gradient[span] = _times_head(log_q.exp_().sub_(p), own) / len(student)
    return total / len(student), gradient


def _logits(x: torch.Tensor, head: Matrix) -> torch.Tensor:
    """Return x headᵀ (tokens, candidates) in float32."""
    logits = torch.empty(len(x), head.shape[0])
    for start in range(0, head.shape[0], HEAD_ROWS):
        rows = _rows(head, start)
        torch.mm(x, rows.t(), out=logits[:, start : start + HEAD_ROWS])
    return logits


def _times_head(values: torch.Tensor, head: Matrix) -> torch.Tensor:
    """Return values (tokens, candidates) times head (candidates, hidden) in float32."""
    product = torch.zeros(len(values), head.shape[1])
    for start in range(0, head.shape[0], HEAD_ROWS):
        rows = _rows(head, start)
        product.addmm_(values[:, start : start + HEAD_ROWS], rows)
    return product


def _rows(head: Matrix, start: int) -> torch.Tensor:
    """Return HEAD_ROWS rows from `start` on, float32."""
    span = slice(start, start + HEAD_ROWS)
    if isinstance(head, torch.Tensor):
        return head[span].float()
    return take_rows(head, span).dequantize()
