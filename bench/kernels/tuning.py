"""Find the fastest launches of a product by timing candidates cold, in turn.

The candidates of each kernel, Triton's and the two in CUDA C++, are raced among themselves, then
the winners against each other; from 256 tokens on W unpacked for cuBLAS is timed beside them.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from soroq.bench.kernels.contenders import GROUP, inputs, random_tiles
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call, cold_copies, race
from soroq.kernels.cuda import config as cuda
from soroq.kernels.cuda import matmul_tiles as cuda_cpp
from soroq.kernels.cuda import warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig
from soroq.kernels.tiles import ALIGN_N
from soroq.kernels.triton import matmul_tiles, ops, scratch
from soroq.kernels.triton.config import CUDA_CPP, Config, Launch, fits, key, rule

SHARED = 99 * 1024  # of the smallest device that is served; larger ones have more
AT_ONCE = 12  # launches raced in one go
MOST_CUDA = 24  # candidates of the CUDA C++ kernel for few tokens
MOST_HOPPER = 12  # of the one for many
BUCKET_M = (1, 16, 32, 64, 128, 256, 512, 1024)  # the M that stands for each range
MANY = 512  # from here on Triton's kernel is timed by its rule alone
UNPACKED = 256  # and from here on W unpacked for cuBLAS runs too
CLEARLY = 0.98  # a CUDA kernel is kept where it takes less than this share of the others' time


@dataclass(frozen=True)
class Tuned:
    """The fastest launches of one product, with microseconds a call."""

    triton: Config
    triton_us: float
    cuda: CudaConfig | WarpgroupConfig | None
    cuda_us: float | None
    unpacked_us: float | None = None

    def entries(self, name: str) -> dict[str, Launch]:
        """Return what a file of configurations keeps of it under `name`."""
        found: dict[str, Launch] = {name: self.triton}
        others = min(self.triton_us, self.unpacked_us or self.triton_us)
        if self.cuda is not None and self.cuda_us is not None and self.cuda_us < CLEARLY * others:
            found[name + CUDA_CPP] = self.cuda
        return found


def candidates(sms: int, M: int, N: int, K: int) -> list[Config]:
    """Return the Triton kernel's launches worth timing, the rule's first."""
    steps = -(-K // 128)
    if M <= 16:
        block_m = 8 if M <= 8 else 16
        blocks = [(block_m, 64, 2), (block_m, 64, 4), (block_m, 128, 2), (block_m, 128, 4)]
        kinds, per_sm = [True], [2, 4, 8]
    elif M <= 64:
        block_m = 32 if M <= 32 else 64
        blocks = [(block_m, 128, 4), (block_m, 64, 4)]
        kinds, per_sm = [True, False] if M <= 32 else [False], [1, 2, 4]
    else:
        blocks = [(64, 128, 4), (128, 128, 4), (128, 128, 8), (128, 64, 4)]
        kinds, per_sm = [False], [1, 3]
    found = [rule(sms, M, N, K)]
    if M >= MANY:
        return found
    for block_m, block_n, warps in blocks:
        cells = -(-N // block_n) * -(-M // block_m)
        slices = {max(1, min(round(times * sms / cells), steps // 2)) for times in per_sm}
        for splits in sorted(slices | {1}):
            for deferred in kinds:
                config = Config(block_m, block_n, splits, warps, 3, deferred)
                if fits(config, M, N, sms):
                    found.append(config)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Job:
    """One Triton kernel to compile."""

    N: int
    K: int
    group: int
    bits: int
    has_zeros: bool
    dtype: torch.dtype
    out: torch.dtype
    config: Config


def compile_candidates(work: Iterable[tuple[Shape, int]], sms: int) -> None:
    """Compile all candidates of (shape, M) as they are tuned."""
    compile_ahead(
        Job(shape.N, shape.K, GROUP, 4, False, torch.bfloat16, torch.bfloat16, config)
        for shape, M in work
        for config in candidates(sms, M, shape.N, shape.K)
    )


def compile_ahead(jobs: Iterable[Job]) -> None:
    """Compile in many processes; later launches find the kernels on disk.

    What doesn't compile is left to be found out when it is launched.
    """
    workers = max(1, (os.cpu_count() or 1) - 2)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for _ in pool.map(_compile, dict.fromkeys(jobs), chunksize=2):
            pass


def _compile(job: Job) -> None:
    half = job.dtype
    zeros = torch.uint8 if job.has_zeros else half
    try:
        matmul_tiles.matmul_tiles_kernel.warmup(
            *(half, torch.int16, half, zeros, job.out, job.out, torch.float32, torch.int32, 1),
            **matmul_tiles.constants(
                N=job.N,
                K=job.K,
                rows=-(-job.N // ALIGN_N) * ALIGN_N,
                group=job.group,
                has_zeros=job.has_zeros,
                bits=job.bits,
                config=job.config,
                epilogue="none",
                portable=False,
            ),
            num_warps=job.config.warps,
            num_stages=job.config.stages,
            grid=(1, 1),
        )
    except Exception:  # the compiler's own; the launch says so
        pass


def tune(
    shape: Shape,
    M: int,
    device: torch.device,
    *,
    bits: int = 4,
    group: int = GROUP,
    listen: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Return the fastest launches for x (M, K); Triton's may be the rule's.

    A candidate that doesn't compile or launch is left out.
    """
    sms = ops.device_facts(device)[1]
    copies = cold_copies(shape.int4_bytes * bits // 4, device)
    weights = [random_tiles(shape, device, bits=bits, group=group) for _ in range(copies)]
    x = inputs(M, shape.K, device)
    y = torch.empty(M, shape.N, dtype=x.dtype, device=device)

    def call(config: Launch) -> Call:
        def run(i: int) -> None:
            ops.launch(x, weights[i], y, config, scratch.get(device, sms))

        return run

    def timed(configs: Iterable[Launch], rounds: int) -> dict[Launch, float]:
        working: dict[str, Launch] = {}
        for config in configs:
            try:
                call(config)(0)
                working[str(config)] = config
            except Exception as error:  # the compiler's own: out of shared memory or registers
                listen(f"{shape.name} M {M}: {config} left out: {type(error).__name__}")
        found = race({k: (call(c), copies) for k, c in working.items()}, device, rounds)
        return {working[k]: timing.median for k, timing in found.items()}

    def best(configs: list[Launch]) -> Launch:
        winners: list[Launch] = []
        for start in range(0, len(configs), AT_ONCE):
            part = timed(configs[start : start + AT_ONCE], 5)
            winners += sorted(part, key=lambda c: part[c])[:2]
        final = timed(dict.fromkeys(winners), 15) if len(winners) > 2 else timed(winners, 8)
        return min(final, key=lambda c: final[c])

    triton = best(list(candidates(sms, M, shape.N, shape.K)))
    assert isinstance(triton, Config)
    finalists: list[Launch] = [triton]
    if device.type == "cuda" and cuda_cpp.library() is not None and M <= cuda.MOST_TOKENS:
        found = cuda.candidates(sms, M, shape.N, shape.K, bits)
        few: list[Launch] = [c for c in found if fits(c, M, shape.N, sms)]
        finalists.append(best(few[:MOST_CUDA]))
    if warpgroups.can_run(device) and M >= warpgroups.FEWEST_TOKENS:
        many = warpgroups.candidates(sms, M, shape.N, shape.K, bits)
        finalists.append(best(list(many[:MOST_HOPPER])))
    last = timed(finalists, 20)
    unpacked = None
    if M >= UNPACKED:
        calls = {"unpacked": (lambda i: ops.multiply_unpacked(x, weights[i], y), copies)}
        unpacked = race(calls, device, 20)["unpacked"].median
    listen(f"{shape.name} M {M}: " + ", ".join(f"{us:.2f} us {c}" for c, us in last.items()))
    others = {c: us for c, us in last.items() if not isinstance(c, Config)}
    faster = min(others, key=lambda c: others[c]) if others else None
    assert not isinstance(faster, Config)
    return Tuned(triton, last[triton], faster, others[faster] if faster else None, unpacked)


def entries(shape: Shape, M: int, bits: int, group: int, tuned: Tuned) -> dict[str, Launch]:
    """Return what a file of configurations keeps of a product."""
    return tuned.entries(key(M, shape.N, shape.K, group, bits))
