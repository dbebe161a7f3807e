"""Tokens a second from bytes, and money from tokens. Every result is an estimate and says of what.

A token reads all weights and the cache once: bytes / (bandwidth · what a plain read reaches of it ·
what our kernels reach of a plain read). The two shares are in measured.json, made from the records
by `python -m soroq.bench.measured`, or are assumptions that say so.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from soroq.core.scheme import QuantArgs
from soroq.planning.devices import Device
from soroq.planning.shapes import ModelShape

SECONDS_A_YEAR = 365.25 * 24 * 3600
BUFFERS_GB = 0.3  # activations, runtime, tokenizer: assumed


@dataclass(frozen=True)
class Share:
    """A share between 0 and 1, and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Format:
    """Formats of linears and of the tied embedding and head; None is bfloat16."""

    name: str
    linears: QuantArgs | None
    embed: QuantArgs | None


_INT4 = QuantArgs(bits=4, group_size=128, symmetric=False)
_FP8 = QuantArgs(dtype="float", bits=8, group_size=None)
FORMATS = (
    Format("bfloat16", None, None),
    Format("fp8", _FP8, None),
    Format("int4", _INT4, None),
    Format("int4, head int8", _INT4, QuantArgs(bits=8, group_size=64)),
    Format("int4, head int4", _INT4, QuantArgs(bits=4, group_size=32, symmetric=False)),
)


@dataclass(frozen=True)
class Use:
    """How a machine is used, and what electricity costs.

    users: sequences at once, each `context` tokens long; hours_a_day and days_a_year of load.
    """

    context: int = 2048
    users: int = 1
    hours_a_day: float = 6
    days_a_year: int = 200
    usd_a_kwh: float = 0.05
    lifetime_years: float = 5


@dataclass(frozen=True)
class Estimate:
    """What a format needs and gives on a device; bytes and tokens/s of all users together."""

    format: str
    weight_bytes: int
    kv_bytes: int
    fits: bool
    most_users: int
    tokens_a_second: float
    kwh_a_million: float
    usd_a_year: float
    usd_a_million: float


def efficiency(kind: str) -> tuple[Share, Share]:
    """Return what a read reaches of the datasheet, and our kernels of a read.

    kind: 'cpu' or 'gpu'.
    """
    found = measured()
    return (
        found.get(f"{kind} read of datasheet", Share(0.8, "assumed")),
        found.get(f"{kind} kernels of read", Share(0.5, "assumed")),
    )


@cache
def measured() -> dict[str, Share]:
    """Return what measured.json holds, by name."""
    path = Path(__file__).parent / "measured.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: Share(float(e["value"]), str(e["source"])) for name, e in found.items()}


def estimate(model: ModelShape, device: Device, made: Format, use: Use) -> Estimate:
    """Return what `made` needs and gives for a use of a device."""
    weights, read = model.weight_bytes(made.linears, made.embed)
    kv = model.kv_bytes(use.context)
    room = device.memory_gb * 1e9 * device.usable - BUFFERS_GB * 1e9 - weights
    most = max(0, int(room // kv)) if kv else 0
    reads, kernels = efficiency(device.kind)
    speed = device.bandwidth_gb_s * 1e9 * reads.value * kernels.value
    # a step reads the weights once for all users, and each user's cache, half full on average
    seconds = (read + use.users * kv / 2) / speed
    rate = use.users / seconds
    hours = use.hours_a_day * use.days_a_year
    kwh = device.watts / 1000 * hours
    tokens = rate * hours * 3600
    yearly = kwh * use.usd_a_kwh + device.price_usd / use.lifetime_years
    return Estimate(
        made.name,
        weights,
        kv * use.users,
        most >= use.users,
        most,
        rate,
        kwh / tokens * 1e6,
        yearly,
        yearly / tokens * 1e6,
    )
