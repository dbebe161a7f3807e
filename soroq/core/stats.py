"""What calibration measures at the input of a linear layer."""

from dataclasses import dataclass, field

import torch

from soroq.core.errors import NumericsError


@dataclass
class LayerStats:
    """Running sums over calibration tokens of one linear input x (tokens, K).

    hessian: Σ xxᵀ (K, K) float32, tokens weighted; cross: Σ x x̄ᵀ (K, K) with x̄ the input that the
    unquantized model sees, None unless asked for; act_absmean and act_absmax (K,).
    """

    in_features: int
    with_cross: bool = False
    hessian: torch.Tensor = field(init=False)
    cross: torch.Tensor | None = field(init=False)
    act_absmax: torch.Tensor = field(init=False)
    act_abssum: torch.Tensor = field(init=False)
    n_tokens: int = 0

    def __post_init__(self) -> None:
        K = self.in_features
        self.hessian = torch.zeros(K, K)
        self.cross = torch.zeros(K, K) if self.with_cross else None
        self.act_absmax = torch.zeros(K)
        self.act_abssum = torch.zeros(K)

    def update_(
        self,
        x: torch.Tensor,
        reference: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> None:
        """Add a batch x (…, K); `weight` (…,) multiplies each token's share of the sums."""
        flat = x.reshape(-1, self.in_features).float()
        scaled = flat if weight is None else flat * weight.reshape(-1, 1).sqrt()
        self.hessian.addmm_(scaled.t(), scaled)
        if self.cross is not None:
            if reference is None:
                raise ValueError("with_cross needs the reference input")
            other = reference.reshape(-1, self.in_features).float()
            other = other if weight is None else other * weight.reshape(-1, 1).sqrt()
            self.cross.addmm_(scaled.t(), other)
        magnitude = flat.abs()
        self.act_absmax = torch.maximum(self.act_absmax, magnitude.amax(0))
        self.act_abssum += magnitude.sum(0)
        self.n_tokens += flat.shape[0]

    @property
    def act_absmean(self) -> torch.Tensor:
        return self.act_abssum / max(self.n_tokens, 1)

    def check_finite(self, name: str) -> None:
        """Raise NumericsError when a sum holds NaN or infinity."""
        for label, tensor in (("hessian", self.hessian), ("cross", self.cross)):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise NumericsError(
                    f"{name}: the calibration {label} holds NaN or infinity; the model overflows "
                    "on this text, check the checkpoint with `soroq inspect`"
                )
