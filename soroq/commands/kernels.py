"""bench gpu, cpu, onnx and tune: measure this machine's kernels, keep what is fastest."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from soroq.core.errors import KernelError


def run_bench_gpu(out: Path, parts: str | None, seconds: float, trial: bool) -> int:
    """Run the parts of bench/kernels/gpu.py; return the exit code."""
    _require_triton()
    from soroq.bench.kernels import gpu

    arguments = ["--out", str(out), "--seconds", str(seconds)]
    arguments += ["--parts", parts] if parts else []
    return gpu.main([*arguments, "--try"] if trial else arguments)


def run_bench_cpu(arguments: Sequence[str]) -> int:
    """Run bench/kernels/cpu.py; return the exit code."""
    _require_compiled()
    from soroq.bench.kernels import cpu

    return cpu.main(arguments)


def run_bench_onnx(arguments: Sequence[str]) -> int:
    """Run bench/peers/onnx_race.py; return the exit code."""
    _require_compiled()
    from soroq.bench.peers import onnx_race

    return onnx_race.main(arguments)


def parse_rows(text: str) -> list[int]:
    """Parse "1,16,64". Raises KernelError."""
    try:
        rows = [int(part) for part in text.split(",")]
    except ValueError:
        rows = []
    if not rows or min(rows) < 1:
        raise KernelError(f"--rows {text!r} is not a list of numbers of tokens, e.g. 1,16,64")
    return rows


def run_tune(model: str, rows: Sequence[int]) -> Path:
    """Time configurations for every product of a quantized model; keep the fastest of each."""
    _require_triton()
    device = _require_gpu()
    from soroq.bench.kernels.shapes import Shape
    from soroq.bench.kernels.tuning import entries, tune
    from soroq.kernels.triton.config import add_tuned
    from soroq.kernels.triton.ops import device_facts
    from soroq.loading import load
    from soroq.nn.tiled import TiledLinear

    network = load(model, device=device)
    tiled = [module for module in network.modules() if isinstance(module, TiledLinear)]
    products = {(m.out_features, m.in_features, m.group, m.bits) for m in tiled}
    if not products:
        raise KernelError(f"{model} has no int4 or int8 weights in tiles; quantize it first")
    del network, tiled
    name = device_facts(device)[0]
    path = Path()
    for N, K, group, bits in sorted(products):
        for M in rows:
            shape = Shape(f"{N}x{K} group {group} int{bits}", N, K)
            best = tune(shape, M, device, bits=bits, group=group, listen=print)
            # each at once: an interrupted run keeps what it has
            path = add_tuned(name, entries(shape, M, bits, group, best))
    return path


def run_doctor() -> None:
    """Print what the kernels use here and what the machine can do at most, measured now."""
    from soroq import console, decoder
    from soroq.kernels.panels import is_built

    rows = [
        ["compiled kernels", decoder.isa() if is_built() else "not built; pip install . builds"]
    ]
    if is_built():
        from soroq import _cpu
        from soroq.kernels.cpu import ceilings

        threads = _cpu.num_threads()
        rows += [
            ["why", _cpu.isa_reason()],
            ["others that run here", ", ".join(_cpu.usable_isas())],
            ["threads", f"{threads} (SOROQ_NUM_THREADS)"],
            ["read", f"{ceilings.read_gb_s(threads):.0f} GB/s"],
            ["int8 products", f"{ceilings.int8_gop_s(threads):.0f} GOP/s"],
            ["float32 products", f"{ceilings.fma_gflop_s(threads):.0f} GFLOP/s"],
        ]
    rows.append(["CUDA devices", str(torch.cuda.device_count())])
    console.table("this machine", ["what", "value"], rows)


def _require_triton() -> None:
    from soroq.kernels.triton.support import is_installed

    if not is_installed():
        raise KernelError("triton is not installed: pip install triton (Linux)")


def _require_compiled() -> None:
    from soroq.kernels.cpu.ops import is_built

    if not is_built():
        raise KernelError("soroq._cpu is not built: pip install -e . in the checkout")


def _require_gpu() -> torch.device:
    if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("no CUDA device here; run it on the machine that will serve the model")
    return torch.device("cuda")
