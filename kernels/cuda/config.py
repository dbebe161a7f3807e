"""How the CUDA C++ kernel is launched, and which launches are worth trying for a shape."""

import math
from dataclasses import dataclass
from functools import cache

TOKENS = 8  # of one tensor-core instruction
MOST_WARPS = 8  # of a block
MOST_TOKENS = 16  # that the kernel is meant for: more are several passes over the weights
SMALL_BYTES = 10_000_000  # of codes: up to here 9 to 16 tokens go to it too when nobody tuned them
# on an H200 Triton's kernel read larger weights faster, 34.2 µs to 40.3 on 27B's gate and up
FAST_MEMORY, FAST_BYTES = ("H200",), 30_000_000
# what was compiled: (tokens_8, rows_16, depth) → registers a thread on sm_90, rounded up; the
# second table is for int8
REGISTERS = {
    (1, 1, 2): 80,
    (1, 1, 4): 104,
    (1, 2, 2): 112,
    (1, 2, 4): 168,
    (1, 4, 2): 176,
    (2, 1, 2): 112,
    (2, 1, 4): 128,
    (2, 2, 2): 160,
    (2, 4, 1): 192,
}
REGISTERS_INT8 = {(1, 1, 2): 104, (1, 1, 4): 168, (1, 2, 2): 168, (2, 1, 2): 136}
_SM_REGISTERS, _SM_WARPS, _SM_BLOCKS = 65536, 48, 16  # the least among sm_80 and newer
_SPARE_KB = 28  # in flight an SM: less than this leaves memory idle (H100: 3 TB/s · 1.2 µs / 132)


@dataclass(frozen=True)
class CudaConfig:
    """One way to launch it.

    tokens_8, rows_16: blocks of 8 tokens and of 16 rows of W that a warp multiplies; depth: steps
    of K in flight a warp; warps_n, warps_k: warps of a block along rows and along K; splits: slices
    of K over blocks.
    """

    tokens_8: int
    rows_16: int
    depth: int
    warps_n: int
    warps_k: int
    splits: int

    def __post_init__(self) -> None:
        if (self.tokens_8, self.rows_16, self.depth) not in REGISTERS:
            raise ValueError(f"{self} was not compiled")
        if self.warps_n * self.warps_k > MOST_WARPS:
            raise ValueError(f"{self}: a block has at most {MOST_WARPS} warps")
        if 128 % self.block_rows:  # tiles are padded to no more
            raise ValueError(f"blocks of {self.block_rows} rows don't divide 128")

    @property
    def block_rows(self) -> int:
        """Rows of W that a block multiplies."""
        return 16 * self.rows_16 * self.warps_n

    def blocks(self, M: int, N: int) -> tuple[int, int]:
        """Return how many blocks of W's rows and of x's rows there are."""
        return -(-N // self.block_rows), -(-M // (TOKENS * self.tokens_8))

    def scratch(self, M: int, N: int) -> tuple[int, int]:
        """Return how many partial sums and counters a launch needs; (0, 0) without slices."""
        if self.splits == 1:
            return 0, 0
        blocks_n, blocks_m = self.blocks(M, N)
        cells = self.block_rows * TOKENS * self.tokens_8
        return blocks_n * blocks_m * self.splits * cells, blocks_n * blocks_m


def candidates(sms: int, M: int, N: int, K: int, bits: int) -> list[CudaConfig]:
    """Return launches that may be fast for x (M, K), the likeliest first.

    What they are sorted by: how evenly the steps divide among a block's warps, how much of the last
    round of blocks is idle, whether enough is in flight, and what slices over blocks cost.
    """
    steps = -(-K // 128)
    registers = REGISTERS if bits == 4 else REGISTERS_INT8
    found = []
    for (tokens_8, rows_16, depth), used in registers.items():
        if tokens_8 != (1 if M <= TOKENS else 2):
            continue
        for warps_n in (1, 2, 4):
            for warps_k in range(1, 9):
                warps = warps_n * warps_k
                if warps > MOST_WARPS or 128 % (16 * rows_16 * warps_n):
                    continue
                resident = min(_SM_BLOCKS, _SM_REGISTERS // (used * 32 * warps), _SM_WARPS // warps)
                for splits in (1, 2, 3, 4):
                    if not resident or steps < splits * warps_k:
                        continue
                    config = CudaConfig(tokens_8, rows_16, depth, warps_n, warps_k, splits)
                    blocks_n, blocks_m = config.blocks(M, N)
                    blocks = blocks_n * blocks_m * splits
                    rounds = blocks / (resident * sms)
                    idle = math.ceil(rounds) / rounds - 1 if rounds > 1 else 0
                    slice_steps = -(-steps // splits)
                    uneven = -(-slice_steps // warps_k) * warps_k * splits / steps
                    kb = min(blocks, resident * sms) * warps * rows_16 * depth * (bits / 4) / sms
                    cost = uneven * (1 + 0.7 * idle) * (1 + 0.15 * (splits - 1))
                    found.append((cost * max(1, _SPARE_KB / kb), config))
    return [config for _, config in sorted(found, key=lambda pair: pair[0])]


@cache
def rule(sms: int, M: int, N: int, K: int, bits: int) -> CudaConfig:
    """Return a launch from the shape alone."""
    return candidates(sms, M, N, K, bits)[0]


def objection(device: str, M: int, N: int, K: int, bits: int) -> str:
    """Return why the kernel isn't meant for a product on `device` (its name), '' if it is."""
    if M > MOST_TOKENS:
        return f"more than {MOST_TOKENS} rows of x"
    if K % 8:
        return "K is not a multiple of 8"
    if M > TOKENS and N * K * bits // 8 > SMALL_BYTES:
        return f"more than {TOKENS} rows of x on a large weight"
    if N * K * bits // 8 > FAST_BYTES and any(name in device for name in FAST_MEMORY):
        return "a large weight in fast memory"
    return ""
