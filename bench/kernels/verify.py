"""Every kernel and configuration against float64, on the device at hand."""

from dataclasses import asdict
from typing import Any

import torch

from soroq.bench.kernels.tuning import Job, candidates, compile_ahead
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels.cuda import config as cuda
from soroq.kernels.cuda import matmul_tiles as cuda_cpp
from soroq.kernels.cuda import warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig
from soroq.kernels.tiles import TILE_K, tile
from soroq.kernels.triton import ops, scratch, unpack_tiles
from soroq.kernels.triton.config import Config, Launch, fits, rule
from soroq.kernels.triton.matmul_tiles import Epilogue

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
    if device.type == "cuda" and not quick:
        compile_ahead(_jobs(device))
    for dtype in (torch.bfloat16, torch.float16):
        for problem in PROBLEMS[: 2 if quick else None]:
            results.append(_one(problem, dtype, device, ROWS[:: 4 if quick else 1], quick))
    results.append(_epilogues(device))
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
        for config in _launches(device, sms, M, N, K, bits, quick):
            memory.partials.fill_(float("nan"))
            y = torch.full((M, N), float("nan"), device=device)
            try:
                ops.launch(x, weight, y, config, memory)
            except Exception as error:  # the compiler's or the driver's: out of resources
                failed.append(f"M {M} {_text(config)}: {type(error).__name__} {error}"[:200])
                continue
            again = torch.full_like(y, float("nan"))
            ops.launch(x, weight, again, config, memory)
            difference = float(((y.double() - truth).abs() / scale).max())
            sums = isinstance(config, CudaConfig) or getattr(config, "deferred", False)
            limit = SUMS[dtype] if sums else ROUNDED[dtype]
            tried += 1
            worst = max(worst, difference)
            if not difference <= limit or not torch.equal(y, again) or memory.counters.any():
                failed.append(f"M {M} {_text(config)}: {difference:.2e}")
    name = f"{N}x{K} group {group or 'row'} int{bits} {'' if symmetric else 'zeros '}{dtype}"
    return {"problem": name, "configurations": tried, "worst": worst, "failed": failed}


def _epilogues(device: torch.device) -> dict[str, Any]:
    """Residuals and GeGLUs behind the product, of both kernels, against float64."""
    N, K, dtype = 264, 640, torch.bfloat16
    args = QuantArgs(bits=4, group_size=128)
    codes = torch.randint(-8, 8, (N, K)).to(torch.int8)
    quantized = QuantizedTensor(codes, torch.rand(N, K // 128).to(dtype) * 0.1, None, args)
    weight, exact = tile(quantized).to(device), quantized.dequantize().double().to(device)
    rounded = quantized.dequantize(dtype).double().to(device)  # as the warpgroups multiply it
    sms = ops.device_facts(device)[1]
    memory = scratch.get(device, sms)
    launches: list[Launch] = [rule(sms, M, N, K) for M in (1, 16)]
    if device.type == "cuda" and cuda_cpp.library() is not None:
        launches += [CudaConfig(1, 2, 2, 2, 2, 1), CudaConfig(2, 1, 4, 1, 2, 2)]
    if warpgroups.can_run(device):
        launches += [WarpgroupConfig(16, 3, 4, 8, 1), WarpgroupConfig(64, 2, 3, 4, 2)]
        launches += [WarpgroupConfig(128, 3, 4, 5, 1), WarpgroupConfig(256, 2, 4, 5, 1)]
    failed: list[str] = []
    worst = 0.0
    for config in launches:
        for M in (1, 7, 16):
            x = torch.randn(M, K, device=device).to(dtype)
            truth = x.double() @ (rounded if isinstance(config, WarpgroupConfig) else exact).t()
            residual = torch.randn(M, N, device=device).to(dtype)
            pairs = torch.nn.functional.gelu(truth[:, 0::2], approximate="tanh") * truth[:, 1::2]
            cases: list[tuple[Epilogue, torch.Tensor, torch.Tensor | None]] = [
                ("residual", truth + residual.double(), residual),
                ("geglu", pairs, None),
            ]
            for kind, wanted, extra in cases:
                y = torch.full(wanted.shape, float("nan"), dtype=dtype, device=device)
                ops.launch(x, weight, y, config, memory, epilogue=kind, extra=extra)
                error = float(((y.double() - wanted).abs() / wanted.abs().clamp_min(1)).max())
                worst = max(worst, error)
                if not error <= 2**-7:
                    failed.append(f"{kind} M {M} {_text(config)}: {error:.2e}")
    return {"problem": "epilogues", "worst": worst, "failed": failed}


def _jobs(device: torch.device) -> list[Job]:
    """Return the Triton kernels that a whole run launches."""
    sms = ops.device_facts(device)[1]
    return [
        Job(
            N,
            K,
            group or -(-K // TILE_K) * TILE_K,
            bits,
            not symmetric,
            dtype,
            torch.float32,
            config,
        )
        for dtype in (torch.bfloat16, torch.float16)
        for N, K, group, bits, symmetric in PROBLEMS
        for M in ROWS
        for config in _launches(device, sms, M, N, K, bits, False)
        if isinstance(config, Config)
    ]


def _launches(
    device: torch.device, sms: int, M: int, N: int, K: int, bits: int, quick: bool
) -> list[Launch]:
    """Return the Triton kernel's rule, its other candidates only at some M; all CUDA kernels."""
    found: list[Launch] = [rule(sms, M, N, K)]
    if not quick and M in (1, 17, 65):
        found += candidates(sms, M, N, K)[1::3]
    if device.type == "cuda" and cuda_cpp.library() is not None:
        some = [c for c in cuda.candidates(sms, min(M, 16), N, K, bits) if fits(c, M, N, sms)]
        by_code = {(c.tokens_8, c.rows_16, c.depth, c.splits > 1): c for c in some[::-1]}
        found += by_code.values()
    if warpgroups.can_run(device) and M >= warpgroups.FEWEST_TOKENS:
        many = warpgroups.candidates(sms, M, N, K, bits)
        found += {(c.tokens, c.groups, c.splits): c for c in many[::-1]}.values()
    return found


def _text(config: Launch) -> str:
    return " ".join(f"{key}={value}" for key, value in asdict(config).items())
