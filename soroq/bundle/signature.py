"""Signatures that the minisign program makes and checks, with its keys (Ed25519, prehashed).

    untrusted comment: …
    base64("ED" ‖ key id (8) ‖ Ed25519(BLAKE2b-512(file)) (64))
    trusted comment: …
    base64(Ed25519(that signature ‖ trusted comment) (64))

Keys are made with `minisign -G`. A secret key is base64("Ed" ‖ "Sc" or zeros ‖ "B2" ‖ salt (32) ‖
opslimit, memlimit (8 each, little-endian) ‖ id (8) ‖ key (64) ‖ BLAKE2b-256 of "Ed", id and key or
zeros), the last three XORed with scrypt's output if there is a password (format of minisign 0.11,
which the tests run; libsodium's choice of scrypt's N, r and p from the limits).
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError, SchemeError
from soroq.io.writer import atomic_write

SUFFIX = ".minisig"
CHUNK = 1 << 20
ALGORITHM, PREHASHED, SCRYPT, BLAKE = b"Ed", b"ED", b"Sc", b"B2"


@dataclass(frozen=True)
class SecretKey:
    key_id: bytes
    seed: bytes  # 32 bytes; the other half of the 64 is the public key


@dataclass(frozen=True)
class PublicKey:
    key_id: bytes
    key: bytes


def read_secret_key(path: Path, password: str = "") -> SecretKey:
    """Return a secret key of `minisign -G`. Raises SchemeError for another file or password."""
    data = _decoded(_line(path, 1), f"{path}: not a secret key of minisign")
    if len(data) != 158 or data[:2] != ALGORITHM or data[4:6] != BLAKE:
        raise SchemeError(f"{path}: not a secret key of minisign")
    derivation, salt, secret = data[2:4], data[6:38], data[54:]
    if derivation == SCRYPT:
        limits = (int.from_bytes(data[38:46], "little"), int.from_bytes(data[46:54], "little"))
        stream = _scrypt(password, salt, *limits, size=len(secret))
        secret = bytes(a ^ b for a, b in zip(secret, stream, strict=True))
    elif derivation != b"\0\0":
        raise SchemeError(f"{path}: key derivation {derivation!r} is not known")
    key_id, key, checksum = secret[:8], secret[8:72], secret[72:]
    wanted = hashlib.blake2b(ALGORITHM + key_id + key, digest_size=32).digest()
    locked = derivation == SCRYPT  # without a password minisign leaves the checksum at 0
    public = _ed25519().Ed25519PrivateKey.from_private_bytes(key[:32]).public_key()
    whole = hmac.compare_digest(public.public_bytes_raw(), key[32:])
    if not whole or (locked and not hmac.compare_digest(checksum, wanted)):
        raise SchemeError(f"{path}: wrong password, or the key is damaged")
    return SecretKey(key_id, key[:32])


def is_encrypted(path: Path) -> bool:
    """Tell whether a secret key needs a password."""
    return _decoded(_line(path, 1), f"{path}: not a secret key of minisign")[2:4] == SCRYPT


def read_public_key(given: str) -> PublicKey:
    """Return a public key: a file of `minisign -G`, or its line of base64."""
    path = Path(given)
    text = _line(path, 1) if path.is_file() else given
    data = _decoded(text, f"{given}: neither a file nor a public key of minisign")
    if len(data) != 42 or data[:2] != ALGORITHM:
        raise SchemeError(f"{given}: not a public key of minisign")
    return PublicKey(data[2:10], data[10:])


def sign(path: Path, key: SecretKey, comment: str) -> Path:
    """Write the signature of a file beside it and return its path. comment: a line, signed too."""
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(key.seed)
    signature = private.sign(_digest(path))
    overall = private.sign(signature + comment.encode())
    lines = (
        f"untrusted comment: signature of {path.name}",
        base64.b64encode(PREHASHED + key.key_id + signature).decode(),
        f"trusted comment: {comment}",
        base64.b64encode(overall).decode(),
    )
    out = path.with_name(path.name + SUFFIX)
    atomic_write(out, ("\n".join(lines) + "\n").encode())
    return out


def verify_signature(path: Path, key: PublicKey) -> str:
    """Return the trusted comment of a file's signature. Raises CheckpointError for a wrong one."""
    from cryptography.exceptions import InvalidSignature

    beside = path.with_name(path.name + SUFFIX)
    if not beside.is_file():
        raise CheckpointError(f"{beside} is missing: the bundle is not signed; don't trust it")
    wrong = f"{beside}: not a signature of minisign"
    data, overall = _decoded(_line(beside, 1), wrong), _decoded(_line(beside, 3), wrong)
    if len(data) != 74 or data[:2] != PREHASHED:
        raise CheckpointError(f"{wrong} of a prehashed file")
    if data[2:10] != key.key_id:
        raise CheckpointError(
            f"{beside}: signed with key {data[9:1:-1].hex().upper()}, not with "
            f"{key.key_id[::-1].hex().upper()}"
        )
    comment = _line(beside, 2).removeprefix("trusted comment: ")
    public = _ed25519().Ed25519PublicKey.from_public_bytes(key.key)
    try:
        public.verify(data[10:], _digest(path))
        public.verify(overall, data[10:] + comment.encode())
    except InvalidSignature:
        raise CheckpointError(f"{path}: the signature does not fit; don't trust it") from None
    return comment


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SchemeError("signatures need a package: pip install 'soroq[bundle]'") from error
    return ed25519


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()


def _scrypt(password: str, salt: bytes, opslimit: int, memlimit: int, *, size: int) -> bytes:
    """Return scrypt's output with libsodium's choice of parameters (its pickparams)."""
    r, opslimit = 8, max(opslimit, 32768)
    small = opslimit < memlimit // 32
    most = opslimit // (r * 4) if small else memlimit // (r * 128)
    power = next(n for n in range(1, 64) if n == 63 or 1 << n > most // 2)
    p = 1 if small else min(opslimit // 4 // (1 << power), 0x3FFFFFFF) // r
    need = 128 * r * ((1 << power) + p + 2)
    return hashlib.scrypt(
        password.encode(), salt=salt, n=1 << power, r=r, p=p, maxmem=need + (1 << 20), dklen=size
    )


def _line(path: Path, number: int) -> str:
    try:
        return path.read_text(encoding="utf-8").splitlines()[number]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise SchemeError(f"{path}: not a file of minisign ({error})") from None


def _decoded(text: str, wrong: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SchemeError(wrong) from None
