"""Check a bundle, or what was unpacked from one, against its MANIFEST.json: sizes and SHA-256.

    python verify.py BUNDLE.tar          # before unpacking
    python verify.py                     # in the unpacked folder, where this file lies

Needs nothing but Python: this file travels in every bundle. The signature, if there is one, is of
the whole archive: `minisign -Vm BUNDLE.tar -p KEY.pub`, or `soroq bundle --verify`.
"""

import hashlib
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

MANIFEST = "MANIFEST.json"
FORMAT = "soroq-bundle-1"
CHUNK = 1 << 20
MANIFEST_BYTES = 64 << 20  # at most
Take = Callable[[str, IO[bytes], int], str]  # name, content, size → SHA-256


class BundleDamaged(Exception):
    """What is there is not what MANIFEST.json promises; the message names the file."""


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Return a manifest whose names are safe to write. Raises BundleDamaged for any other."""
    try:
        manifest = json.loads(data)
        files = manifest["files"]
        ok = manifest["format"] == FORMAT and all(
            isinstance(f["path"], str)
            and isinstance(f["bytes"], int)
            and isinstance(f["sha256"], str)
            for f in files
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleDamaged(f"{where}: {MANIFEST} can't be read: {error!r}") from None
    if not ok:
        raise BundleDamaged(f"{where}: {MANIFEST} is not of the format {FORMAT}")
    names = [f["path"] for f in files]
    for name in names:
        parts = name.split("/")
        if "\\" in name or ":" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
            raise BundleDamaged(f"{where}: {name!r} is no path inside the bundle; don't unpack it")
    if len(set(names)) != len(names) or MANIFEST in names:
        raise BundleDamaged(f"{where}: {MANIFEST} names a file twice")
    result: dict[str, Any] = manifest
    return result


def hash_stream(name: str, content: IO[bytes], size: int) -> str:
    """Return the SHA-256 of what is left of a stream."""
    digest = hashlib.sha256()
    while chunk := content.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def verify_archive(path: Path, take: Take = hash_stream) -> dict[str, Any]:
    """Read an archive once, in order, and compare every file; return its manifest.

    take gets each file's name, content and size, MANIFEST.json first, and returns the hash of what
    it read. Raises BundleDamaged for a file that is other, missing, too many, or no plain file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            content = archive.extractfile(first) if first is not None and first.isreg() else None
            if first is None or content is None or first.name != MANIFEST:
                raise BundleDamaged(
                    f"{path}: no bundle of soroq ({MANIFEST} is not its first file)"
                )
            if first.size > MANIFEST_BYTES:
                raise BundleDamaged(f"{path}: {MANIFEST} is too large")
            data = content.read()
            manifest = parse_manifest(data, str(path))
            take(MANIFEST, _again(data), len(data))
            for promised in manifest["files"]:
                member = archive.next()
                if member is None:
                    raise BundleDamaged(f"{path}: {promised['path']} is missing; copy it again")
                if member.name != promised["path"] or not member.isreg():
                    raise BundleDamaged(
                        f"{path}: {member.name} stands where {promised['path']} should"
                    )
                content = archive.extractfile(member)
                if content is None or member.size != promised["bytes"]:
                    raise BundleDamaged(f"{path}: {member.name} is not of the promised size")
                if take(member.name, content, member.size) != promised["sha256"]:
                    raise BundleDamaged(f"{path}: {member.name} was changed or damaged")
            if (extra := archive.next()) is not None:
                raise BundleDamaged(f"{path}: {extra.name} is not in {MANIFEST}")
    except (tarfile.TarError, EOFError) as error:
        raise BundleDamaged(f"{path}: damaged or cut off ({error}); copy it again") from None
    return manifest


def verify_folder(folder: Path) -> dict[str, Any]:
    """Compare the files of an unpacked bundle; return its manifest. Other files are let be."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
    except OSError as error:
        raise BundleDamaged(f"{folder / MANIFEST} can't be read: {error.strerror}") from None
    for promised in manifest["files"]:
        file = folder / promised["path"]
        try:
            with file.open("rb") as content:
                found = hash_stream(promised["path"], content, 0)
        except OSError as error:
            raise BundleDamaged(f"{file}: {error.strerror}") from None
        if found != promised["sha256"]:
            raise BundleDamaged(f"{file} was changed or damaged")
    return manifest


def _again(data: bytes) -> IO[bytes]:
    import io

    return io.BytesIO(data)


def main(arguments: list[str]) -> int:
    """Check the archive that is named, or the folder this file lies in; 0 if all is as promised."""
    try:
        if arguments:
            manifest = verify_archive(Path(arguments[0]))
        else:
            manifest = verify_folder(Path(__file__).resolve().parent)
    except (BundleDamaged, OSError) as error:
        print(f"NOT good: {error}", file=sys.stderr)
        return 2
    print(f"{len(manifest['files'])} files are as {MANIFEST} promises")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
