"""The matrices of a checkpoint as they are stored, in any of soroq's formats, some rows at a time.

stored = StoredWeights(open_checkpoint("OUT"))
weight, activation, input_scale = stored.load_quantized("model.layers.0.mlp.up_proj")
"""

import re

import torch

from soroq.core.errors import CheckpointError, NumericsError
from soroq.core.packing import pack_rows, unpack_columns
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.checkpoint import Checkpoint
from soroq.io.formats import hqq
from soroq.io.formats.registry import FORMATS, Format, format_of
from soroq.io.formats.shared import Group

REAL_ZEROS = (
    "zero points between the integers (HQQ's), which kernels don't take; use "
    "soroq.load(..., packed=False) or late=True"
)


class StoredWeights:
    """The matrices of a checkpoint as they are stored: quantized or not.

    quantized: the modules that are. format: how they are stored.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = set(checkpoint.names())
        config = checkpoint.config.get("quantization_config")
        self.format = format_of(config) if config else FORMATS["compressed-tensors"]
        self._groups: list[Group] = self.format.parse(config) if config else []
        ending = f".{self.format.mark}"
        self.quantized = {n.removesuffix(ending) for n in self._names if n.endswith(ending)}

    def parts(self) -> set[str]:
        """Return the names of all tensors that are part of a quantized weight."""
        return {part for module in self.quantized for part in self._parts(module)}

    def arguments(self, module: str) -> tuple[QuantArgs, QuantArgs | None]:
        """Return the numbers of a quantized weight and of its input."""
        return _arguments(module, self._groups)

    def open(self, module: str) -> "StoredMatrix":
        """Return a module's weight without reading it. Raises CheckpointError if it isn't there."""
        args = self.arguments(module)[0] if module in self.quantized else None
        if args is None or self.format is FORMATS["compressed-tensors"]:
            return StoredMatrix(self._checkpoint, module, args)
        return DecodedMatrix(self._checkpoint, module, args, self.format)

    def load_quantized(
        self, module: str
    ) -> tuple[QuantizedTensor, QuantArgs | None, torch.Tensor | None]:
        """Return a quantized weight, how its input is rounded, and that rounding's fixed scale."""
        args, activation = self.arguments(module)
        tensors = {part: self._checkpoint.load(part) for part in self._parts(module)}
        weight = self.format.decode(module, tensors, args)
        return weight, activation, tensors.get(f"{module}.input_scale")

    def compressed(self, module: str) -> dict[str, torch.Tensor]:
        """Return a module's tensors as compressed-tensors names them, whatever they are stored as.

        Raises CheckpointError for a weight that compressed-tensors can't hold (GPTQ's desc_act).
        """
        target = FORMATS["compressed-tensors"]
        if self.format is target:
            return {part: self._checkpoint.load(part) for part in self._parts(module)}
        weight, activation, _ = self.load_quantized(module)
        if reason := target.refuses(weight.args, activation, weight.shape):
            raise CheckpointError(f"{module}: {reason}")
        return target.encode(module, weight)

    def _parts(self, module: str) -> list[str]:
        names = (f"{module}.{part}" for part in self.format.parts)
        return [name for name in names if name in self._names]


class StoredMatrix:
    """One matrix (N, K) of a checkpoint, read some rows at a time (a `panels.RowSource`).

    args: None if it isn't quantized.
    """

    def __init__(self, checkpoint: Checkpoint, module: str, args: QuantArgs | None) -> None:
        self._checkpoint, self._module, self.args = checkpoint, module, args
        self.scale_dtype = torch.bfloat16
        self._zeros: torch.Tensor | None = None
        if args is None or args.dtype == "float":
            N, K = checkpoint.info(f"{module}.weight").shape
        else:
            N, K = checkpoint.load(f"{module}.weight_shape").tolist()
            self.scale_dtype = checkpoint.info(f"{module}.weight_scale").dtype
            if not args.symmetric:
                zeros = checkpoint.load(f"{module}.weight_zero_point")
                self._zeros = unpack_columns(zeros, args.bits, N)
        self.shape = (N, K)

    def rows(
        self, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return rows as they are stored: words, scales and zero points, or values and None twice.

        Raises NumericsError when values or scales are not finite.
        """
        index = torch.arange(start, stop)
        if self.args is None:
            return self._read("weight", index), None, None
        zeros = None if self._zeros is None else self._zeros[start:stop]
        return self._read("weight_packed", index), self._read("weight_scale", index), zeros

    def _read(self, part: str, index: torch.Tensor) -> torch.Tensor:
        rows = self._checkpoint.load_rows(f"{self._module}.{part}", index)
        if rows.is_floating_point() and not bool(rows.isfinite().all()):
            raise NumericsError(
                f"{self._module}.{part}: values are NaN or infinite; the checkpoint is damaged"
            )
        return rows


class DecodedMatrix(StoredMatrix):
    """A matrix whose words don't lie along rows: decoded whole when rows are first asked for."""

    def __init__(
        self, checkpoint: Checkpoint, module: str, args: QuantArgs, format_: Format
    ) -> None:
        self._checkpoint, self._module, self.args, self._format = checkpoint, module, args, format_
        scales = checkpoint.info(f"{module}.{'scale' if format_.name == 'hqq' else 'scales'}")
        words, columns = checkpoint.info(f"{module}.{format_.parts[0]}").shape
        per_word = 32 // args.bits
        if format_.name == "hqq":
            self.shape = hqq.read_shape(module, checkpoint.load)
        else:
            self.shape = {
                "awq": (scales.shape[1], words),
                "awq-gemv": (words, columns * per_word),
                "mlx": (words, columns * per_word),
            }.get(format_.name, (columns, words * per_word))
        self.scale_dtype = scales.dtype
        self._whole: QuantizedTensor | None = None

    def rows(
        self, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return rows as `StoredMatrix.rows` does.

        Raises CheckpointError for groups that aren't neighbours and for zero points that are no
        integers, which no kernel reads.
        """
        assert self.args is not None
        if self._whole is None:
            parts = (f"{self._module}.{part}" for part in self._format.parts)
            names = set(self._checkpoint.names())
            tensors = {part: self._checkpoint.load(part) for part in parts if part in names}
            self._whole = self._format.decode(self._module, tensors, self.args)
        whole = self._whole
        if whole.args != self.args:
            raise CheckpointError(
                f"{self._module}: g_idx is not sorted (desc_act), and kernels read neighbours as a "
                "group; use soroq.load(..., packed=False)"
            )
        if whole.has_real_zeros:
            raise CheckpointError(f"{self._module}: {REAL_ZEROS}")
        zeros = None if whole.zeros is None else whole.zeros[start:stop]
        return pack_rows(whole.codes[start:stop], whole.args.bits), whole.scales[start:stop], zeros


def _arguments(module: str, groups: list[Group]) -> tuple[QuantArgs, QuantArgs | None]:
    for targets, weight, activation in groups:
        if module in targets:
            return weight, activation
    patterns = [(t[3:], group) for group in groups for t in group[0] if t.startswith("re:")]
    for pattern, (_, weight, activation) in patterns:  # from the start, as compressed-tensors does
        try:
            if re.match(pattern, module):
                return weight, activation
        except re.error as error:
            raise CheckpointError(f"quantization_config: re:{pattern} is no pattern") from error
    for targets, weight, activation in groups:
        if "Linear" in targets:
            return weight, activation
    raise CheckpointError(f"{module}: quantized, but no group of quantization_config names it")
