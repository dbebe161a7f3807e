"""A tar archive whose bytes depend on its contents alone, and how it is unpacked.

Names sorted, no times, owners or modes of this machine, MANIFEST.json first: two runs over equal
files write equal bytes. Not compressed: weights don't compress (quantized codes are nearly random).
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from soroq.bundle.verify import CHUNK, FORMAT, MANIFEST, BundleDamaged, verify_archive
from soroq.core.errors import CheckpointError, OutputError
from soroq.io.writer import require_disk_space

BLOCK = 512  # tar's unit
Listen = Callable[[int, int, str], None]  # bytes done, of how many, which file


@dataclass(frozen=True)
class Entry:
    """One file of a bundle: its path in there, and where its bytes come from."""

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def open(self) -> IO[bytes]:
        return (
            io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")
        )


def write_archive(
    out: Path, entries: Sequence[Entry], facts: Mapping[str, Any], listen: Listen
) -> dict[str, Any]:
    """Write a bundle and return its manifest: `facts`, and path, bytes and SHA-256 of every file.

    Raises OutputError when it exists, when the disk is too small, or when a file changes meanwhile.
    """
    if out.exists():
        raise OutputError(f"{out} exists; remove it or choose another name")
    ordered = sorted(entries, key=lambda entry: entry.path)
    names = [entry.path for entry in ordered]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OutputError(f"two files would be {min(twice)} in the bundle")
    total = sum(entry.size for entry in ordered)
    require_disk_space(out, total + 3 * BLOCK * (len(ordered) + 8))
    files: list[dict[str, Any]] = []
    done = 0
    for entry in ordered:
        listen(done, 2 * total, f"hashing {entry.path}")
        digest, size = _copy(entry, lambda chunk: None)
        files.append({"path": entry.path, "bytes": size, "sha256": digest})
        done += size
    manifest = {"format": FORMAT, **facts, "files": files}
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    building = out.with_name(f".{out.name}.tmp")
    try:
        with building.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
                data = text.encode()
                archive.addfile(_member(MANIFEST, len(data)), io.BytesIO(data))
                for entry, promised in zip(ordered, files, strict=True):
                    listen(done, 2 * total, f"writing {entry.path}")
                    _add(archive, entry, promised)
                    done += promised["bytes"]
            file.flush()
            os.fsync(file.fileno())
        os.replace(building, out)
    except OSError as error:
        raise OutputError(f"can't write {out}: {error.strerror or error}") from error
    finally:
        building.unlink(missing_ok=True)
    return manifest


def _add(archive: tarfile.TarFile, entry: Entry, promised: Mapping[str, Any]) -> None:
    with entry.open() as content:
        hashing = _Hashing(content)
        archive.addfile(_member(entry.path, promised["bytes"]), hashing)  # type: ignore[arg-type]
    if hashing.digest.hexdigest() != promised["sha256"]:
        raise OutputError(f"{entry.path} changed while it was read; begin again")


class _Hashing:
    """A stream that is hashed as it is read."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content, self.digest = content, hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self._content.read(size)
        self.digest.update(chunk)
        return chunk


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # owner, group and time are 0 and empty
    info.size, info.mode = size, 0o644
    return info


def _copy(entry: Entry, take: Callable[[bytes], Any]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with entry.open() as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            take(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def check(path: Path, listen: Listen) -> dict[str, Any]:
    """Return the manifest of a bundle that is as it promises. Raises CheckpointError otherwise."""
    total = _size(path)
    done = 0

    def take(name: str, content: IO[bytes], size: int) -> str:
        nonlocal done
        listen(done, total, name)
        done += size
        return _hash_into(content, lambda chunk: None)

    return _verified(path, take)


def unpack(path: Path, folder: Path, listen: Listen) -> dict[str, Any]:
    """Write a bundle's files to the new folder, each compared as it is written.

    The folder appears when all is there and right. Raises CheckpointError for a damaged bundle and
    OutputError when it can't be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists; unpack to a new folder")
    total = _size(path)
    require_disk_space(folder, total)
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    done = 0

    def take(name: str, content: IO[bytes], size: int) -> str:
        nonlocal done
        listen(done, total, name)
        done += size
        file = building / name  # the manifest's names were looked at: none leads out of the folder
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as written:
            return _hash_into(content, written.write)

    try:
        building.mkdir(parents=True)
        manifest = _verified(path, take)
        os.replace(building, folder)
    except OSError as error:
        raise OutputError(f"can't write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _hash_into(content: IO[bytes], take: Callable[[bytes], Any]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK):
        digest.update(chunk)
        take(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; a bundle is one .tar archive")
    return path.stat().st_size


def _verified(path: Path, take: Callable[[str, IO[bytes], int], str]) -> dict[str, Any]:
    try:
        return verify_archive(path, take)
    except BundleDamaged as error:
        raise CheckpointError(str(error)) from None
