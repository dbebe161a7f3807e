"""How a kernel is launched: blocks, slices, warps. Shipped per device, a rule for the rest.

`configs/<device>.json` maps a `key` to a Config, and a key and CUDA_CPP to a CudaConfig or a
WarpgroupConfig where such a kernel was faster; what `soroq tune` found on this machine comes on
top of it. Devices and shapes that nobody tuned get a rule. Nothing here touches a GPU, and nothing
tunes by itself.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from soroq.core.cache import cache_root
from soroq.kernels.cuda import config as cuda
from soroq.kernels.cuda import warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig

BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)  # M up to and including; beyond the last: "more"
COARSE = 128  # beyond it a file may have one configuration for all M, under "more"
SCRATCH_CELLS = 4 * 128 * 64  # an SM: partial sums of split products
SCRATCH_COUNTERS = 16  # an SM: blocks of y of split products
CONFIGS = Path(__file__).parent / "configs"
CUDA_CPP = " c++"  # behind a key: how to launch a CUDA C++ kernel, where one was faster


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


Launch = Config | CudaConfig | WarpgroupConfig


def fits(config: Launch, M: int, N: int, sms: int) -> bool:
    """Tell whether a split launch finds room in the scratch of a device of `sms` SMs."""
    cells, counters = config.scratch(M, N)
    return cells <= SCRATCH_CELLS * sms and counters <= SCRATCH_COUNTERS * sms


def bucket(M: int) -> str:
    """Return the name of the range of M that shares a configuration."""
    return next((str(top) for top in BUCKETS if top >= M), "more")


def choose(
    device: str,
    sms: int,
    M: int,
    N: int,
    K: int,
    group: int,
    bits: int,
    *,
    cuda_cpp: bool = False,
    hopper: bool = False,
) -> Launch:
    """Return how to launch a product on `device` (as torch names it) with `sms` SMs.

    cuda_cpp: whether the CUDA C++ kernel for few tokens can be taken; hopper: the one for many.
    """
    name = key(M, N, K, group, bits)
    tuned = known(device)
    faster = tuned.get(name + CUDA_CPP)
    if faster is not None and fits(faster, M, N, sms):
        if hopper if isinstance(faster, WarpgroupConfig) else cuda_cpp:
            return faster
    if name not in tuned and M > COARSE:
        name = key(BUCKETS[-1] + 1, N, K, group, bits)
    if name in tuned and fits(tuned[name], M, N, sms):
        return tuned[name]
    if cuda_cpp and not cuda.objection(device, M, N, K, bits):
        config = cuda.rule(sms, M, N, K, bits)
        if fits(config, M, N, sms):
            return config
    if hopper and not warpgroups.objection(M, N, K):
        return warpgroups.rule(sms, M, N, K, bits)
    return rule(sms, M, N, K)


def key(M: int, N: int, K: int, group: int, bits: int) -> str:
    """Return the name under which a product's configuration is kept."""
    return f"int{bits} {N}x{K} group {group} M {bucket(M)}"


def rule(sms: int, M: int, N: int, K: int) -> Config:
    """Return a configuration from the shape alone, after what was fastest on an H100.

    Few rows of x: two warps a block keep mma.sync fragments wide (four would start wgmma on Hopper,
    which costs more instructions than it saves below M = 32). K is sliced until there are a few
    programs an SM, never thinner than two tiles of 128.
    """
    steps = -(-K // 128)
    if M <= 16:
        block_n = 64 if M <= 8 and N * K <= 30_000_000 else 128
        splits = round(4 * sms / -(-N // block_n))
        block_m = 8 if M <= 8 else 16
        return Config(block_m, block_n, max(1, min(splits, steps // 2)), 2, 3, deferred=True)
    block_m = 32 if M <= 32 else 64
    if M > 128 and -(-N // 128) * -(-M // 128) >= 3 * sms:
        return Config(128, 128, 1, 8, 2, deferred=False)
    blocks = -(-N // 128) * -(-M // block_m)
    splits = max(1, min((2 if M <= 64 else 3) * sms // blocks, steps // 4))
    return Config(block_m, 128, splits, 4, 3, deferred=M <= 32)


@cache
def known(device: str) -> dict[str, Launch]:
    """Return the tuned configurations of a device, {} when nobody tuned it."""
    found: dict[str, Launch] = {}
    for folder in (CONFIGS, tuned_folder()):
        path = folder / file_name(device)
        if path.is_file():
            found |= _read(path)
    return found


def _read(path: Path) -> dict[str, Launch]:
    def launch(value: dict[str, Any]) -> Launch:
        if "tokens_8" in value:
            return CudaConfig(**value)
        return WarpgroupConfig(**value) if "groups" in value else Config(**value)

    return {k: launch(value) for k, value in json.loads(path.read_text()).items()}


def tuned_folder() -> Path:
    """Return where `soroq tune` keeps what it found on this machine."""
    return cache_root() / "triton"


def add_tuned(device: str, configs: Mapping[str, Launch]) -> Path:
    """Keep configurations for a device on this machine, beside those already kept."""
    path = tuned_folder() / file_name(device)
    kept = _read(path) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(to_json(kept | dict(configs)))
    os.replace(temporary, path)
    known.cache_clear()
    return path


def file_name(device: str) -> str:
    """Return the file of a device as torch names it."""
    return device.lower().replace(" ", "-") + ".json"


def to_json(configs: Mapping[str, Launch]) -> str:
    """Return the text of a file of configurations."""
    return json.dumps({k: asdict(v) for k, v in sorted(configs.items())}, indent=1) + "\n"
