"""DEVICES: machines by name, with where each figure is from; prices are inputs with defaults."""

from dataclasses import dataclass

from soroq.core.errors import SoroqError


@dataclass(frozen=True)
class Device:
    """A machine that serves a model.

    memory_gb: what it has, in 10⁹ bytes; usable: the share that a model can have. bandwidth_gb_s:
    of the datasheet. watts: of the whole machine under load. price_usd: of what has to be bought.
    kind: 'cpu' or 'gpu', which kernels run.
    """

    name: str
    kind: str
    memory_gb: float
    usable: float
    bandwidth_gb_s: float
    watts: float
    price_usd: float
    source: str


DEVICES = {
    d.name: d
    for d in (
        Device(
            *("rpi5-8gb", "cpu", 8, 0.85, 17.1, 10, 80),
            "Raspberry Pi 5 product brief, 2023: LPDDR4X-4267 on 32 bits, 80 USD; watts assumed",
        ),
        Device(
            *("pc-2015-8gb", "cpu", 8, 0.7, 25.6, 60, 0),
            "two channels of DDR3-1600 (JEDEC); a PC that a school has, so no price; watts assumed",
        ),
        Device(
            *("pc-ddr4-16gb", "cpu", 16, 0.8, 51.2, 65, 400),
            "two channels of DDR4-3200 (JEDEC); watts and price assumed",
        ),
        Device(
            *("n100-16gb", "cpu", 16, 0.8, 38.4, 15, 200),
            "Intel N100, 2023: one channel of DDR5-4800; watts and price of a mini PC assumed",
        ),
        Device(
            *("jetson-orin-nano-8gb", "gpu", 8, 0.8, 102, 25, 249),
            "NVIDIA Jetson Orin Nano Super Developer Kit, 2024: 102 GB/s, 25 W, 249 USD",
        ),
        Device(
            *("rtx3060-12gb", "gpu", 12, 0.9, 360, 250, 700),
            "NVIDIA GeForce RTX 3060, 2021: 12 GB, 360 GB/s, 170 W; the PC around it assumed",
        ),
        Device(
            *("rtx4060-8gb", "gpu", 8, 0.9, 272, 195, 800),
            "NVIDIA GeForce RTX 4060, 2023: 8 GB, 272 GB/s, 115 W; the PC around it assumed",
        ),
        Device(
            *("h100", "gpu", 80, 0.9, 3350, 1000, 40000),
            "NVIDIA H100 SXM, 2022: 80 GB, 3.35 TB/s, 700 W; its share of a server assumed",
        ),
        Device(
            *("h200", "gpu", 141, 0.9, 4800, 1000, 45000),
            "NVIDIA H200 SXM, 2023: 141 GB, 4.8 TB/s, 700 W; its share of a server assumed",
        ),
    )
}


def get_device(name: str) -> Device:
    """Return a device by its name. Raises SoroqError for an unknown one."""
    if name not in DEVICES:
        raise SoroqError(
            f"unknown device {name!r}; known: {', '.join(DEVICES)}; or describe it with "
            "--memory and --bandwidth"
        )
    return DEVICES[name]
