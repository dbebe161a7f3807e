"""The tied embedding and head as one quantized tensor: `--embed int8|int4`.

Groupwise along the hidden size, never per tensor; the gather and the head read the same codes.
With calibration it is solved like a linear, by rows in slices: the head sees the final norm's
output (its Σ hhᵀ), the gather passes each row on as it is (the identity), and both get an equal
say: H = Σ hhᵀ / mean diag + I. Without, it is rounded to nearest.
"""

from collections.abc import Callable

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.checkpoint import Checkpoint
from soroq.methods.descent import refine
from soroq.methods.gptq import quantize_gptq
from soroq.methods.grid import Grid
from soroq.methods.ranges import search_ranges
from soroq.methods.rtn import quantize_rtn
from soroq.models.runner import DecoderRunner
from soroq.pipeline.activations import ActivationFile

SLICE_ROWS = 8192
Say = Callable[[str], None]


def quantize_embedding(
    checkpoint: Checkpoint,
    runner: DecoderRunner,
    args: QuantArgs,
    outputs: ActivationFile | None,
    damp_ratio: float,
    say: Say,
) -> QuantizedTensor:
    """Return the embedding (vocabulary, hidden) quantized by `args`.

    outputs: hidden states behind the last block, None without calibration.
    """
    name = runner.layout.embedding
    N, K = checkpoint.info(name).shape
    args.check_shape(name, (N, K))
    hessian = None
    if outputs is not None:
        norm = checkpoint.load(f"{runner.layout.prefix}norm.weight")
        hessian = head_hessian(runner, norm, outputs)
    parts = []
    for start in range(0, N, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, N)
        say(f"rows {start} to {stop} of {N}")
        rows = checkpoint.load_rows(name, torch.arange(start, stop)).float()
        if hessian is None:
            parts.append(quantize_rtn(rows, args))
            continue
        grid = Grid(*search_ranges(rows, args, hessian.diagonal()), args, (stop - start, K))
        solved = quantize_gptq(rows, hessian, grid, damp_ratio=damp_ratio)
        parts.append(refine(rows, hessian, solved, rounds=1))
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedTensor(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        args,
    )


def head_hessian(
    runner: DecoderRunner, norm_weight: torch.Tensor, outputs: ActivationFile
) -> torch.Tensor:
    """Return Σ hhᵀ / mean diag + I (K, K) over the final norm's outputs h."""
    total = torch.zeros(runner.hidden_size, runner.hidden_size)
    norm = runner.build_final_norm(norm_weight)
    for x in outputs.batches(8):
        h = norm(x)[:, 1:].reshape(-1, runner.hidden_size)
        total.addmm_(h.t(), h)
    return total / total.diagonal().mean() + torch.eye(runner.hidden_size)
