"""What goes into a bundle: model, exported folder, reports, wheels, licences, how to install it."""

import fnmatch
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soroq
from soroq.bundle import verify
from soroq.bundle.archive import Entry
from soroq.bundle.install import install_text
from soroq.bundle.wheels import WheelFacts, read_wheel
from soroq.core.errors import CheckpointError, OutputError

LICENCES = ("license*", "licence*", "notice*", "*terms*", "copying*", "use_policy*")


@dataclass(frozen=True)
class Request:
    """model, onnx: directories; reports: files of `soroq check`; wheels: of `runtime`."""

    model: Path | None
    onnx: Path | None
    reports: tuple[Path, ...]
    wheels: tuple[Path, ...] = ()
    runtime: str = "onnx"
    licences: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def collect(request: Request) -> tuple[list[Entry], dict[str, Any]]:
    """Return the files of a bundle and what its manifest says beside them.

    Raises CheckpointError for a directory that holds no model or no licence, OutputError for a
    report that isn't one of `soroq check`.
    """
    if request.model is None and request.onnx is None:
        raise OutputError("nothing to bundle: give --model, --onnx or both")
    entries: list[Entry] = []
    facts: dict[str, Any] = {
        "soroq": soroq.__version__,
        "model": None,
        "onnx": None,
        "runtime": request.runtime if request.wheels else None,
        "quality": None,
        **request.facts,
    }
    folders = {"model": request.model, "onnx": request.onnx}
    for part, folder in folders.items():
        if folder is not None:
            entries += _folder(folder, part)
            facts[part] = _about(folder, part)
    licences = _model_licences([f for f in folders.values() if f is not None], request.licences)
    entries += licences
    if request.reports:
        facts["quality"] = [_verdict(path) for path in request.reports]
        entries += [Entry(f"reports/{path.name}", path) for path in request.reports]
    wheels = [read_wheel(path) for path in request.wheels]
    entries += [Entry(f"wheels/{path.name}", path) for path in request.wheels]
    for wheel in wheels:
        if wheel.name == "soroq":
            continue  # its licence is there already
        entries += [
            Entry(f"licences/{wheel.name}/{name}", data) for name, data in wheel.files.items()
        ]
    facts["machine"] = f"{platform.system()} {platform.machine()}" if wheels else None
    facts["python"] = ".".join(platform.python_version_tuple()[:2]) if wheels else None
    entries.append(Entry("licences/soroq/LICENSE", _own_licence()))
    entries.append(Entry("LICENCES.md", _licence_table(licences, wheels).encode()))
    entries.append(Entry("INSTALL.md", install_text(facts).encode()))
    entries.append(Entry("verify.py", Path(verify.__file__)))
    return entries, facts


def _folder(folder: Path, part: str) -> list[Entry]:
    """Return all files of a model's directory; hidden ones and caches stay out."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no directory")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(p.startswith(".") or p == "__pycache__" for p in inside.parts)
        if path.is_file() and not hidden:
            entries.append(Entry(f"{part}/{inside.as_posix()}", path))
    names = {entry.path for entry in entries}
    if part == "model" and "model/config.json" not in names:
        raise CheckpointError(
            f"{folder} has no config.json; --model takes a checkpoint's directory"
        )
    if part == "onnx" and not any(name.endswith(".onnx") for name in names):
        raise CheckpointError(f"{folder} has no .onnx file; --onnx takes what soroq export wrote")
    return entries


def _about(folder: Path, part: str) -> dict[str, Any]:
    """Return the name of a model and, if soroq made it, of what and how."""
    about: dict[str, Any] = {"name": folder.name}
    manifest = folder / "soroq.json"
    if manifest.is_file():
        try:
            made = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{manifest}: not readable as JSON") from None
        about["source"] = made.get("source")
        scheme = (made.get("recipe") or {}).get("scheme") or {}
        about["scheme"] = scheme.get("name") if isinstance(scheme, dict) else scheme
    return about


def _model_licences(folders: Sequence[Path], given: Sequence[Path]) -> list[Entry]:
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file() and _is_licence(path.name):
                found.setdefault(path.name, path)
    for path in given:
        if not path.is_file():
            raise OutputError(f"--licence {path} is no file")
        found[path.name] = path
    if not found:
        raise CheckpointError(
            f"{folders[0]} has no licence file ({', '.join(LICENCES)}); give the model's with "
            "--licence FILE: who gets the bundle must know the terms"
        )
    return [Entry(f"licences/model/{name}", path) for name, path in sorted(found.items())]


def _is_licence(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in LICENCES)


def _verdict(path: Path) -> dict[str, Any]:
    """Return what a report says: its verdict, if it is JSON of `soroq check`."""
    about: dict[str, Any] = {"file": path.name}
    if not path.is_file():
        raise OutputError(f"--report {path} is no file; `soroq check BASE QUANT --out` writes one")
    if path.suffix == ".json":
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            about |= {"base": report["base"], "verdict": report["verdict"] or "no gate"}
        except (ValueError, KeyError, TypeError, UnicodeDecodeError):
            raise OutputError(f"--report {path} is not JSON of `soroq check --out`") from None
    return about


def _own_licence() -> bytes:
    for file in importlib.metadata.distribution("soroq").files or []:
        if file.name == "LICENSE":
            return Path(str(file.locate())).read_bytes()
    return (Path(soroq.__file__).parent.parent / "LICENSE").read_bytes()


def _licence_table(model: Sequence[Entry], wheels: Sequence[WheelFacts]) -> str:
    lines = ["# Licences", "", "| what | licence | texts |", "| --- | --- | --- |"]
    texts = ", ".join(entry.path for entry in model)
    lines.append(f"| the model | its own terms | {texts} |")
    lines.append("| soroq | Apache-2.0 | licences/soroq/LICENSE |")
    for wheel in wheels:
        if wheel.name == "soroq":
            continue
        files = f"licences/{wheel.name}/" if wheel.files else "none in the wheel"
        lines.append(f"| {wheel.name} {wheel.version} | {wheel.licence} | {files} |")
    return "\n".join(lines) + "\n"
