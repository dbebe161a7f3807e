"""How a kernel is launched: blocks, slices, warps. Shipped per device, a rule for the rest.

`configs/<device>.json` maps a `key` to a Config; what `soroq tune` found on this machine comes on
top of it. Devices and shapes that nobody tuned get `rule`. Nothing here touches a GPU, and nothing
tunes by itself.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from soroq.core.cache import cache_root

BUCKETS = (8, 16, 32, 64, 128)  # M up to and including; beyond the last: "more"
MAX_PROGRAMS_PER_SM = 4  # split products don't start more: their scratch is sized by it
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Config:
    """One way to launch matmul_tiles. `splits`: slices of K, added in a fixed order."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int
    deferred: bool

    def __post_init__(self) -> None:
        if self.block_n not in (64, 128):  # tiles are padded to no more
            raise ValueError(f"block_n {self.block_n} is not 64 or 128")

    def blocks(self, M: int, N: int) -> tuple[int, int]:
        """Return how many blocks of W's rows and of x's rows there are."""
        return -(-N // self.block_n), -(-M // self.block_m)

    def scratch(self, M: int, N: int) -> tuple[int, int]:
        """Return how many partial sums and counters a launch needs; (0, 0) without slices."""
        if self.splits == 1:
            return 0, 0
        blocks_n, blocks_m = self.blocks(M, N)
        cells = blocks_n * blocks_m
        return cells * self.splits * self.block_m * self.block_n, cells

    def fits(self, M: int, N: int, sms: int) -> bool:
        """Tell whether a split launch finds room in the scratch of a device of `sms` SMs."""
        blocks_n, blocks_m = self.blocks(M, N)
        programs = blocks_n * blocks_m * self.splits
        return self.splits == 1 or programs <= MAX_PROGRAMS_PER_SM * sms


def bucket(M: int) -> str:
    """Return the name of the range of M that shares a configuration."""
    return next((str(top) for top in BUCKETS if top >= M), "more")


def choose(device: str, sms: int, M: int, N: int, K: int, group: int, bits: int) -> Config:
    """Return the configuration for a product on `device` (as torch names it) with `sms` SMs."""
    tuned = known(device).get(key(M, N, K, group, bits))
    if tuned is not None and tuned.fits(M, N, sms):
        return tuned
    return rule(sms, M, N, K)


def key(M: int, N: int, K: int, group: int, bits: int) -> str:
    """Return the name under which a product's configuration is kept."""
    return f"int{bits} {N}x{K} group {group} M {bucket(M)}"


def rule(sms: int, M: int, N: int, K: int) -> Config:
    """Return a configuration from the shape alone.

    Few rows of x: two warps a block keep mma.sync fragments wide (four would start wgmma on Hopper,
    which costs more instructions than it saves below M = 32). K is sliced until there are about
    three programs an SM, never thinner than four tiles of 128.
    """
    steps = -(-K // 128)
    if M <= 16:
        block_m, warps, stages = (8 if M <= 8 else 16), 2, 4
        block_n = 128
    elif M <= 64:
        block_m, block_n, warps, stages = (32 if M <= 32 else 64), 128, 4, 3
    else:
        return Config(128, 128, 1, 8, 3, deferred=False)
    blocks = -(-N // block_n) * -(-M // block_m)
    splits = max(1, min(3 * sms // blocks, steps // 4))
    return Config(block_m, block_n, splits, warps, stages, deferred=True)


@cache
def known(device: str) -> dict[str, Config]:
    """Return the tuned configurations of a device, {} when nobody tuned it."""
    found: dict[str, Config] = {}
    for folder in (CONFIGS, tuned_folder()):
        path = folder / file_name(device)
        if path.is_file():
            found |= {k: Config(**value) for k, value in json.loads(path.read_text()).items()}
    return found


def tuned_folder() -> Path:
    """Return where `soroq tune` keeps what it found on this machine."""
    return cache_root() / "triton"


def add_tuned(device: str, configs: dict[str, Config]) -> Path:
    """Keep configurations for a device on this machine, beside those already kept."""
    path = tuned_folder() / file_name(device)
    kept: dict[str, Config] = {}
    if path.is_file():
        kept = {k: Config(**value) for k, value in json.loads(path.read_text()).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(to_json(kept | configs))
    os.replace(temporary, path)
    known.cache_clear()
    return path


def file_name(device: str) -> str:
    """Return the file of a device as torch names it."""
    return device.lower().replace(" ", "-") + ".json"


def to_json(configs: dict[str, Config]) -> str:
    """Return the text of a file of configurations."""
    return json.dumps({k: asdict(v) for k, v in sorted(configs.items())}, indent=1) + "\n"
