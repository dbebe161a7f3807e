"""The compiled CPU kernels (kernels/cpu/csrc/bindings*.cpp): contiguous CPU tensors only.

Functions on tensors write their last tensor argument in place and raise ValueError when shapes
don't fit, TypeError when dtypes don't.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

def pack_int4(codes: torch.Tensor, words: torch.Tensor) -> None: ...
def unpack_int4(words: torch.Tensor, codes: torch.Tensor) -> None: ...
def matmul_w4(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    y: torch.Tensor,
    *,
    group_size: int,
    n_threads: int,
) -> None: ...

class Panels:
    def __init__(
        self,
        data: torch.Tensor,
        N: int,
        K: int,
        bits: int,
        group: int,
        symmetric: bool,
        bf16_scales: bool,
    ) -> None: ...
    def fill(
        self,
        first: int,
        words: torch.Tensor,
        scales: torch.Tensor | None = None,
        zeros: torch.Tensor | None = None,
    ) -> None: ...
    def touch(self, gated: bool) -> None: ...

def panel_bytes(
    N: int, K: int, bits: int, group: int, symmetric: bool, bf16_scales: bool, /
) -> int: ...
def allocate(n: int) -> npt.NDArray[np.uint8]: ...
def unpack_panels(
    panels: Panels,
    first: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
) -> None: ...
def gather_panels(panels: Panels, ids: torch.Tensor, rows: torch.Tensor) -> None: ...
def matmul_panels(
    panels: Panels,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    precision: str,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: str = "",
    gated_rows: int = 0,
) -> None: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def isa() -> str: ...
def isa_reason() -> str: ...
def usable_isas() -> list[str]: ...
def select_isa(name: str) -> bool: ...
def read_bytes(data: torch.Tensor, /) -> int: ...
def run_int8(rounds: int) -> int: ...
def run_fma(rounds: int) -> int: ...

class Decoder:
    def __init__(
        self,
        facts: dict[str, Any],
        blocks: Sequence[dict[str, Any]],
        rotaries: Sequence[tuple[torch.Tensor, torch.Tensor]],
        final_norm: torch.Tensor,
        embedding: Panels,
        head: Panels,
    ) -> None: ...
    @property
    def length(self) -> int: ...
    def rewind(self, n: int) -> None: ...
    def step(
        self, ids: torch.Tensor, logits: torch.Tensor | None = None, k: int = 0
    ) -> tuple[list[int], list[float]]: ...
