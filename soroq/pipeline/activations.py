"""Hidden states at a block boundary, in a file: (n, seq_len, hidden) bfloat16, read by batches.

They are always on disk: the page cache keeps what fits in memory, the process holds one batch,
and a run that is killed goes on from the last boundary it finished.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from soroq.core.errors import CheckpointError


class ActivationFile:
    """A finished file of hidden states; `write_activations` makes one."""

    def __init__(self, path: Path, n: int, seq_len: int, hidden: int) -> None:
        self.path, self.n, self.seq_len, self.hidden = path, n, seq_len, hidden
        if not path.is_file() or path.stat().st_size != self.n_bytes:
            raise CheckpointError(f"{path}: missing or truncated; start again without --resume")

    @property
    def n_bytes(self) -> int:
        return self.n * self.seq_len * self.hidden * 2

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield float32 tensors (≤ size, seq_len, hidden) in order."""
        with self.path.open("rb") as file:
            for start in range(0, self.n, size):
                count = min(size, self.n - start)
                raw = bytearray(file.read(count * self.seq_len * self.hidden * 2))
                flat = torch.frombuffer(raw, dtype=torch.bfloat16)
                yield flat.view(count, self.seq_len, self.hidden).float()

    def head(self, n: int) -> torch.Tensor:
        """Return n of the samples, spread evenly, float32 (n, seq_len, hidden)."""
        n = min(n, self.n)
        return self.rows([i * self.n // n for i in range(n)])

    def rows(self, picks: Sequence[int]) -> torch.Tensor:
        """Return the samples with these numbers, float32 (len(picks), seq_len, hidden)."""
        size = self.seq_len * self.hidden * 2
        found = []
        with self.path.open("rb") as file:
            for pick in picks:
                file.seek(pick * size)
                found.append(torch.frombuffer(bytearray(file.read(size)), dtype=torch.bfloat16))
        return torch.stack(found).view(len(picks), self.seq_len, self.hidden).float()


def write_activations(path: Path, batches: Iterator[torch.Tensor]) -> ActivationFile:
    """Write batches (b, seq_len, hidden) as bfloat16 under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    n = seq_len = hidden = 0
    with temporary.open("wb") as file:
        for batch in batches:
            n += batch.shape[0]
            seq_len, hidden = batch.shape[1], batch.shape[2]
            file.write(batch.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return ActivationFile(path, n, seq_len, hidden)
