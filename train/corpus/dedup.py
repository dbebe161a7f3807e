"""Near-duplicates among any number of documents, in a file instead of in memory.

MinHash over runs of five words (datasketch), 16 bands of 8: two documents that share 80 % of their
runs meet in a band with 95 % probability, 50 % with 6 %. The first one stays.
"""

import sqlite3
from pathlib import Path

from soroq.core.errors import CalibrationError
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
        self._minhash = MinHash
        self._file = sqlite3.connect(path)
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS bands (band BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID"
        )
        self._file.execute("DELETE FROM bands WHERE number >= ?", (first,))
        self._file.commit()

    def add(self, text: str, number: int) -> int | None:
        """Return the number of an earlier document that is nearly this one, None if it is new."""
        words = words_of(text)
        runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        made = self._minhash(num_perm=BANDS * ROWS, seed=1)
        made.update_batch([run.encode() for run in runs])
        values = made.hashvalues.astype("<u8")
        bands = [
            bytes([band]) + values[band * ROWS : (band + 1) * ROWS].tobytes()
            for band in range(BANDS)
        ]
        marks = ",".join("?" * BANDS)
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
        """Keep what was added on disk."""
        self._file.commit()

    def close(self) -> None:
        """Commit and close."""
        self._file.commit()
        self._file.close()
