"""Every kernel and configuration against float64, on the device at hand."""

from dataclasses import asdict
from typing import Any

import torch

from soroq.bench.kernels.tuning import candidates
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels.tiles import tile
from soroq.kernels.triton import matmul_tiles, ops, scratch, unpack_tiles
from soroq.kernels.triton.config import Config, rule

# N, K, group, bits, symmetric: ragged ones, one group a row, the smallest model's, the vision tower
PROBLEMS = (
    (200, 256, 128, 4, True),
    (130, 320, 64, 4, False),
    (70, 96, 32, 4, False),
    (1152, 4304, None, 4, False),
    (1536, 1152, 128, 4, False),
    (2560, 2048, 32, 8, True),
)
ROWS = (1, 3, 8, 16, 17, 33, 64, 65, 130)
SUMS = {torch.bfloat16: 4e-6, torch.float16: 4e-5}  # of Σ|x||w|, float32 sums of offset codes
ROUNDED = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def verify(device: torch.device, *, quick: bool = False) -> list[dict[str, Any]]:
    """Run all, return one entry a problem with the worst error and where it passed its limit."""
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        for problem in PROBLEMS[: 2 if quick else None]:
            results.append(_one(problem, dtype, device, ROWS[:: 4 if quick else 1], quick))
    return results


def _one(
    problem: tuple[int, int, int | None, int, bool],
    dtype: torch.dtype,
    device: torch.device,
    rows: tuple[int, ...],
    quick: bool,
) -> dict[str, Any]:
    N, K, group, bits, symmetric = problem
    half, n_groups = 1 << (bits - 1), K // (group or K)
    codes = torch.randint(-half, half, (N, K)).to(torch.int8)
    zeros = None if symmetric else torch.randint(-half, half, (N, n_groups)).to(torch.int8)
    scales = (torch.rand(N, n_groups) * 0.01 + 0.001).to(dtype)
    args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
    quantized = QuantizedTensor(codes, scales, zeros, args)
    weight, exact = tile(quantized).to(device), quantized.dequantize().double().to(device)
    sms = ops.device_facts(device)[1]
    memory = scratch.get(device, sms)
    failed: list[str] = []
    worst = 0.0
    tried = 0
    if not torch.equal(unpack_tiles.unpack(weight, torch.float32).double(), exact):
        failed.append("unpack")
    for M in rows:
        x = torch.randn(M, K, device=device).to(dtype)
        truth, scale = x.double() @ exact.t(), x.double().abs() @ exact.abs().t()
        configs = [rule(sms, M, N, K)] if quick else candidates(sms, M, N, K)
        for config in configs:
            memory.partials.fill_(float("nan"))
            y = torch.full((M, N), float("nan"), device=device)
            matmul_tiles.run(x, weight, y, config, memory.partials, memory.counters)
            again = torch.full_like(y, float("nan"))
            matmul_tiles.run(x, weight, again, config, memory.partials, memory.counters)
            error = float(((y.double() - truth).abs() / scale).max())
            limit = SUMS[dtype] if config.deferred else ROUNDED[dtype]
            tried += 1
            worst = max(worst, error)
            if not error <= limit or not torch.equal(y, again) or memory.counters.any():
                failed.append(f"M {M} {_text(config)}: {error:.2e}")
    name = f"{N}x{K} group {group or 'row'} int{bits} {'' if symmetric else 'zeros '}{dtype}"
    return {"problem": name, "configurations": tried, "worst": worst, "failed": failed}


def _text(config: Config) -> str:
    return " ".join(f"{key}={value}" for key, value in asdict(config).items())
