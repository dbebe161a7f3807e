"""int4 weights with float8 activations: against float64, then against int4 with bfloat16.

    python -m soroq.bench.kernels.gpu --out gpu --parts w4a8

Whether it is worth having is what this part is to tell: float8 activations cost accuracy (LOG.md).
"""

from typing import Any

import torch

from soroq.bench.kernels.contenders import BF16, Contender, inputs, ours, random_tiles, reader
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels.tiles import tile
from soroq.kernels.triton import matmul_w4a8, ops, scratch
from soroq.kernels.triton.config import Config, fits
from soroq.kernels.triton.quantize_fp8 import quantize_rows
from soroq.kernels.triton.w4a8_ops import matmul_w4a8 as product
from soroq.kernels.triton.w4a8_ops import rule

SHAPES = ("4b gate_up", "27b gate_up", "4b down", "square 8192")
SWEEP_M = (1, 16, 64, 256, 1024)
# N, K, group, symmetric: ragged ones, one group a row, groups longer than a sum on the tensor cores
PROBLEMS = (
    (200, 256, 128, True),
    (130, 320, 64, False),
    (70, 96, 32, False),
    (264, 1304, None, False),
    (1536, 1152, 128, False),
    (256, 4096, 256, True),
)
ROWS = (1, 3, 16, 17, 33, 64, 65, 130)
LIMIT = 1e-3  # of Σ|x̂||w|: the tensor cores keep about 14 bits of a sum of 128 products


def verify(device: torch.device, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return one entry a problem with the worst error, and what failed: values, bits, counters.

    A code lost or flushed to zero (the smallest are subnormal) is an error far beyond the limit.
    """
    sms = ops.device_facts(device)[1]
    memory = scratch.get(device, sms)
    found = []
    for N, K, group, symmetric in PROBLEMS[: 2 if quick else None]:
        shape = (N, K // (group or K))
        codes = torch.randint(-8, 8, (N, K)).to(torch.int8)
        zeros = None if symmetric else torch.randint(-8, 8, shape).to(torch.int8)
        args = QuantArgs(bits=4, group_size=group, symmetric=symmetric)
        scales = (torch.rand(shape) * 0.01 + 0.001).to(BF16)
        quantized = QuantizedTensor(codes, scales, zeros, args)
        weight, exact = tile(quantized).to(device), quantized.dequantize().double().to(device)
        failed: list[str] = []
        worst = 0.0
        for M in ROWS[:: 4 if quick else 1]:
            x, x_scales = quantize_rows(inputs(M, K, device))
            values = x.double() * x_scales.double()
            truth, scale = values @ exact.t(), values.abs() @ exact.abs().t()
            narrow = Config(16, 64, 2 if K > 128 else 1, 4, 3, deferred=True)
            for config in (rule(sms, M, N, K), narrow):
                if not fits(config, M, N, sms):
                    continue
                memory.partials.fill_(float("nan"))
                y, again = (torch.full((M, N), float("nan"), device=device) for _ in range(2))
                for out in (y, again):
                    parts = (memory.partials, memory.counters)
                    matmul_w4a8.run(x, x_scales, weight, out, config, *parts)
                error = float(((y.double() - truth).abs() / scale).max())
                worst = max(worst, error)
                if not error <= LIMIT or not torch.equal(y, again) or memory.counters.any():
                    failed.append(f"M {M} {config}: {error:.2e}")
        name = f"{N}x{K} group {group or 'row'}{'' if symmetric else ' zeros'}"
        found.append({"problem": name, "worst": worst, "failed": failed})
    return found


def contenders(shape: Shape, M: int, device: torch.device) -> list[Contender]:
    """Return the product alone, with rounding x, int4 with bfloat16, and a reader of W's bytes."""
    x = inputs(M, shape.K, device)
    codes, x_scales = quantize_rows(x)

    def alone(copies: int) -> Call:
        weights = [random_tiles(shape, device) for _ in range(copies)]
        return lambda i: product(codes, x_scales, weights[i], dtype=BF16)

    def whole(copies: int) -> Call:
        weights = [random_tiles(shape, device) for _ in range(copies)]
        return lambda i: product(*quantize_rows(x), weights[i], dtype=BF16)

    return [
        Contender("soroq W4A8", shape.int4_bytes, alone),
        Contender("soroq W4A8 with rounding x", shape.int4_bytes, whole),
        ours(shape, M, device),
        reader(shape.int4_bytes, device),
    ]
