"""Checkpoints: a Hugging Face directory, a GGUF file or the demo model, tensor by tensor.

checkpoint = open_checkpoint("gemma3-270m")
checkpoint.info("model.norm.weight"), checkpoint.load("model.norm.weight")
"""

import fnmatch
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CheckpointError, NumericsError
from soroq.io.formats import hqq
from soroq.io.safetensors_file import SafetensorsFile, TensorInfo
from soroq.io.writer import sha256_file

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint", "open_stored"]

CHECKED_AT_ONCE = 1 << 24  # values
SIDE_FILES = (
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "chat_template*",
    "*processor_config.json",
    "license*",
    "notice*",
    "*terms*",
)  # matched without regard to case


class Checkpoint(ABC):
    """A model on disk under Hugging Face tensor names; nothing is read until asked for."""

    path: Path
    config: dict[str, Any]
    _sha256: str | None = None

    @abstractmethod
    def names(self) -> list[str]:
        """Return all tensor names, sorted."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Return shape, dtype and size. Raises CheckpointError for an unknown name."""

    @abstractmethod
    def _load(self, name: str) -> torch.Tensor: ...

    @abstractmethod
    def _load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _hash(self) -> str: ...

    @property
    def total_bytes(self) -> int:
        return sum(self.info(name).nbytes for name in self.names())

    def load(
        self, name: str, *, dtype: torch.dtype | None = None, check: bool = True
    ) -> torch.Tensor:
        """Return one tensor, converted to `dtype` if given and floating.

        Raises NumericsError when it holds NaN or infinity, unless `check` is False.
        """
        self.info(name)
        tensor = self._load(name)
        if check and tensor.is_floating_point():
            if bad := _not_finite(tensor):
                raise NumericsError(
                    f"{name}: {bad} of {tensor.numel()} values are NaN or infinite; the checkpoint "
                    "is damaged or was saved from a diverged run"
                )
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return tensor

    def load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (n,) of a matrix as (n, K), reading only what is needed."""
        self.info(name)
        return self._load_rows(name, rows)

    def sha256(self) -> str:
        """Return a hash of the configuration and all weights; computed once."""
        if self._sha256 is None:
            self._sha256 = self._hash()
        return self._sha256

    def copy_side_files(self, out: Path) -> None:
        """Copy tokenizer, generation config, chat template and licence files to `out`."""
        for file in sorted(self.path.iterdir()):
            wanted = any(fnmatch.fnmatchcase(file.name.lower(), p) for p in SIDE_FILES)
            if wanted and file.is_file():
                shutil.copyfile(file, out / file.name)


class DirectoryCheckpoint(Checkpoint):
    """config.json beside model.safetensors, or shards named by an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        self._file_of: dict[str, SafetensorsFile] = {}
        index = path / "model.safetensors.index.json"
        single = path / "model.safetensors"
        if index.is_file():
            self._open_shards(index)
        elif single.is_file():
            file = SafetensorsFile(single)
            self._file_of = dict.fromkeys(file.names(), file)
        elif (path / "qmodel.pt").is_file():
            raise CheckpointError(
                f"{path / 'qmodel.pt'} is hqq's pickle, which is not read; save it with hqq's "
                "save_to_safetensors"
            )
        else:
            raise CheckpointError(
                f"{path} has neither model.safetensors nor model.safetensors.index.json"
            )
        for name in self._file_of:
            dtype = self.info(name).dtype
            packed = name.removesuffix("weight") + "biases" in self._file_of  # MLX's words
            if name.endswith(".weight") and not dtype.is_floating_point and not packed:
                raise CheckpointError(
                    f"{name}: dtype {dtype} is no weight; floating point is needed"
                )
        marked = [n for n in self.names() if n.endswith(f".{hqq.MARK}")]
        if marked and not self.config.get("quantization_config"):
            modules = [n.removesuffix(f".{hqq.MARK}") for n in marked]
            self.config["quantization_config"] = hqq.config_from_tensors(modules, self.load)

    def _open_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: no weight_map")
        files: dict[str, SafetensorsFile] = {}
        for name, shard in sorted(weight_map.items()):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{index}: {name} lies in {shard!r}, not a file name")
            if shard not in files:
                if not (self.path / shard).is_file():
                    raise CheckpointError(f"{self.path / shard} is missing, the index names it")
                files[shard] = SafetensorsFile(self.path / shard)
            if name not in files[shard].names():
                raise CheckpointError(f"{self.path / shard} has no {name}, the index says so")
            self._file_of[name] = files[shard]

    def names(self) -> list[str]:
        return sorted(self._file_of)

    def info(self, name: str) -> TensorInfo:
        if name not in self._file_of:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._file_of[name].info(name)

    def _load(self, name: str) -> torch.Tensor:
        return self._file_of[name].load(name)

    def _load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self._file_of[name].load_rows(name, rows)

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file in sorted({f.path for f in self._file_of.values()}):
            digest.update(f"{file.name}:{sha256_file(file)}".encode())
        return digest.hexdigest()


def _not_finite(tensor: torch.Tensor) -> int:
    """Return how many values are NaN or infinite, without a copy as large as the tensor."""
    bad = 0
    for part in tensor.flatten().split(CHECKED_AT_ONCE):
        bad += int((~torch.isfinite(part.float() if part.itemsize == 1 else part)).sum())
    return bad


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Return the checkpoint at a path, or the demo model by its name.

    Raises CheckpointError when there is nothing readable.
    """
    from soroq.io.demo_model import DEMO_MODELS, ensure_demo_model

    path = Path(source)
    if path.is_dir():
        return DirectoryCheckpoint(path)
    if path.is_file():
        if path.suffix == ".gguf":
            from soroq.io.gguf import GgufCheckpoint

            return GgufCheckpoint(path)
        raise CheckpointError(f"{path} is no .gguf file; give a model directory or a .gguf")
    if str(source) in DEMO_MODELS:
        return DirectoryCheckpoint(ensure_demo_model(str(source)))
    raise CheckpointError(
        f"{str(source)!r} is not a local directory or .gguf file (known names: "
        f"{', '.join(sorted(DEMO_MODELS))}); a hub model must be downloaded first"
    )


def open_stored(source: str | Path) -> Checkpoint:
    """Return the checkpoint at a path as it is stored: a GGUF's quantized matrices stay so.

    For what runs, inspects or converts weights; what quantizes them takes `open_checkpoint`. Raises
    CheckpointError when there is nothing readable.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        from soroq.io.gguf_packed import PackedGguf

        return PackedGguf(path)
    return open_checkpoint(source)
