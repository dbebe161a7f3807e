"""The unfinished output: `<out>.partial/`, from which a killed run goes on.

    job.json              what is being done; a resumed run must ask for the same
    block-00007.safetensors, block-00007.json    one finished block; the json is written last
    distill.pt            distillation under way
    distilled.safetensors, distilled.json   what it changed; the json is written last
    acts-00008.bin        the hidden states in front of block 8; reference-00008.bin: those of the
                          unquantized model
    original-mlp.up_proj.bin  what a linear of the unquantized model gets, for the block under way

A block is done when its json exists. Everything is written under a temporary name and renamed, so
a kill at any moment leaves only whole files.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import OutputError
from soroq.io.writer import atomic_write


class Stage:
    """The staging directory of one run."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".partial")

    def open(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Create the directory, or check that the one that is there belongs to the same job.

        Raises OutputError when a partial run is in the way or was asked for something else.
        """
        file = self.path / "job.json"
        if file.exists():
            if not resume:
                raise OutputError(
                    f"{self.path} holds an unfinished run; go on with --resume, or delete it"
                )
            before = json.loads(file.read_text())
            for key, value in job.items():
                if before.get(key) != value:
                    raise OutputError(
                        f"{self.path} was started with another {key}; resume with the options of "
                        "the first run, or delete it"
                    )
            return
        if resume and self.path.exists() and any(self.path.iterdir()):
            raise OutputError(f"{self.path} has no job.json; delete it and start again")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't make {self.path}: {error.strerror or error}") from error
        atomic_write(file, json.dumps(job, sort_keys=True, indent=2).encode())

    def block_file(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.safetensors"

    def activation_file(self, index: int, *, reference: bool = False) -> Path:
        """Return where the hidden states in front of block `index` lie.

        reference: those of the unquantized model; in front of block 0 they are the same.
        """
        kind = "reference" if reference and index > 0 else "acts"
        return self.path / f"{kind}-{index:05d}.bin"

    def original_file(self, path: str) -> Path:
        """Return where the original model's input of a linear of the current block lies."""
        return self.path / f"original-{path}.bin"

    @property
    def embedding_file(self) -> Path:
        return self.path / "embedding.safetensors"

    @property
    def distill_state(self) -> Path:
        return self.path / "distill.pt"

    @property
    def distilled_file(self) -> Path:
        return self.path / "distilled.safetensors"

    def blocks_done(self) -> int:
        """Return how many leading blocks are finished."""
        index = 0
        while self.block_file(index).with_suffix(".json").exists():
            index += 1
        return index

    def commit_block(
        self, index: int, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]
    ) -> None:
        """Store a finished block; the activations in front of it are no longer needed."""
        self._commit(self.block_file(index), tensors, report)
        self.activation_file(index).unlink(missing_ok=True)
        self.activation_file(index, reference=True).unlink(missing_ok=True)
        for file in self.path.glob("original-*"):
            file.unlink()

    def commit_distilled(
        self, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]
    ) -> None:
        """Store what distillation changed, by full names."""
        self._commit(self.distilled_file, tensors, report)
        self.distill_state.unlink(missing_ok=True)

    def distilled(self) -> dict[str, Any] | None:
        """Return the report of a finished distillation, None before."""
        file = self.distilled_file.with_suffix(".json")
        return json.loads(file.read_text()) if file.exists() else None

    def _commit(
        self, file: Path, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]
    ) -> None:
        from safetensors.torch import save

        contiguous = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
        atomic_write(file, save(contiguous))
        atomic_write(file.with_suffix(".json"), json.dumps(report, sort_keys=True).encode())

    def report(self, index: int) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.block_file(index).with_suffix(".json").read_text())
        return result

    def close(self) -> None:
        shutil.rmtree(self.path)
