"""Documents from files: plain text, JSONL, parquet, and the built-in sets.

JSONL and parquet rows have `text`, or `messages` (role, content); `lang`, `kind`, `source` and
`license` are taken along when they are there. Plain text is split at empty lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from soroq.core.errors import CalibrationError

BUILTIN = Path(__file__).parent / "data"
BUILTIN_LICENSE = "Apache-2.0"
CHECK_EVERY = 6


@dataclass(frozen=True)
class Document:
    """One passage, or one conversation as (role, content) pairs."""

    text: str
    messages: tuple[tuple[str, str], ...]
    language: str | None
    kind: str
    source: str
    license: str

    @property
    def plain(self) -> str:
        """The text without any chat template: turns stand one under the other."""
        return self.text or "\n\n".join(content for _, content in self.messages)


def read_documents(path: Path, *, license: str = "unknown") -> Iterator[Document]:
    """Yield the documents of a file, or of every readable file in a directory, in name order.

    Raises CalibrationError for a missing file, an unknown kind or a broken line (with its number).
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".txt", ".jsonl", ".parquet"))
        if not files:
            raise CalibrationError(f"{path} has no .txt, .jsonl or .parquet file")
        for file in files:
            yield from read_documents(file, license=license)
    elif not path.is_file():
        raise CalibrationError(f"text {str(path)!r} does not exist")
    elif path.suffix == ".txt":
        for text in _decode(path).split("\n\n"):
            if text.strip():
                yield Document(text, (), None, "text", path.name, license)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(_decode(path).splitlines(), 1):
            if line.strip():
                yield _row(_json(line, path, number), f"{path}:{number}", path.name, license)
    elif path.suffix == ".parquet":
        yield from _parquet(path, license)
    else:
        raise CalibrationError(f"{path}: unknown kind of file; use .txt, .jsonl or .parquet")


def builtin_documents(language: str, split: Literal["calib", "check"]) -> Iterator[Document]:
    """Yield the passages written for this project in `language` ('tg' or 'en').

    Every sixth passage belongs to `check` and is never calibrated on: what is measured by default
    was not seen.
    """
    files = sorted(BUILTIN.glob(f"{language}_*.jsonl"))
    if not files:
        raise CalibrationError(f"there is no built-in text in {language!r}; there is in tg and en")
    for file in files:
        for index, document in enumerate(read_documents(file, license=BUILTIN_LICENSE)):
            if (index % CHECK_EVERY == 0) == (split == "check"):
                yield document


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: {error}") from error


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}:{number}: not JSON: {error}") from error


def _row(row: Any, where: str, source: str, license: str) -> Document:
    if not isinstance(row, dict):
        raise CalibrationError(f"{where}: not an object with 'text' or 'messages'")
    text, messages = row.get("text"), row.get("messages")
    turns: tuple[tuple[str, str], ...] = ()
    if messages is not None:
        try:
            turns = tuple((str(m["role"]), str(m["content"])) for m in messages)
        except (TypeError, KeyError) as error:
            raise CalibrationError(f"{where}: messages need role and content") from error
    if not isinstance(text, str) and not turns:
        raise CalibrationError(f"{where}: neither 'text' nor 'messages'")
    language = row.get("lang")
    return Document(
        text if isinstance(text, str) else "",
        turns,
        language if isinstance(language, str) else None,
        str(row.get("kind", "text")),
        source,
        str(row.get("license", license)),
    )


def _parquet(path: Path, license: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CalibrationError("reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: unreadable parquet: {error}") from error
    for number, row in enumerate(rows):
        yield _row(row, f"{path}:{number}", path.name, license)
