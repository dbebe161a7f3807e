"""Distillation: tune a quantized model's scales towards the original's next-token distribution.

Codes stay; each group's scale s becomes s·(1 + δ) with δ learned (and the pipeline learns the
norms with it), so that the result is stored in the same bits. The aim is KL(original ‖ quantized)
at the head, the same that the checker measures. Learned scales through a frozen integer grid
follow LSQ (arXiv 1902.08153); distilling from the original model's logits instead of learning from
text follows LLM-QAT (arXiv 2305.17888): no label is needed, and a small set does.
"""

import torch
from torch import nn

from soroq.core.qtensor import QuantizedTensor

CHUNK = 512  # positions whose logits exist at once


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
    student: torch.Tensor, teacher: torch.Tensor, head: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Return mean KL(p ‖ q) in nats and its gradient with respect to `student`.

    student, teacher (tokens, hidden): what the head gets; head (candidates, hidden). p and q are
    the softmax over the candidates alone. The gradient of the logits is (q − p) / tokens.
    """
    gradient = torch.empty_like(student)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(student), CHUNK):
            span = slice(start, start + CHUNK)
            log_p = (teacher[span] @ head.t()).log_softmax(-1)
            log_q = (student[span] @ head.t()).log_softmax(-1)
            p = log_p.exp()
            total += float((p * (log_p - log_q)).sum(dtype=torch.float64))
            gradient[span] = (log_q.exp() - p) @ head / len(student)
    return total / len(student), gradient
