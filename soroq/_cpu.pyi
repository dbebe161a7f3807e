"""The compiled CPU kernels (kernels/cpu/csrc/bindings.cpp): contiguous CPU tensors only.

Each function writes its last tensor argument in place and raises ValueError when shapes don't fit.
"""

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
