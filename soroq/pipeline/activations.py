"""Activations in a file, read by batches: hidden states at a block boundary, inputs of linears.

They are always on disk: the page cache keeps what fits in memory, the process holds one batch,
and a run that is killed goes on from the last boundary it finished.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from soroq.core.errors import CheckpointError


class ActivationFile:
    """A finished file of activations (n, seq_len, hidden); `write_activations` makes one."""

    def __init__(
        self, path: Path, n: int, seq_len: int, hidden: int, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.path, self.n, self.seq_len, self.hidden, self.dtype = path, n, seq_len, hidden, dtype
        if not path.is_file() or path.stat().st_size != self.n * self._sample_bytes:
            raise CheckpointError(f"{path}: missing or truncated; start again without --resume")

    @property
    def _sample_bytes(self) -> int:
        return self.seq_len * self.hidden * self.dtype.itemsize

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield float32 tensors (≤ size, seq_len, hidden) in order."""
        with self.path.open("rb") as file:
            for start in range(0, self.n, size):
                count = min(size, self.n - start)
                raw = bytearray(file.read(count * self._sample_bytes))
                flat = torch.frombuffer(raw, dtype=self.dtype)
                yield flat.view(count, self.seq_len, self.hidden).float()

    def head(self, n: int) -> torch.Tensor:
        """Return n of the samples, spread evenly, float32 (n, seq_len, hidden)."""
        n = min(n, self.n)
        return self.rows([i * self.n // n for i in range(n)])

    def rows(self, picks: Sequence[int]) -> torch.Tensor:
        """Return the samples with these numbers, float32 (len(picks), seq_len, hidden)."""
        found = []
        with self.path.open("rb") as file:
            for pick in picks:
                file.seek(pick * self._sample_bytes)
                raw = bytearray(file.read(self._sample_bytes))
                found.append(torch.frombuffer(raw, dtype=self.dtype))
        return torch.stack(found).view(len(picks), self.seq_len, self.hidden).float()


class ActivationWriter:
    """Appends batches (b, seq_len, hidden) to a file that gets its name when it is whole."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self._path, self._dtype = path, dtype
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("wb")
        self._n = self._seq_len = self._hidden = 0

    def write(self, batch: torch.Tensor) -> None:
        """Append one batch; all share seq_len and hidden."""
        self._n += batch.shape[0]
        self._seq_len, self._hidden = batch.shape[1], batch.shape[2]
        stored = batch.detach().to(self._dtype).contiguous()
        self._file.write(stored.view(torch.uint8).numpy().data)

    def finish(self) -> ActivationFile:
        """Flush, rename and open the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        return ActivationFile(self._path, self._n, self._seq_len, self._hidden, self._dtype)


def write_activations(
    path: Path, batches: Iterator[torch.Tensor], dtype: torch.dtype = torch.bfloat16
) -> ActivationFile:
    """Write all batches (b, seq_len, hidden)."""
    writer = ActivationWriter(path, dtype)
    for batch in batches:
        writer.write(batch)
    return writer.finish()
