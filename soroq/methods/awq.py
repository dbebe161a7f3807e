"""AWQ: scale up the weight columns that matter, and divide what feeds them by the same scale.

arXiv 2306.00978, section 3.2: s = x̄^α · w̄^(α−1), x̄ the mean magnitude of each input channel, w̄ of
each weight column, α searched on the real block output.

Differs: (1) what is stored decides the scale. A folded norm weight is rounded to the checkpoint's
bfloat16 first, and s is *defined* as old factor / stored factor, so the fold is exact whatever the
rounding did (elsewhere, rounding (1 + w)/s − 1 near −1 costs Gemma 3 270M 0.18 nats with nothing
quantized). (2) s is normalized by its median and held in [1/8, 8], so dead channels drive
nothing. (3) α = 0 keeps the weights as they are, and wins unless another is better.
"""

import torch

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8)
SCALE_LIMIT = 8.0


def channel_scales(
    act_absmean: torch.Tensor, weight_absmean: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Return s (K,) of AWQ for mean magnitudes of inputs and weight columns (K,), α in [0, 1].

    α = 0 gives ones. Median 1, clamped to [1/8, 8].
    """
    if alpha == 0.0:
        return torch.ones_like(act_absmean)
    log_x = act_absmean.float().clamp_min(1e-8).log()
    log_w = weight_absmean.float().clamp_min(1e-8).log()
    log_s = alpha * log_x - (1 - alpha) * log_w
    log_s = log_s - log_s.median()
    limit = torch.log(torch.tensor(SCALE_LIMIT))
    return log_s.clamp(-limit, limit).exp()


def fold_norm(
    weight: torch.Tensor, scales: torch.Tensor, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide an RMSNorm's factor (offset + w) by s (K,); return what is stored and the exact s.

    weight (K,) in its stored dtype; the new weight has that dtype and exact = (offset + w) /
    (offset + w′) in float32. Channels whose factor is 0, or would be, are left alone.
    """
    factor = weight.float() + offset
    stored = (factor / scales - offset).to(weight.dtype)
    folded = stored.float() + offset
    usable = (factor != 0) & (folded != 0) & (factor.sign() == folded.sign())
    stored = torch.where(usable, stored, weight)
    exact = torch.where(usable, factor / (stored.float() + offset), torch.ones_like(factor))
    return stored, exact
