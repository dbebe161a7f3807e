"""Bundles: equal bytes for equal contents, and nothing passes that isn't as it was packed."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from soroq.bundle.archive import Entry, check, unpack, write_archive
from soroq.bundle.verify import MANIFEST, BundleDamaged, parse_manifest, verify_archive
from soroq.core.errors import CheckpointError, OutputError

FACTS = {"model": {"name": "m"}}


def _silent(done: int, total: int, what: str) -> None: ...


def _files(folder: Path, order: list[int], time: int) -> list[Entry]:
    folder.mkdir()
    entries = []
    for number in order:
        path = folder / f"{number}.bin"
        path.write_bytes(bytes([number]) * (number * 700))
        os.utime(path, (time, time))
        path.chmod(0o600 if time % 2 else 0o644)
        entries.append(Entry(f"model/{number}.bin", path))
    return [*entries, Entry("INSTALL.md", "Душанбе".encode())]


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    first = _files(tmp_path / "a", [0, 1, 2, 3], 1_000_000_000)
    second = _files(tmp_path / "b", [3, 1, 0, 2], 1_700_000_001)
    write_archive(tmp_path / "a.tar", first, FACTS, _silent)
    write_archive(tmp_path / "b.tar", second[::-1], FACTS, _silent)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
    assert members[0].name == MANIFEST
    assert [m.name for m in members[1:]] == sorted(e.path for e in first)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_unpacked_files_are_those_that_were_packed(tmp_path: Path) -> None:
    entries = _files(tmp_path / "a", [0, 1, 2, 3], 1_000_000_000)
    written = write_archive(tmp_path / "a.tar", entries, FACTS, _silent)
    manifest = unpack(tmp_path / "a.tar", tmp_path / "out", _silent)
    assert manifest == written and manifest["model"] == {"name": "m"}
    for entry in entries:
        with entry.open() as content:
            assert (tmp_path / "out" / entry.path).read_bytes() == content.read()
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == manifest
    with pytest.raises(OutputError, match="exists"):
        unpack(tmp_path / "a.tar", tmp_path / "out", _silent)
    with pytest.raises(OutputError, match="exists"):
        write_archive(tmp_path / "a.tar", entries, FACTS, _silent)


def _bundle(tmp_path: Path) -> Path:
    out = tmp_path / "a.tar"
    write_archive(out, _files(tmp_path / "a", [1, 2, 3], 1_000_000_000), FACTS, _silent)
    return out


def _rewritten(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Write the archive anew with its members changed."""
    with tarfile.open(path) as archive:
        members = []
        for member in archive.getmembers():
            content = archive.extractfile(member)
            members.append((member, content.read() if content else b""))
    change(members)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_one_changed_byte_anywhere_in_a_file_is_named(tmp_path: Path) -> None:
    path = _bundle(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.find(bytes([2]) * 700)
    data[at + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model/2\.bin was changed or damaged"):
        check(path, _silent)
    with pytest.raises(CheckpointError, match=r"model/2\.bin"):
        unpack(path, tmp_path / "out", _silent)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = _bundle(tmp_path)
    data = path.read_bytes()
    used = data.rstrip(b"\0")
    path.write_bytes(data[: int(len(used) * share)])
    with pytest.raises(CheckpointError):
        check(path, _silent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda m: m.pop(2), "stands where model/1.bin should", id="missing"),
        pytest.param(lambda m: m.pop(), "is missing", id="last-missing"),
        pytest.param(lambda m: m.append((tarfile.TarInfo("x"), b"")), "x is not in", id="extra"),
        pytest.param(lambda m: m.insert(2, m.pop(3)), "stands where", id="order"),
        pytest.param(lambda m: m.pop(0), "no bundle of soroq", id="no-manifest"),
    ],
)
def test_other_members_than_promised_are_refused(
    tmp_path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], message: str
) -> None:
    path = _bundle(tmp_path)
    _rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        check(path, _silent)


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = _bundle(tmp_path)

    def link(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[2][0].type = tarfile.SYMTYPE
        members[2][0].linkname = "INSTALL.md"

    _rewritten(path, link)
    with pytest.raises(CheckpointError, match="stands where"):
        unpack(path, tmp_path / "out", _silent)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//x", "C:/x", "a\\x", "./x", "", MANIFEST]
)
def test_paths_that_lead_out_are_refused(name: str) -> None:
    files = [{"path": name, "bytes": 0, "sha256": ""}]
    data = json.dumps({"format": "soroq-bundle-1", "files": files}).encode()
    with pytest.raises(BundleDamaged):
        parse_manifest(data, "b.tar")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format": "x", "files": []}', b"\xff"])
def test_other_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(BundleDamaged):
        parse_manifest(data, "b.tar")


def test_a_file_that_changes_while_it_is_packed_stops_it(tmp_path: Path) -> None:
    entries = _files(tmp_path / "a", [1, 2], 1_000_000_000)

    def change(done: int, total: int, what: str) -> None:
        if what == "writing model/2.bin":
            (tmp_path / "a" / "2.bin").write_bytes(b"x" * 1400)

    with pytest.raises(OutputError, match=r"model/2\.bin changed"):
        write_archive(tmp_path / "a.tar", entries, FACTS, change)
    assert not list(tmp_path.glob("*a.tar*"))


def test_verify_py_runs_alone_on_archive_and_folder(tmp_path: Path) -> None:
    from soroq.bundle import verify

    source = Path(verify.__file__)
    entries = [*_files(tmp_path / "a", [1, 2], 1_000_000_000), Entry("verify.py", source)]
    write_archive(tmp_path / "a.tar", entries, FACTS, _silent)
    unpack(tmp_path / "a.tar", tmp_path / "out", _silent)
    alone = [sys.executable, "-I", "-S", str(tmp_path / "out" / "verify.py")]
    for arguments in ([], [str(tmp_path / "a.tar")]):
        done = subprocess.run([*alone, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "4 files are as" in done.stdout, done.stderr
    (tmp_path / "out" / "model" / "1.bin").write_bytes(b"x")
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "1.bin was changed" in done.stderr
    (tmp_path / "out" / "model" / "1.bin").unlink()
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "No such file" in done.stderr


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A sparse file of 400 MB is packed, checked and unpacked in far less."""
    script = """
import resource, sys
from pathlib import Path
from soroq.bundle.archive import Entry, check, unpack, write_archive
folder = Path(sys.argv[1])
with (folder / "big").open("wb") as file:
    file.truncate(400 << 20)
silent = lambda *a: None
write_archive(folder / "a.tar", [Entry("big", folder / "big")], {}, silent)
check(folder / "a.tar", silent)
unpack(folder / "a.tar", folder / "out", silent)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    import_only = "import resource, soroq.bundle.archive\n" + script.splitlines()[-1]
    base = subprocess.run(
        [sys.executable, "-c", import_only], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < int(base.stdout) + 60
    verify_archive(tmp_path / "a.tar")
