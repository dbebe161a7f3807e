"""One product to race on a CPU: a weight everybody quantizes their own way, inputs, and the truth.

W (N, K) repeats DISTINCT random rows, so that quantizing a head by the slowest format takes no time
and float64 truth is small; every copy still is N · K weights in memory of its own.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from soroq.bench.kernels.shapes import Shape
from soroq.core.qtensor import QuantizedTensor, round_int
from soroq.core.scheme import QuantArgs

DISTINCT = 512
SPREAD = 0.02  # standard deviation of weights, about a trained model's


@dataclass(frozen=True)
class Problem:
    """W row n is rows[n % len(rows)]; inputs (M, K) float32 hold values that bfloat16 can hold.

    kept: weights that several contenders read.
    """

    shape: Shape
    rows: torch.Tensor
    inputs: torch.Tensor
    kept: dict[Any, Any] = field(default_factory=dict)

    def quantize(self, group: int, *, bits: int = 4, symmetric: bool = True) -> QuantizedTensor:
        """Round the distinct rows to nearest in groups; scales are values of bfloat16."""
        args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
        args.check_shape(self.shape.name, (self.shape.N, self.shape.K))
        parts = self.rows.view(len(self.rows), -1, group)
        zeros = None
        if symmetric:
            scales = (parts.abs().amax(2) / -args.code_min).bfloat16().float()
        else:
            low, high = parts.amin(2), parts.amax(2)
            scales = ((high - low) / (args.levels - 1)).bfloat16().float()
            zeros = (args.code_min - low / scales).round().clamp(args.code_min, args.code_max)
            zeros = zeros.to(torch.int8)
        return round_int(self.rows, scales, zeros, args)

    def spread(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Return the whole W (N, K) of quantized distinct rows."""
        zeros = None if quantized.zeros is None else self.repeat(quantized.zeros)
        codes, scales = self.repeat(quantized.codes), self.repeat(quantized.scales)
        return QuantizedTensor(codes, scales, zeros, quantized.args)

    def repeat(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (N, …) of (distinct rows, …)."""
        times = -(-self.shape.N // rows.shape[0])
        return rows.repeat(times, *[1] * (rows.ndim - 1))[: self.shape.N]

    def repeat_bytes(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return `rows` (distinct rows, …) as (N, …), a numpy array."""
        return self.repeat(torch.from_numpy(rows)).numpy()

    @cached_property
    def wide_inputs(self) -> torch.Tensor:
        return self.inputs.double()

    def relative_error(self, y: torch.Tensor, weight: torch.Tensor) -> float:
        """Return ‖y − x Wᵀ‖ / ‖x Wᵀ‖ in float64; `weight` holds the distinct rows, dequantized.

        y (M, N) stands for the first M inputs. Infinite for what is not a number.
        """
        truth = self.wide_inputs[: len(y)] @ weight.double().t()
        wrong = total = 0.0
        for start in range(0, self.shape.N, truth.shape[1]):
            part = y[:, start : start + truth.shape[1]].double()
            exact = truth[:, : part.shape[1]]
            wrong += float((part - exact).square_().sum())
            total += float(exact.square().sum())
        error = float((wrong / total) ** 0.5)
        return error if error == error else float("inf")


def make_problem(shape: Shape, most_rows: int, seed: int = 0) -> Problem:
    """Return a random problem for up to `most_rows` tokens."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(min(DISTINCT, shape.N), shape.K, generator=random) * SPREAD
    inputs = torch.randn(most_rows, shape.K, generator=random)
    return Problem(shape, rows, inputs.bfloat16().float())
