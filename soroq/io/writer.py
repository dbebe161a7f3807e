"""Files that appear whole or not at all, and checkpoints written tensor by tensor."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from soroq.core.errors import OutputError
from soroq.io.safetensors_file import NAMES, TensorInfo, fsync_directory

PIECE = 4 << 20  # bytes hashed or copied at a time


def atomic_write(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write `data` under a temporary name, flush it to the disk and rename it to `path`.

    shared: other processes may write the same path at the same time, so the temporary name is this
    process's own; after a kill it stays behind, where otherwise the next run writes over it.
    """
    atomic_save(path, lambda file: file.write(data), shared=shared)


def atomic_save(path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Do as `atomic_write`, with what `write` puts into the file it is given."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if shared else f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises OutputError where that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {path}: {error.strerror or error}") from error


def sha256_file(path: Path) -> str:
    """Return the hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def require_disk_space(path: Path, nbytes: int) -> None:
    """Raise OutputError when the disk that `path` will be on has less than nbytes free."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise OutputError(
            f"{path}: needs {nbytes / 1e9:.2f} GB on disk, {free / 1e9:.2f} GB are free; "
            "choose another --out"
        )


def require_empty_dir(path: Path) -> None:
    """Raise OutputError unless `path` doesn't exist or is an empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} exists and is not empty; choose another --out or delete it")


@dataclass(frozen=True)
class _Pending:
    info: TensorInfo
    load: Callable[[], torch.Tensor]

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise OutputError unless the tensor is what the header, already written, says."""
        if tuple(tensor.shape) != self.info.shape or tensor.dtype != self.info.dtype:
            raise OutputError(
                f"{name}: promised as {self.info.shape} {self.info.dtype}, loaded as "
                f"{tuple(tensor.shape)} {tensor.dtype}; was the source changed meanwhile?"
            )


class ShardedWriter:
    """Write tensors to model*.safetensors in `directory`, one shard's names at a time in memory.

    Tensors given with `add_lazy` are loaded one by one while their shard is written. The same
    sequence of calls gives the same bytes.
    """

    def __init__(self, directory: Path, max_shard_bytes: int = 5_000_000_000) -> None:
        self._directory = directory
        self._limit = max_shard_bytes
        self._pending: dict[str, _Pending] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._total = 0
        self._names: set[str] = set()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor that is in memory."""
        info = TensorInfo(tuple(tensor.shape), tensor.dtype, tensor.nbytes)
        self.add_lazy(name, info, lambda: tensor)

    def add_lazy(self, name: str, info: TensorInfo, load: Callable[[], torch.Tensor]) -> None:
        """Add a tensor that `load` will give when its shard is written.

        Raises OutputError for a dtype that safetensors can't hold or a name given twice.
        """
        if info.dtype not in NAMES:
            raise OutputError(f"{name}: safetensors has no dtype for {info.dtype}")
        if name in self._names:
            raise OutputError(f"{name} is written twice")
        self._names.add(name)
        if self._pending and self._pending_bytes + info.nbytes > self._limit:
            self._flush()
        self._pending[name] = _Pending(info, load)
        self._pending_bytes += info.nbytes

    def finish(self, config: dict[str, Any], metadata: dict[str, str]) -> None:
        """Write the last shard, final names, the index (if more than one) and config.json."""
        self._metadata = metadata
        self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, (temporary, names) in enumerate(self._shards, 1):
            final = (
                "model.safetensors"
                if count == 1
                else f"model-{number:05d}-of-{count:05d}.safetensors"
            )
            os.replace(temporary, self._directory / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True)
            atomic_write(self._directory / "model.safetensors.index.json", text.encode())
        atomic_write(self._directory / "config.json", json.dumps(config, indent=2).encode())

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._directory / f"shard-{len(self._shards):05d}.tmp"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, pending in self._pending.items():
            info = pending.info
            header[name] = {
                "dtype": NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [offset, offset + info.nbytes],
            }
            offset += info.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            with path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name, pending in self._pending.items():
                    tensor = pending.load().contiguous()
                    pending.check(name, tensor)
                    file.write(tensor.flatten().view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error
        self._shards.append((path, list(self._pending)))
        self._total += offset
        self._pending = {}
        self._pending_bytes = 0
