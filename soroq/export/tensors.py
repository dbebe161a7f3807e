"""ExternalData: a graph's tensors, written one behind the other into files beside it.

    data = ExternalData(folder, "model.onnx_data")
    weight = data.add("head", torch.uint8, (N, blocks, width), words)  # to the file at once
    same = data.view("embedding", weight, (N, K))  # the same bytes, not twice
    data.close()

Files are named as transformers.js looks for them: model.onnx_data, model.onnx_data_1, … A tensor
lies in one file, and no file reaches 2 GB, which 32-bit platforms and browsers can't pass.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from onnx import TensorProto

from soroq.core.errors import OutputError

FILE_LIMIT = (1 << 31) - (1 << 20)  # bytes
PAGE = 4096  # large tensors begin where a page does, so that mapping the file maps them
SMALL = 64  # others where a vector register's load may
LARGE_BYTES = 1 << 20

ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int64: TensorProto.INT64,
}


class ExternalData:
    """Writes tensors in the order in which they are added; the same calls give the same bytes.

    limit: bytes that a file may have. Raises OutputError for a tensor larger than that.
    """

    def __init__(self, folder: Path, name: str, limit: int = FILE_LIMIT) -> None:
        self._folder, self._name, self._limit = folder, name, limit
        self._file: BinaryIO | None = None
        self.files: list[Path] = []

    def add(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], parts: Iterable[torch.Tensor]
    ) -> Any:
        """Write a tensor given in parts that lie one behind the other; return its TensorProto."""
        nbytes = dtype.itemsize
        for side in shape:
            nbytes *= side
        if nbytes > self._limit:
            raise OutputError(
                f"{name}: {nbytes / 1e9:.1f} GB, and a data file may have {self._limit / 1e9:.1f}; "
                "quantize it, for an embedding with --embed int8 or int4"
            )
        file, offset = self._place(nbytes)
        written = 0
        try:
            for part in parts:
                values = part.contiguous().flatten().view(torch.uint8).numpy()
                file.write(values.data)
                written += values.nbytes
        except OSError as error:
            raise OutputError(f"can't write {self.files[-1]}: {error.strerror or error}") from error
        assert written == nbytes, f"{name}: {written} bytes written, {nbytes} promised"
        return _proto(name, ONNX_TYPES[dtype], shape, self.files[-1].name, offset, nbytes)

    def view(self, name: str, other: Any, shape: Sequence[int]) -> Any:
        """Return another tensor over the bytes of one that was added."""
        place = {entry.key: entry.value for entry in other.external_data}
        offset, nbytes = int(place["offset"]), int(place["length"])
        return _proto(name, other.data_type, shape, place["location"], offset, nbytes)

    def close(self) -> None:
        """Flush the last file to the disk."""
        if self._file is not None:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise OutputError(f"can't write {self.files[-1]}: {error.strerror}") from error
            finally:
                self._file.close()
            self._file = None

    def _place(self, nbytes: int) -> tuple[BinaryIO, int]:
        alignment = PAGE if nbytes >= LARGE_BYTES else SMALL
        if self._file is not None:
            end = self._file.tell()
            offset = -(-end // alignment) * alignment
            if offset + nbytes <= self._limit:
                self._file.write(bytes(offset - end))
                return self._file, offset
            self.close()
        suffix = f"_{len(self.files)}" if self.files else ""
        path = self._folder / f"{self._name}{suffix}"
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error
        self.files.append(path)
        return self._file, 0


def _proto(
    name: str, data_type: int, shape: Sequence[int], location: str, offset: int, nbytes: int
) -> Any:
    tensor = TensorProto(name=name, data_type=data_type, dims=list(shape))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
