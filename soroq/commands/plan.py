"""plan: what fits where, how fast, at what price; a table, Markdown or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from soroq import console
from soroq.core.errors import SoroqError
from soroq.io.writer import atomic_write
from soroq.planning.devices import DEVICES, Device, get_device
from soroq.planning.estimate import FORMATS, Estimate, Use, efficiency, estimate
from soroq.planning.shapes import ModelShape, find_shape

COLUMNS = ["format", "GB", "cache GB", "fits", "users", "tokens/s", "kWh/M", "USD/year", "USD/M"]


def parse_size(text: str, unit: str, option: str) -> float:
    """Return a number of `unit` ("GB", "GB/s"). Raises SoroqError, e.g. for another unit."""
    number = text.strip().removesuffix(unit).strip()
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise SoroqError(f"{option} {text!r}: give a number of {unit}, e.g. {option} 8{unit}")
    return value


def choose_devices(
    names: Sequence[str],
    memory: str,
    bandwidth: str,
    watts: float | None,
    price: float | None,
) -> list[Device]:
    """Return the devices asked for; all of them when nothing is asked for.

    memory and bandwidth describe one of one's own, watts and price apply to it, or replace those
    of the named ones. Raises SoroqError for unknown names and half a description.
    """
    if bool(memory) != bool(bandwidth):
        raise SoroqError("a device of one's own needs --memory and --bandwidth")
    found = [get_device(name) for name in names]
    if memory:
        own = Device(
            *("custom", "cpu", parse_size(memory, "GB", "--memory"), 0.85),
            *(parse_size(bandwidth, "GB/s", "--bandwidth"), watts or 0.0, price or 0.0),
            "as given; CPU kernels",
        )
        found.append(own)
    elif not found:
        found = list(DEVICES.values())
    if watts is not None:
        found = [replace(device, watts=watts) for device in found]
    if price is not None:
        found = [replace(device, price_usd=price) for device in found]
    return found


def run_plan(
    model: str, devices: Sequence[Device], use: Use, json_out: bool, markdown: Path | None
) -> None:
    """Print what each format of a model needs and gives on each device."""
    shape = find_shape(model)
    plans = {d.name: [estimate(shape, d, made, use) for made in FORMATS] for d in devices}
    if markdown is not None:
        atomic_write(markdown, _markdown(shape, devices, use, plans).encode())
    if json_out:
        document = {
            "model": asdict(shape) | {"parameters": shape.parameters},
            "use": asdict(use),
            "devices": [
                asdict(d)
                | {"shares": [asdict(share) for share in efficiency(d.kind)]}
                | {"formats": [asdict(e) for e in plans[d.name]]}
                for d in devices
            ],
        }
        print(json.dumps(document, indent=2))
        return
    for device in devices:
        console.table(_title(device), COLUMNS, [_row(e) for e in plans[device.name]])
    console.out.print("\n".join(_notes(shape, devices, use)), highlight=False)


def _title(device: Device) -> str:
    return (
        f"{device.name}: {device.memory_gb:g} GB, {device.bandwidth_gb_s:g} GB/s, "
        f"{device.watts:g} W, {device.price_usd:g} USD"
    )


def _row(e: Estimate) -> list[str]:
    if not e.fits:
        return [e.format, f"{e.weight_bytes / 1e9:.2f}", f"{e.kv_bytes / 1e9:.2f}", "no"] + [""] * 5
    return [
        e.format,
        f"{e.weight_bytes / 1e9:.2f}",
        f"{e.kv_bytes / 1e9:.2f}",
        "yes",
        f"{e.most_users}",
        f"{e.tokens_a_second:.1f}",
        f"{e.kwh_a_million:.2f}",
        f"{e.usd_a_year:.0f}",
        f"{e.usd_a_million:.2f}",
    ]


def _notes(shape: ModelShape, devices: Sequence[Device], use: Use) -> list[str]:
    """Return what the numbers are and where each is from."""
    lines = [
        f"{shape.name}: {shape.parameters / 1e9:.2f} B weights; {use.users} at once, each up to "
        f"{use.context} tokens; M: a million tokens; users: the most that fit.",
        "All are estimates: bytes read a token over bandwidth, times what was measured or assumed;",
        "arithmetic isn't counted, a weak processor with several users is slower:",
    ]
    for kind in dict.fromkeys(device.kind for device in devices):
        reads, kernels = efficiency(kind)
        lines.append(f"  {kind}: a read {reads.value:.2f} of the datasheet ({reads.source}),")
        lines.append(f"  our kernels {kernels.value:.2f} of a read ({kernels.source})")
    lines.append(
        f"{use.hours_a_day:g} hours on {use.days_a_year} days a year, {use.usd_a_kwh:g} USD a kWh "
        f"(an assumption: give yours with --electricity), {use.lifetime_years:g} years of life."
    )
    return [*lines, *(f"{device.name}: {device.source}." for device in devices)]


def _markdown(
    shape: ModelShape, devices: Sequence[Device], use: Use, plans: dict[str, list[Estimate]]
) -> str:
    lines = [f"# {shape.name}: what fits where", ""]
    for device in devices:
        lines += [f"## {_title(device)}", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("| --- " * len(COLUMNS) + "|")
        lines += ["| " + " | ".join(_row(e)) + " |" for e in plans[device.name]]
        lines.append("")
    return "\n".join([*lines, *(f"- {n.strip()}" for n in _notes(shape, devices, use))]) + "\n"
