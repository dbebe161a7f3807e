"""soroq.json: what was done to make a checkpoint, with hashes; equal runs give equal bytes.

Measured facts of one run (times, memory, machine) stand beside it in soroq-run.json, which is the
one file of an output that differs between two equal runs.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError

MANIFEST = "soroq.json"
RUN = "soroq-run.json"


@dataclass(frozen=True)
class Manifest:
    """Everything that decided the bytes of an output, and each layer's error.

    layers: module, scheme, method, bits_per_weight, error, error_rtn (see LayerReport), before
    distillation. distilled: what distillation gained (see DistillReport), None without.
    converted: changes of format since, each with the hash of what it was converted from. backend:
    the other quantizer that chose the codes, its versions and arguments, None for soroq itself.
    trained: quantization-aware training since (see soroq.train.qat), None without. reordered: hash
    of the order of channels (see soroq.pipeline.order), None if they stand as in the source.
    """

    soroq_version: str
    source: str
    source_sha256: str
    recipe: dict[str, Any]
    calibration: dict[str, Any] | None
    versions: dict[str, str]
    layers: list[dict[str, Any]]
    folds: list[dict[str, Any]]
    source_bytes: int
    output_bytes: int
    quality: dict[str, Any] = field(default_factory=dict)
    distilled: dict[str, Any] | None = None
    converted: list[dict[str, Any]] = field(default_factory=list)
    backend: dict[str, Any] | None = None
    trained: dict[str, Any] | None = None
    reordered: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of an output, None when it has none.

    Raises CheckpointError when the file is there but can't be read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a soroq manifest: {error}") from error
