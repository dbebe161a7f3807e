"""What every target has in common: what is asked for, and the manifest of an exported folder."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError

MANIFEST = "soroq.json"
KIND = "export"
COMPUTE = ("float32", "float16", "bfloat16")

Say = Callable[[str], None]
Check = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class ExportRequest:
    """compute: the type of values between nodes. precision: what activations are multiplied as:
    "int8", rounded per token and block of weights, "int8-fine", per token and 32 columns, "int16",
    or "exact"; a target takes some of them."""

    source: str
    out: Path
    compute: str = "float32"
    precision: str = "int8"


@dataclass(frozen=True)
class ExportManifest:
    """soroq.json of an exported folder; equal exports give equal bytes.

    files: path → bytes and sha256 of every other file. requires: what a runtime must be at least.
    parity: what `soroq.export.parity` found, None if it was not asked.
    """

    target: str
    soroq_version: str
    source: str
    source_sha256: str
    compute: str
    precision: str
    opset: int
    ir_version: int
    requires: dict[str, str]
    versions: dict[str, str]
    notes: list[str]
    files: dict[str, dict[str, Any]]
    parity: dict[str, Any] | None = None
    kind: str = field(default=KIND)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def read_export(folder: Path) -> ExportManifest | None:
    """Return the manifest of an exported folder, None if the folder isn't one.

    Raises CheckpointError when its soroq.json can't be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("kind") != KIND:
            return None
        return ExportManifest(**values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not the manifest of an export: {error}") from error
