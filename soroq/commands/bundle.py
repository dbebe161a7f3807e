"""bundle: write, check or unpack an archive for a machine without a network."""

import getpass
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from soroq.bundle.archive import check, unpack, write_archive
from soroq.bundle.content import Request, collect
from soroq.bundle.signature import (
    SUFFIX,
    is_encrypted,
    read_public_key,
    read_secret_key,
    sign,
    verify_signature,
)
from soroq.bundle.wheels import closure, fetch_wheels, find_wheels
from soroq.core.errors import OutputError, SchemeError

PASSWORD = "SOROQ_SIGN_PASSWORD"


@dataclass(frozen=True)
class Order:
    """What `soroq bundle OUT` is told."""

    model: Path | None
    onnx: Path | None
    reports: tuple[Path, ...]
    no_report: bool
    licences: tuple[Path, ...]
    wheels: bool
    wheel_dir: Path | None
    runtime: str
    key: Path | None


def run_bundle(out: Path, order: Order) -> None:
    """Collect, write and, with a key, sign."""
    if not order.reports and not order.no_report:
        raise OutputError(
            "no --report: add what `soroq check BASE QUANT --out report.json` wrote, or say "
            "--no-report"
        )
    if out.exists():
        raise OutputError(f"{out} exists; remove it or choose another name")
    secret = None
    if order.key is not None:
        password = ""
        if is_encrypted(order.key):
            password = os.environ.get(PASSWORD) or getpass.getpass(f"Password of {order.key}: ")
        secret = read_secret_key(order.key, password)
    with tempfile.TemporaryDirectory(prefix="soroq-wheels-") as temporary:
        wheels: list[Path] = []
        if order.wheels:
            wanted = closure(order.runtime)
            if order.wheel_dir is not None:
                wheels = find_wheels(order.wheel_dir, wanted)
            else:
                print(f"fetching {len(wanted) + 1} wheels", file=sys.stderr, flush=True)
                wheels = fetch_wheels(Path(temporary), wanted)
        request = Request(
            order.model, order.onnx, order.reports, tuple(wheels), order.runtime, order.licences
        )
        entries, facts = collect(request)
        manifest = write_archive(out, entries, facts, _show)
    total = sum(f["bytes"] for f in manifest["files"])
    print(f"wrote {out}: {len(manifest['files'])} files, {total / 1e6:.1f} MB", file=sys.stderr)
    if secret is not None:
        print(f"signed: {sign(out, secret, f'soroq bundle {out.name}')}", file=sys.stderr)


def run_verify(path: Path, public_key: str) -> None:
    """Compare all files with the manifest and, with a key, the signature."""
    if public_key:
        comment = verify_signature(path, read_public_key(public_key))
        print(f"signature is good: {comment}", file=sys.stderr)
    elif path.with_name(path.name + SUFFIX).is_file():
        print(f"{path.name}{SUFFIX} was not looked at; give --public-key", file=sys.stderr)
    manifest = check(path, _show)
    print(f"{len(manifest['files'])} files are as promised", file=sys.stderr)


def run_unpack(path: Path, folder: Path | None, public_key: str) -> None:
    """Unpack what is as promised, and nothing else."""
    if folder is None:
        raise SchemeError("--unpack FILE needs a folder: soroq bundle FOLDER --unpack FILE")
    if public_key:
        verify_signature(path, read_public_key(public_key))
    manifest = unpack(path, folder, _show)
    print(f"unpacked {len(manifest['files'])} files to {folder}; see INSTALL.md", file=sys.stderr)


def _show(done: int, total: int, what: str) -> None:
    print(f"{done * 100 // max(total, 1)} % {what}", file=sys.stderr, flush=True)
