"""The values that a weight may take: W's grid, from its scales and zero points.

Every method rounds through a `Grid`, so integers with zero points and float8 share one GPTQ and
one coordinate descent. Methods work on values; `Grid.encode` turns values on the grid into codes.
"""

from dataclasses import dataclass

import torch

from soroq.core.qtensor import QuantizedTensor, expand_blocks, round_float8, round_int
from soroq.core.scheme import FP8_MAX, QuantArgs


@dataclass(frozen=True)
class Grid:
    """scales (N, K // G) or block scales; zeros int8 (N, K // G) or None."""

    scales: torch.Tensor
    zeros: torch.Tensor | None
    args: QuantArgs
    shape: tuple[int, int]

    def full_steps(self) -> torch.Tensor:
        """Return scales repeated to (N, K), float32."""
        if self.args.block is not None:
            return expand_blocks(self.scales.float(), self.shape, self.args).contiguous()
        return self.scales.float().repeat_interleave(self.shape[1] // self.scales.shape[1], 1)

    def full_offsets(self) -> torch.Tensor | None:
        """Return zeros repeated to (N, K), float32; None if symmetric."""
        if self.zeros is None:
            return None
        return self.zeros.float().repeat_interleave(self.shape[1] // self.zeros.shape[1], 1)

    def encode(self, values: torch.Tensor) -> QuantizedTensor:
        """Return the codes of values (N, K): exact when they lie on the grid, else the nearest."""
        if self.args.dtype == "float":
            return round_float8(values, self.scales, self.args)
        return round_int(values, self.scales, self.zeros, self.args)


def round_to_grid(
    values: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, args: QuantArgs
) -> torch.Tensor:
    """Return the grid value nearest to each of `values`, same shape as step."""
    if args.dtype == "float":
        scaled = (values / step).clamp(-FP8_MAX, FP8_MAX)
        return scaled.to(torch.float8_e4m3fn).float() * step
    codes = (values / step).round()
    if offset is None:
        return codes.clamp(args.code_min, args.code_max) * step
    return ((codes + offset).clamp(args.code_min, args.code_max) - offset) * step
