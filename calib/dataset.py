"""CalibrationSet: the tokens a quantizer looks at, and where they come from.

One file: safetensors with `ids` int32 (n, seq_len) and the manifest as JSON in its metadata.

    calibration = load_calibration("tajik.calib")
    calibration.ids, calibration.manifest["sources"]
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CalibrationError


@dataclass(frozen=True)
class CalibrationSet:
    """ids int64 (n, seq_len): each row is BOS and seq_len − 1 tokens of running text.

    languages: one code a row. manifest: name, n, seq_len, seed, mix, tokenizer, sources (each with
    licence, documents, sha256), sha256 of the ids.
    """

    ids: torch.Tensor
    languages: tuple[str, ...]
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        return ids_sha256(self.ids)

    def save(self, path: Path) -> None:
        """Write the set to one file, whole or not at all. Raises CalibrationError if it can't."""
        from safetensors.torch import save

        metadata = {
            "soroq_calibration": "1",
            "languages": json.dumps(self.languages),
            "manifest": json.dumps(self.manifest, ensure_ascii=False, sort_keys=True),
        }
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(save({"ids": self.ids.to(torch.int32)}, metadata))
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CalibrationError(f"can't write {path}: {error.strerror or error}") from error


def ids_sha256(ids: torch.Tensor) -> str:
    """Return the hash of ids as little-endian int32 in row order."""
    return hashlib.sha256(ids.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()


def load_calibration(path: Path) -> CalibrationSet:
    """Read a set written by `CalibrationSet.save`. Raises CalibrationError if it isn't one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "soroq_calibration" not in metadata:
                raise CalibrationError(
                    f"{path} is not a calibration set; make one: soroq calib build"
                )
            ids = file.get_tensor("ids").long()
            languages = tuple(json.loads(metadata["languages"]))
            manifest = json.loads(metadata["manifest"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CalibrationError(f"{path}: unreadable calibration set: {error}") from error
    if (
        ids.dim() != 2
        or len(languages) != ids.shape[0]
        or manifest.get("sha256") != ids_sha256(ids)
    ):
        raise CalibrationError(f"{path}: the token ids do not match the manifest; build it again")
    return CalibrationSet(ids, languages, manifest)
