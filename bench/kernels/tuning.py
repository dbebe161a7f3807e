"""Find the fastest configuration of a product by timing candidates cold, one after the other."""

from collections.abc import Callable, Iterable

import torch

from soroq.bench.kernels.contenders import GROUP, inputs, random_tiles
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call, cold_copies, race
from soroq.kernels.triton import matmul_tiles, ops, scratch
from soroq.kernels.triton.config import Config, rule

SHARED = 99 * 1024  # of the smallest device that is served; larger ones have more
AT_ONCE = 12  # configurations raced in one go
BUCKET_M = (1, 16, 32, 64, 128, 256)  # the M that stands for each range


def candidates(sms: int, M: int, N: int, K: int) -> list[Config]:
    """Return the configurations worth timing, the rule's first."""
    first = rule(sms, M, N, K)
    steps = -(-K // 128)
    block_ms = {8: (8,), 16: (16,), 32: (32, 16), 64: (64, 32)}.get(first.block_m, (128, 64))
    found = [first]
    for block_m in block_ms:
        for block_n in (64, 128):
            for warps in (2, 4, 8):
                for stages in (2, 3, 4, 5):
                    for deferred in (True, False) if block_m >= 32 else (True,):
                        for splits in _splits(sms, M, N, block_m, block_n, steps):
                            config = Config(block_m, block_n, splits, warps, stages, deferred)
                            if _plausible(config) and config.fits(M, N, sms):
                                found.append(config)
    return list(dict.fromkeys(found))


def _splits(sms: int, M: int, N: int, block_m: int, block_n: int, steps: int) -> list[int]:
    """Return numbers of slices that give about one, two, three and four programs an SM."""
    blocks = -(-N // block_n) * -(-M // block_m)
    wanted = {max(1, min(times * sms // blocks, steps // 2)) for times in (1, 2, 3, 4)}
    return sorted(wanted | {1})


def _plausible(config: Config) -> bool:
    tile = config.block_n * 64 + config.block_m * 128 * 2  # bytes of one step of weights and x
    if tile * config.stages > SHARED or config.block_n < 16 * config.warps:
        return False
    # accumulators alone: float32 over the lanes of a program, two of them when deferred
    held = config.block_n * config.block_m * (2 if config.deferred else 1)
    return held <= 32 * config.warps * 128 and (config.warps <= 4 or config.block_m >= 64)


def tune(
    shape: Shape,
    M: int,
    device: torch.device,
    *,
    bits: int = 4,
    group: int = GROUP,
    listen: Callable[[str], None] = lambda text: None,
) -> tuple[Config, float]:
    """Return the fastest configuration for x (M, K) and microseconds a call; it may be the rule's.

    Rounds of AT_ONCE candidates are raced, then the winners against each other and the rule. A
    candidate that doesn't compile or launch is left out.
    """
    sms = ops.device_facts(device)[1]
    copies = cold_copies(shape.int4_bytes * bits // 4, device)
    weights = [random_tiles(shape, device, bits=bits, group=group) for _ in range(copies)]
    x = inputs(M, shape.K, device)
    y = torch.empty(M, shape.N, dtype=x.dtype, device=device)

    def call(config: Config) -> Call:
        def run(i: int) -> None:
            memory = scratch.get(device, sms)
            matmul_tiles.run(x, weights[i], y, config, memory.partials, memory.counters)

        return run

    def best(configs: Iterable[Config], rounds: int) -> tuple[Config, float]:
        working = {}
        for config in configs:
            try:
                call(config)(0)
                working[str(config)] = config
            except Exception as error:  # the compiler's own: out of shared memory or registers
                listen(f"{shape.name} M {M}: {config} left out: {type(error).__name__}")
        timed = race({k: (call(c), copies) for k, c in working.items()}, device, rounds)
        winner = min(timed, key=lambda k: timed[k].median)
        return working[winner], timed[winner].median

    tried = candidates(sms, M, shape.N, shape.K)
    winners = [tried[0]]
    for start in range(0, len(tried), AT_ONCE):
        part = tried[start : start + AT_ONCE]
        winner, microseconds = best(part, 8)
        winners.append(winner)
        listen(f"{shape.name} M {M}: {start + len(part)}/{len(tried)} {microseconds:.1f} us")
    return best(dict.fromkeys(winners), 20)
