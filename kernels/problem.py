"""What is asked of a kernel: the one argument of every predicate."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    """y (M, N) = x (M, K) · Wᵀ, W (N, K), or M rows of W gathered.

    `dtype` is that of x and y, `device` a torch device type, `group_size` None for the whole row.
    `grad`: x needs a gradient.
    """

    op: str
    M: int
    N: int
    K: int
    group_size: int | None
    symmetric: bool
    dtype: torch.dtype
    device: str
    grad: bool = False
