"""Signatures: minisign reads ours, we read minisign's, and nothing else passes."""

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from soroq.bundle.signature import (
    is_encrypted,
    read_public_key,
    read_secret_key,
    sign,
    verify_signature,
)
from soroq.core.errors import CheckpointError, SchemeError

MINISIGN = shutil.which("minisign")
needs_minisign = pytest.mark.skipif(MINISIGN is None, reason="minisign is not installed")

# Made by minisign 0.11 for this test (`minisign -G -W`), and used nowhere else.
SECRET_BYTES = bytes.fromhex(
    "456400004232"  # Ed, no password, BLAKE2b
    + "00" * 48
    + "2cc4c95d34dbbbb6"
    "9552264467b50e25e8cf48c0413c199f64387226e1f2f5a1ab12d84804303c45"
    "3643acfe1d1bf9a88e0f42e4b826a6765393a96f49a6362d4a788dde5a783a03" + "00" * 32
)
SECRET = f"untrusted comment: a key\n{base64.b64encode(SECRET_BYTES).decode()}\n"
PUBLIC = "RWQsxMldNNu7tjZDrP4dG/mojg9C5LgmpnZTk6lvSaY2LUp4jd5aeDoD"
SIGNED = """untrusted comment: signature from minisign secret key
RUQsxMldNNu7tgpnz8e9O979ugmcIwh/3JTZrWfUOYhvrtTMjz+RqUw6d65dnX3bIR2SJBtG455sql7E/D5vK9sVntyG3J56DAI=
trusted comment: a comment
eJCMoyDpoUKyeWgnE3H1JFa99/LSJ/DPoQHKlOGN3oHFupAKHnTAdq/PtcF5WCDa5MbLUOimWrQi6riZ2F/dBQ==
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "test.key"
    path.write_text(SECRET)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(b"soroq" * 1000)
    return path


def test_a_signature_is_minisigns_own(key: Path, file: Path) -> None:
    """Ed25519 is deterministic: of the same file, key and comment it is the same text."""
    written = sign(file, read_secret_key(key), "a comment").read_text()
    assert written.splitlines()[1:] == SIGNED.splitlines()[1:]
    assert verify_signature(file, read_public_key(PUBLIC)) == "a comment"
    assert not is_encrypted(key)


def test_what_was_changed_does_not_pass(key: Path, file: Path) -> None:
    beside = sign(file, read_secret_key(key), "a comment")
    public, good = read_public_key(PUBLIC), beside.read_text()
    beside.write_text(good.replace("a comment", "another comment"))
    with pytest.raises(CheckpointError, match="does not fit"):
        verify_signature(file, public)
    lines = good.splitlines()
    data = bytearray(base64.b64decode(lines[1]))
    data[20] ^= 1
    lines[1] = base64.b64encode(data).decode()
    beside.write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match="does not fit"):
        verify_signature(file, public)
    beside.write_text(good)
    file.write_bytes(b"soroq" * 999 + b"Soroq")
    with pytest.raises(CheckpointError, match="does not fit"):
        verify_signature(file, public)
    beside.unlink()
    with pytest.raises(CheckpointError, match="is not signed"):
        verify_signature(file, public)


def test_another_key_is_named(key: Path, file: Path) -> None:
    sign(file, read_secret_key(key), "a comment")
    data = bytearray(base64.b64decode(PUBLIC))
    data[2:10] = bytes(range(8))
    with pytest.raises(CheckpointError, match="not with 0706050403020100"):
        verify_signature(file, read_public_key(base64.b64encode(data).decode()))


@pytest.mark.parametrize("text", ["", "x", "untrusted comment: x\nAAAA\n", "c\n§\n"])
def test_other_files_are_no_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(SchemeError, match="minisign"):
        read_secret_key(tmp_path / "k")
    with pytest.raises(SchemeError, match="minisign"):
        read_public_key(str(tmp_path / "k"))


def test_a_damaged_secret_key_is_refused(tmp_path: Path) -> None:
    data = bytearray(base64.b64decode(SECRET.splitlines()[1]))
    data[70] ^= 1
    (tmp_path / "k").write_text(f"c\n{base64.b64encode(data).decode()}\n")
    with pytest.raises(SchemeError, match="wrong password, or the key is damaged"):
        read_secret_key(tmp_path / "k")


@needs_minisign
def test_minisign_itself_accepts_ours_and_we_its(key: Path, file: Path) -> None:
    assert MINISIGN is not None
    sign(file, read_secret_key(key), "a comment")
    subprocess.run([MINISIGN, "-Vm", file, "-P", PUBLIC], check=True, capture_output=True)
    (file.parent / "a.tar.minisig").unlink()
    command = [MINISIGN, "-S", "-s", key, "-m", file, "-t", "its own"]
    subprocess.run(command, check=True, capture_output=True)
    assert verify_signature(file, read_public_key(PUBLIC)) == "its own"


def test_a_key_with_a_password_opens_with_it_alone(tmp_path: Path) -> None:
    """The same key, locked as minisign does but with limits of 16 MiB instead of 1 GiB."""
    from soroq.bundle.signature import _scrypt

    data = base64.b64decode(SECRET.splitlines()[1])
    salt, ops, mem = bytes(range(32)), 1 << 19, 1 << 24
    checksum = hashlib.blake2b(data[:2] + data[54:126], digest_size=32).digest()
    stream = _scrypt("рамз", salt, ops, mem, size=104)
    locked = bytes(a ^ b for a, b in zip(data[54:126] + checksum, stream, strict=True))
    limits = ops.to_bytes(8, "little") + mem.to_bytes(8, "little")
    text = base64.b64encode(data[:2] + b"Sc" + data[4:6] + salt + limits + locked).decode()
    (tmp_path / "k").write_text(f"c\n{text}\n")
    (tmp_path / "open").write_text(SECRET)
    assert is_encrypted(tmp_path / "k")
    assert read_secret_key(tmp_path / "k", "рамз") == read_secret_key(tmp_path / "open")
    with pytest.raises(SchemeError, match="wrong password"):
        read_secret_key(tmp_path / "k", "рам")
