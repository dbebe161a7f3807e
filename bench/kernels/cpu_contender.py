"""What every contender of the CPU race tells about itself, and how it is made ready.

for contender in contenders():                    # those whose packages are here
    ready = contender.prepare(problem, COLD_BYTES)  # allocates the copies of its weights
    runner = ready.runner(problem.inputs[:M])     # for each M
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from soroq.bench.kernels.cpu_problem import Problem
from soroq.bench.kernels.cpu_race import Runner

# Largest relative error that is not a bug, by how activations are rounded: sums in float32; inputs
# are values of bfloat16 and outputs are rounded to it (2⁻⁹ at most); integers by token and group.
LIMITS = {"float32": 1e-4, "bfloat16": 5e-3, "int16": 1e-3, "int8": 2e-2}
LIMITS["int8-coarse"] = LIMITS["int8"]


class Unfit(Exception):
    """This contender can't do this problem; the text says why."""


@dataclass(frozen=True)
class Ready:
    """Weights in memory: `nbytes` a copy; `weight`: distinct rows, dequantized, for the truth."""

    nbytes: int
    copies: int
    weight: torch.Tensor
    runner: Callable[[torch.Tensor], Runner]


class Contender(Protocol):
    """family: whose kernel, 'soroq' for ours; layout: of the weights; precision: see LIMITS."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def precision(self) -> str: ...
    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        """Pack as many copies as are larger than `cold_bytes` together. Raises Unfit."""
        ...


def copies_for(nbytes: int, cold_bytes: int) -> int:
    """Return how many copies of `nbytes` are larger than `cold_bytes` together."""
    return cold_bytes // nbytes + 1


def differ(codes: np.ndarray[Any, Any], i: int) -> np.ndarray[Any, Any]:
    """Return bytes of codes; for copy i > 0 a copy that differs in the code at i.

    Graph optimizers keep equal constants once: the copies would all be read from the cache.
    """
    if i == 0:
        return codes
    other = codes.copy()
    other.reshape(-1)[i] ^= 1
    return other
