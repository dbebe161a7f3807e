"""y = x · Wᵀ for 9 rows of x and more on Hopper: how the kernel is launched, and the launch.

The library is `matmul_tiles`'s; it has this kernel where it was built for sm_90a.
"""

from dataclasses import dataclass
from functools import cache

import torch

from soroq.kernels.cuda.matmul_tiles import call, library
from soroq.kernels.tiles import TILE_K, TILE_N, TiledWeight

FEWEST_TOKENS = 9  # fewer are `matmul_tiles`'s
# what was faster on an H200 than the other kernels, for products that nobody tuned
FEWEST_UNTUNED = 65  # rows of x
MANY, WIDE, DEEP = 512, 8192, 2048  # from MANY rows of x on only W with so many rows and columns
REGISTERS = {16: 72, 32: 72, 64: 96, 128: 128, 256: 168}  # tokens of a block → of a thread, at most
SHARED_BYTES = 227 * 1024  # a block may have on sm_90
_SPARE_BYTES = 1536  # an SM keeps for each block, and the barriers
_MOST_STAGES, _MOST_PARTS = 8, 16
_FACTOR_BYTES = 768  # of a warpgroup's step: scales and zero points
_PAD = 4
_SM_REGISTERS = 65536
# a model of one SM of an H100, in cycles and bytes a cycle: good enough to sort candidates
_MEMORY, _L2, _SHARED = 14, 40, 64
_STARTS, _CLUSTER = 3000, 2000


@dataclass(frozen=True)
class WarpgroupConfig:
    """One way to launch it.

    tokens: of a block; groups: warpgroups of a block, each multiplies 64 rows of W; stages: steps
    of 128 columns of W in shared memory; parts: steps of x there (half steps of 256 tokens);
    splits: slices of K, the blocks of a cluster.
    """

    tokens: int
    groups: int
    stages: int
    parts: int
    splits: int

    def __post_init__(self) -> None:
        if self.tokens not in REGISTERS or not 1 <= self.groups <= most_groups(self.tokens):
            raise ValueError(f"{self} was not compiled")
        if not (2 <= self.stages <= _MOST_STAGES and 2 <= self.parts <= _MOST_PARTS):
            raise ValueError(f"{self}: 2 to {_MOST_STAGES} stages, 2 to {_MOST_PARTS} parts")
        if self.splits not in (1, 2, 4, 8):
            raise ValueError(f"{self}: 1, 2, 4 or 8 splits")

    def blocks(self, M: int, N: int) -> tuple[int, int]:
        """Return how many blocks of W's rows and of x's rows there are."""
        return -(-N // (TILE_N * self.groups)), -(-M // self.tokens)

    def scratch(self, M: int, N: int) -> tuple[int, int]:
        """Return how many partial sums and counters a launch needs: none."""
        return 0, 0

    def shared_bytes(self, bits: int) -> int:
        """Return the shared memory of a block."""
        rings = self.parts * _part_bytes(self.tokens) + self.stages * _step_bytes(self.groups, bits)
        sums = self.tokens * (TILE_N * self.groups + _PAD) * 4 if self.splits > 1 else 0
        return max(rings, sums)


def most_groups(tokens: int) -> int:
    """Return how many warpgroups a block of so many tokens has at most."""
    return 2 if tokens == 256 else 3


def _part_bytes(tokens: int) -> int:
    return tokens * TILE_K * 2 // (2 if tokens == 256 else 1)


def _step_bytes(groups: int, bits: int) -> int:
    return groups * (TILE_N * TILE_K * bits // 8 + _FACTOR_BYTES)


@cache
def is_built() -> bool:
    """Tell whether the library has the kernel."""
    return hasattr(library(), "soroq_matmul_warpgroups")


@cache
def can_run(device: torch.device) -> bool:
    """Tell whether `device` can run the kernel, and the library has it."""
    return (
        device.type == "cuda" and is_built() and torch.cuda.get_device_capability(device) == (9, 0)
    )


def objection(M: int, N: int, K: int) -> str:
    """Return why the kernel isn't meant for a product that nobody tuned, '' if it is."""
    if M < FEWEST_UNTUNED:
        return f"fewer than {FEWEST_UNTUNED} rows of x"
    if M >= MANY and (N < WIDE or K < DEEP):
        return f"{MANY} rows of x or more, and W is smaller than {WIDE} × {DEEP}"
    return "K is not a multiple of 8" if K % 8 else ""


def candidates(sms: int, M: int, N: int, K: int, bits: int) -> list[WarpgroupConfig]:
    """Return launches that may be fast for x (M, K), the likeliest first."""
    steps = -(-K // TILE_K)
    found: dict[WarpgroupConfig, float] = {}
    for tokens in REGISTERS:
        too_wide = tokens > 16 and tokens >= 2 * M
        if too_wide or tokens * 4 < min(M, 256) or (bits == 8 and tokens == 256):
            continue
        for groups in range(1, most_groups(tokens) + 1):
            for splits in (1, 2, 4, 8):
                if splits > 1 and steps < 3 * splits:
                    continue
                for resident in (1, 2, 3, 4):
                    config = _filling(tokens, groups, splits, bits, resident)
                    if config is not None:
                        found.setdefault(config, _cycles(config, sms, M, N, steps, bits, resident))
    return sorted(found, key=lambda config: found[config])


def _filling(
    tokens: int, groups: int, splits: int, bits: int, resident: int
) -> WarpgroupConfig | None:
    """Return the launch of which an SM holds `resident` blocks, None where it can't."""
    warps = groups * 4 + (4 if tokens == 256 else 2)
    if resident * -(-warps // 4) * 128 * REGISTERS[tokens] > _SM_REGISTERS:
        return None
    room = SHARED_BYTES // resident - _SPARE_BYTES
    part, step = _part_bytes(tokens), _step_bytes(groups, bits)
    parts = min((room - 4 * step) // part, _MOST_PARTS)
    stages = min((room - parts * part) // step, _MOST_STAGES)
    if parts < (4 if tokens == 256 else 2) or stages < 3:
        return None
    config = WarpgroupConfig(tokens, groups, stages, parts, splits)
    return config if config.shared_bytes(bits) <= room else None


def _cycles(
    config: WarpgroupConfig, sms: int, M: int, N: int, steps: int, bits: int, resident: int
) -> float:
    """Return about how many cycles the busiest SM takes."""
    rows, tokens = config.blocks(M, N)
    busiest = -(-rows * tokens * config.splits // sms)
    together = min(resident, busiest)
    own = -(-steps // config.splits)  # steps of a block
    alone = 1.3 if together * config.groups == 1 else 1.0  # nothing runs while codes are expanded
    tensor = config.groups * 8 * max(config.tokens / 2, 24) * alone
    w_bytes = config.groups * TILE_N * TILE_K * bits // 8
    through = (w_bytes + config.tokens * TILE_K * 2) / _L2
    flight = together * config.stages * w_bytes
    memory = rows * config.splits * own * w_bytes / sms / min(_MEMORY, flight / 2000)
    ends = config.tokens * TILE_N * config.groups * 4 / _SHARED + _STARTS / together
    split = _CLUSTER * config.splits if config.splits > 1 else 0
    return max(busiest * own * max(tensor, through), memory) + busiest * ends + split


@cache
def rule(sms: int, M: int, N: int, K: int, bits: int) -> WarpgroupConfig:
    """Return a launch from the shape alone: blocks of as many tokens as there are, up to a bound.

    256 only from 257 tokens on and for wide W, as measured on an H200.
    """
    widest = 256 if M > 256 and N >= WIDE and bits == 4 else 128
    tokens = min((t for t in REGISTERS if t >= M), default=widest)
    tokens = min(tokens, widest)
    return next(c for c in candidates(sms, M, N, K, bits) if c.tokens == tokens)


def run(
    x: torch.Tensor,
    weight: TiledWeight,
    y: torch.Tensor,
    config: WarpgroupConfig,
    *,
    epilogue: str = "none",
    extra: torch.Tensor | None = None,
    overlaps: bool = True,
) -> None:
    """Write x (M, K) · Wᵀ into y (M, N), contiguous; y is float32 or x's dtype.

    As `matmul_tiles.run`; W is rounded to x's dtype. x is copied first, arranged for the kernel.
    """
    if not is_built():
        raise RuntimeError("the CUDA library is not built for sm_90a")
    rows = -(-x.shape[0] // config.tokens) * config.tokens
    image = x.new_empty(rows, -(-weight.K // TILE_K) * TILE_K)
    call("matmul_warpgroups", x, weight, y, extra, (image,), epilogue, config, overlaps)
