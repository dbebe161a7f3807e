"""A strict, lazy reader of one safetensors file.

Format: 8 bytes little-endian header length, a JSON object name → dtype, shape, data_offsets, then
the data (the safetensors README, "Format"). Everything is checked before a tensor is read, so a
truncated or damaged file ends in one line that names it. Tensors are read with pread into fresh
memory, never mapped: the resident size is what is in use.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Shape, dtype and stored size of a tensor that was not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


@dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    offset: int


class SafetensorsFile:
    """The tensors of one file. Raises CheckpointError for a file that isn't whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read_header(path)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def info(self, name: str) -> TensorInfo:
        return self._entries[name].info

    def load(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype."""
        entry = self._entries[name]
        raw = self._read(entry.offset, entry.info.nbytes)
        return _tensor(raw, entry.info.dtype).view(entry.info.shape)

    def load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (n,) of a 2-D tensor, reading only these rows."""
        entry = self._entries[name]
        if len(entry.info.shape) != 2:
            raise CheckpointError(f"{name}: shape {entry.info.shape} is not a matrix")
        count, width = entry.info.shape
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            raise CheckpointError(
                f"{name}: rows {int(rows.min())} to {int(rows.max())} asked for, it has {count}"
            )
        size = width * entry.info.dtype.itemsize
        unique, inverse = rows.unique(return_inverse=True)
        raw = bytearray(len(unique) * size)
        with self.path.open("rb") as file:
            for position, row in enumerate(unique.tolist()):
                file.seek(entry.offset + row * size)
                piece = file.read(size)
                if len(piece) != size:
                    raise CheckpointError(f"{self.path}: shrank while it was read")
                raw[position * size : (position + 1) * size] = piece
        return _tensor(raw, entry.info.dtype).view(len(unique), width)[inverse]

    def _read(self, offset: int, size: int) -> bytearray:
        raw = bytearray(size)
        with self.path.open("rb") as file:
            file.seek(offset)
            if file.readinto(raw) != size:
                raise CheckpointError(f"{self.path}: shrank while it was read")
        return raw


def _tensor(raw: bytearray, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _read_header(path: Path) -> dict[str, _Entry]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path}: truncated or not safetensors ({size} bytes, header {length})"
                )
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged safetensors header: not an object")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, raw, 8 + length) for name, raw in header.items()}
    end = 8 + length
    for name, entry in sorted(
        entries.items(), key=lambda item: (item[1].offset, item[1].info.nbytes)
    ):
        if entry.offset != end:
            raise CheckpointError(f"{path}: {name} overlaps another tensor or leaves a hole")
        end += entry.info.nbytes
    if end != size:
        raise CheckpointError(
            f"{path}: {size} bytes, its header describes {end}; download it again"
        )
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _entry(path: Path, name: str, raw: Any, base: int) -> _Entry:
    try:
        dtype = DTYPES[raw["dtype"]]
        shape = tuple(raw["shape"])
        start, stop = raw["data_offsets"]
        if not all(type(v) is int and v >= 0 for v in (*shape, start, stop)):
            raise ValueError("negative or not integers")
        nbytes = math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: unreadable entry ({error!r})") from error
    if stop - start != nbytes:
        raise CheckpointError(f"{path}: {name}: {stop - start} bytes for {shape} {raw['dtype']}")
    return _Entry(TensorInfo(shape, dtype, nbytes), base + start)


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
