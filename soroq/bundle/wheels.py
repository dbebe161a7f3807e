"""The Python packages that a bundle carries: which ones, at which versions, and from where.

Versions are those installed here, where the model was checked. What a package needs is followed
through its metadata, for the extras that are wanted.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from soroq.core.errors import OutputError, SchemeError

# What `soroq run` on an exported folder needs, and what soroq.load and `soroq generate` need.
RUNTIMES = {
    "onnx": ("numpy", "onnxruntime", "tokenizers", "jinja2", "typer", "rich"),
    "torch": ("soroq",),
}
EPOCH = "315532800"  # 1980-01-01, the earliest that a zip file can hold


@dataclass(frozen=True)
class Requirement:
    """A package at the version that is installed here."""

    name: str
    version: str

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


def closure(runtime: str) -> list[Requirement]:
    """Return every package that a runtime needs, by name, soroq left out.

    Raises SchemeError for an unknown runtime or a package that isn't installed here.
    """
    from packaging.requirements import Requirement as Parsed
    from packaging.utils import canonicalize_name

    if runtime not in RUNTIMES:
        raise SchemeError(f"--runtime {runtime!r} is unknown; known: {', '.join(RUNTIMES)}")
    found: dict[str, Requirement] = {}
    waiting = [(canonicalize_name(name), frozenset[str]()) for name in RUNTIMES[runtime]]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise SchemeError(
                f"{name} is not installed here, so its version can't be chosen; pip install {name}"
            ) from None
        if name != "soroq":
            found[name] = Requirement(name, package.version)
        for text in package.requires or []:
            needed = Parsed(text)
            environments = [{"extra": extra} for extra in extras or {""}]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                item = (canonicalize_name(needed.name), frozenset(needed.extras))
                if item not in seen:
                    seen.add(item)
                    waiting.append(item)
    return [found[name] for name in sorted(found)]


def find_wheels(folder: Path, wanted: list[Requirement]) -> list[Path]:
    """Return the wheel of soroq and of each package, from a folder.

    Raises OutputError that names what is missing.
    """
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    there: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        there[(str(name), version.public)] = path
        there[(str(name), str(version))] = path
        if name == "soroq":
            there[("soroq", "")] = path
    missing = [r.pin for r in wanted if (r.name, r.version) not in there]
    if ("soroq", "") not in there:
        missing.append("soroq")
    if missing:
        raise OutputError(
            f"{folder} lacks the wheels of {', '.join(missing)}; leave out --wheel-dir to have "
            "them fetched, or --no-wheels for a bundle without software"
        )
    return [there[("soroq", "")], *(there[(r.name, r.version)] for r in wanted)]


def fetch_wheels(folder: Path, wanted: list[Requirement]) -> list[Path]:
    """Download the packages and build soroq's wheel into a folder; return all.

    Raises OutputError when pip can't: without a network, use a folder of wheels.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pins = [requirement.pin for requirement in wanted]
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder), *pins]
    advice = "--wheel-dir FOLDER takes wheels that were fetched elsewhere"
    if own := [requirement.pin for requirement in wanted if "+" in requirement.version]:
        advice = (
            f"the build {', '.join(own)} has an index of its own, which PIP_EXTRA_INDEX_URL must "
            f"name; or {advice}"
        )
    _run(command, advice)
    command = [*pip, "wheel", "--no-deps", "-w", str(folder), _own_source()]
    _run(command, "put a wheel of soroq into --wheel-dir")
    return find_wheels(folder, wanted)


def _own_source() -> str:
    """Return what pip builds soroq from: the checkout it is installed from, or its version."""
    package = importlib.metadata.distribution("soroq")
    where = json.loads(package.read_text("direct_url.json") or "{}")
    if "dir_info" in where:
        return str(where["url"]).removeprefix("file://")
    return f"soroq=={package.version}"


def _run(command: list[str], advice: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}  # equal wheels at any time
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise OutputError(f"pip {command[4]} failed: {lines[-1].strip()}; {advice}")


@dataclass(frozen=True)
class WheelFacts:
    """What a wheel says of itself. files: its licence files, path → content."""

    name: str
    version: str
    licence: str
    files: dict[str, bytes]


def read_wheel(path: Path) -> WheelFacts:
    """Return what a wheel says of its licence. Raises OutputError for what is no wheel."""
    from email.parser import BytesParser

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            metadata = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            facts = BytesParser().parsebytes(archive.read(metadata))
            folder = metadata.removesuffix("METADATA")
            wanted = re.compile(
                re.escape(folder) + r"(?:licenses?/.+|(?:LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*)",
                re.IGNORECASE,
            )
            files = {
                n.removeprefix(folder).removeprefix("licenses/"): archive.read(n)
                for n in names
                if wanted.fullmatch(n) and not n.endswith("/")
            }
    except (OSError, zipfile.BadZipFile, StopIteration, KeyError) as error:
        raise OutputError(f"{path}: not a wheel that can be read ({error!r})") from None
    classifiers = [
        c.rpartition(" :: ")[2]
        for c in facts.get_all("Classifier", [])
        if c.startswith("License ::")
    ]
    stated = facts["License-Expression"] or facts["License"] or "; ".join(classifiers)
    first = (stated or "not stated").strip().splitlines()[0]
    if len(first) > 60 and classifiers:  # a whole licence text in that field
        first = "; ".join(classifiers)
    return WheelFacts(facts["Name"], facts["Version"], first, files)
