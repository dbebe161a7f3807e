"""Near-duplicates among any number of documents, in a file instead of in memory.

datasketch's own index lies in memory or in a server; here a band is a number of 64 bits in an
SQLite table. datatrove's sorted files would need a second pass over the text.

MinHash over runs of five words (datasketch), 16 bands of 8: two documents that share 80 % of their
runs meet in a band with 95 % probability, 50 % with 6 %. The first one stays.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soroq.core.errors import CalibrationError, OutputError
from soroq.train.corpus.quality import words_of

BANDS, ROWS = 16, 8
SHINGLE = 5


class Seen:
    """The bands of all documents so far, by their number."""

    def __init__(self, path: Path, first: int) -> None:
        """Open or make the file; what is numbered `first` or later is forgotten."""
        try:
            from datasketch import MinHash
        except ImportError as error:
            raise CalibrationError(
                "finding duplicates needs datasketch: pip install 'soroq[train]'"
            ) from error
        self._empty = MinHash(num_perm=BANDS * ROWS, seed=1)
        self._path = path
        with self._told():
            self._file = sqlite3.connect(path)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS bands (band INTEGER PRIMARY KEY, number INTEGER)"
            )
            self._file.execute("DELETE FROM bands WHERE number >= ?", (first,))
            self._file.commit()

    def add(self, text: str, number: int) -> int | None:
        """Return the number of an earlier document that is nearly this one, None if it is new.

        Raises OutputError when the file can't grow.
        """
        words = words_of(text)
        runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        made = self._empty.copy()
        made.update_batch([run.encode() for run in runs])
        values = made.hashvalues.astype("<u8").reshape(BANDS, ROWS)
        bands = [_number(bytes([band]) + row.tobytes()) for band, row in enumerate(values)]
        marks = ",".join("?" * BANDS)
        with self._told():
            found = self._file.execute(
                f"SELECT MIN(number) FROM bands WHERE band IN ({marks})", bands
            ).fetchone()[0]
            if found is not None:
                return int(found)
            self._file.executemany(
                "INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands]
            )
        return None

    def commit(self) -> None:
        """Keep what was added on disk. Raises OutputError when it is full."""
        with self._told():
            self._file.commit()

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"can't write {self._path}: {error}") from error


def _number(band: bytes) -> int:
    """Return a band's 64-bit number: two of 10⁹ are the same with 3 % probability."""
    return int.from_bytes(hashlib.blake2b(band, digest_size=8).digest(), "big", signed=True)
