"""The matrix shapes that are measured: Gemma 3's linears, and squares that others publish."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """W (N, K)."""

    name: str
    N: int
    K: int

    @property
    def int4_bytes(self) -> int:
        """Bytes of int4 codes and 16-bit scales in groups of 128."""
        return self.N * self.K // 2 + self.N * (self.K // 128) * 2


SHAPES = (
    Shape("270m qkv", 1536, 640),
    Shape("270m gate_up", 4096, 640),
    Shape("270m head", 262144, 640),
    Shape("1b qkv", 1536, 1152),
    Shape("1b gate_up", 13824, 1152),
    Shape("1b down", 1152, 6912),
    Shape("1b head", 262144, 1152),
    Shape("4b qkv", 4096, 2560),
    Shape("4b o", 2560, 2048),
    Shape("4b gate_up", 20480, 2560),
    Shape("4b down", 2560, 10240),
    Shape("4b head", 262208, 2560),
    Shape("12b qkv", 8192, 3840),
    Shape("12b gate_up", 30720, 3840),
    Shape("12b down", 3840, 15360),
    Shape("27b qkv", 8192, 5376),
    Shape("27b o", 5376, 4096),
    Shape("27b gate_up", 43008, 5376),
    Shape("27b down", 5376, 21504),
    Shape("square 4096", 4096, 4096),
    Shape("square 8192", 8192, 8192),
    Shape("square 16384", 16384, 16384),
)


def named(*names: str) -> list[Shape]:
    """Return shapes by name. Raises KeyError with the name that is unknown."""
    by_name = {shape.name: shape for shape in SHAPES}
    return [by_name[name] for name in names]
