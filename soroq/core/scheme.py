"""Numbers, folds and methods: what a scheme says, and the checks that it makes sense.

A scheme names the numbers (`QuantArgs` of weights and activations), the *folds* that move scale
between weights and the norm in front of them, the *method* that picks the codes, and the on-disk
layout. Which kernel runs the result is decided where the model runs, not here.

    >>> QuantArgs(dtype="int", bits=4, group_size=128).levels
    16
"""

from dataclasses import dataclass
from typing import Literal

from soroq.core.errors import SchemeError

FP8_MAX = 448.0  # largest finite float8_e4m3fn (OCP FP8 specification 1.0, table 2)


@dataclass(frozen=True)
class QuantArgs:
    """How one tensor is turned into few bits.

    `group_size` is the number of neighbouring K-elements that share a scale, None for the whole
    row. `block` replaces it for two-dimensional tiles (rows, columns). `dynamic` (activations
    only): the scale is taken from each token at run time, otherwise from calibration.
    """

    dtype: Literal["int", "float"] = "int"
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    block: tuple[int, int] | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.dtype == "int" and self.bits not in (4, 8):
            raise SchemeError(f"bits {self.bits} is not supported for integers; use 4 or 8")
        if self.dtype == "float" and self.bits != 8:
            raise SchemeError(
                f"bits {self.bits} is not supported for floats; use 8 (float8_e4m3fn)"
            )
        if self.dtype == "float" and not self.symmetric:
            raise SchemeError("float8 weights have no zero point; drop --asym")
        if self.bits == 8 and self.dtype == "int" and not self.symmetric:
            raise SchemeError("int8 weights are symmetric here; drop --asym")
        if self.group_size is not None and self.group_size < 1:
            raise SchemeError(
                f"group_size {self.group_size} is not allowed; use 32, 64, 128 or row"
            )
        if self.block is not None and self.group_size is not None:
            raise SchemeError("block and group_size exclude each other")

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def code_min(self) -> int:
        """Smallest code of an integer dtype: codes run from −2^(bits−1) to 2^(bits−1) − 1."""
        return -(1 << (self.bits - 1))

    @property
    def code_max(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def bits_per_weight(self, shape: tuple[int, int], scale_bits: int = 16) -> float:
        """Return stored bits a weight of a (N, K) matrix, scales and zero points counted."""
        N, K = shape
        if self.block is not None:
            n_scales = -(-N // self.block[0]) * -(-K // self.block[1])
            scale_bits = 32
        else:
            n_scales = N * (K // (self.group_size or K))
        extra = scale_bits + (0 if self.symmetric else self.bits)
        return self.bits + n_scales * extra / (N * K)

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise SchemeError when a weight of this shape can't be stored with these arguments."""
        if len(shape) != 2:
            raise SchemeError(f"{name}: shape {shape} is not a matrix; skip it with --skip {name}")
        N, K = shape
        if self.group_size is not None and K % self.group_size:
            fits = [g for g in (128, 64, 32) if g < self.group_size and K % g == 0]
            use = f"use --group-size {fits[0]}" if fits else "use --group-size row"
            raise SchemeError(
                f"{name}: in_features {K} is not divisible by group_size {self.group_size}; "
                f"{use}, or skip it with --skip {name}"
            )
        if self.dtype == "int" and K % (32 // self.bits):
            raise SchemeError(
                f"{name}: in_features {K} is not a multiple of {32 // self.bits}, which packing "
                f"{self.bits}-bit codes into 32-bit words needs; skip it with --skip {name}"
            )


@dataclass(frozen=True)
class Scheme:
    """A named recipe: numbers, folds, method and layout (see `soroq.core.schemes`).

    corrected: each linear aims for the output that the unquantized model gives, making up for the
    error of the quantized layers before it (`soroq.methods.target`).
    distilled: at the end, scales and norms are tuned together towards the original model's
    next-token distribution (`soroq.methods.distill`).
    reordered: channels are put in an order in which those of like size share a group
    (`soroq.pipeline.order`); the recipe's own scheme decides it, an override's doesn't.
    """

    name: str
    summary: str
    weight: QuantArgs
    method: str
    layout: str
    activation: QuantArgs | None = None
    folds: tuple[str, ...] = ()
    corrected: bool = False
    distilled: bool = False
    reordered: bool = False

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise SchemeError when a weight of this shape, or its input, can't be quantized so."""
        self.weight.check_shape(name, shape)
        group = self.activation.group_size if self.activation else None
        if group is not None and shape[1] % group:
            raise SchemeError(
                f"{name}: in_features {shape[1]} is not divisible by the activation group {group} "
                f"of {self.name}; use fp8, or skip it with --skip {name}"
            )

    @property
    def needs_calibration(self) -> bool:
        return (
            bool(self.folds)
            or self.distilled
            or self.method != "rtn"
            or (self.activation is not None and not self.activation.dynamic)
        )
