"""Documents from files, one at a time: JSONL, parquet, plain text, HTML, PDF.

A folder is walked in the order of its names. Rows of JSONL and parquet have `text` or `html`;
`source` and `license` are taken along when they are there. An HTML or PDF file is one document, and
so is a text file up to a million characters.
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CalibrationError

KINDS = (".txt", ".jsonl", ".parquet", ".html", ".htm", ".pdf")
COLUMNS = ("text", "html", "source", "license")  # of rows
LETTERS_OF_A_PAGE = 40  # fewer: a picture of text
LONGEST = 1_000_000  # characters of a text file's document: longer ones are cut at an empty line
STRANGE = 0.03  # share of characters that no text has: the font's own numbering

_SMALL = "[a-zа-яёғӣқӯҳҷўңөүәұі]"
_BROKEN_WORD = re.compile(rf"(?<={_SMALL})[-\u00ad] ?\n(?={_SMALL})")
_BROKEN_LINE = re.compile(rf" ?\n(?={_SMALL})")
# What pypdf lets through of broken files, besides its own errors.
_OF_BROKEN_FILES = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    NotImplementedError,
    AssertionError,
    struct.error,
    zlib.error,
)


class UnreadablePdf(CalibrationError):
    """A file that is no PDF, damaged, or locked by a password."""


@dataclass(frozen=True)
class Raw:
    """A document as it came. dropped: why it holds no usable text, '' if it does."""

    text: str
    language: str
    source: str
    license: str
    where: str
    dropped: str = ""


def find_files(path: Path) -> list[Path]:
    """Return the readable files of a file or folder, in order. Raises CalibrationError for none."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) in KINDS)
    elif path.is_file():
        found = [path]
    else:
        raise CalibrationError(f"text {str(path)!r} does not exist")
    if not found or any(kind_of(p) not in KINDS for p in found):
        raise CalibrationError(f"{path}: no {', '.join(KINDS)} file (.txt and .jsonl also as .gz)")
    return found


def kind_of(path: Path) -> str:
    """Return a file's ending, without .gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix.lower()


def read_file(path: Path, language: str, license: str) -> Iterator[Raw]:
    """Yield a file's documents. Raises CalibrationError with the line for what can't be read.

    A PDF that no text can be got from is a document that is dropped: crawls have many.
    """
    kind = kind_of(path)
    if kind == ".jsonl":
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield _row(_json(line, path, number), path, number, language, license)
    elif kind == ".parquet":
        for number, row in enumerate(_parquet(path), 1):
            yield _row(row, path, number, language, license)
    elif kind == ".txt":
        for number, text in enumerate(_parts(_lines(path, LONGEST)), 1):
            where = path.name if number == 1 else f"{path.name}, part {number}"
            yield Raw(text, language, path.name, license, where)
    elif kind == ".pdf":
        yield from _pdf(path, language, license)
    else:
        text = read_html(path.read_bytes())
        yield Raw(text, language, path.name, license, path.name, "" if text else "no text in HTML")


def read_html(page: bytes | str) -> str:
    """Return the main text of a page (trafilatura), '' when there is none."""
    try:
        import trafilatura
    except ImportError as error:
        raise CalibrationError(f"reading HTML: {error}; pip install 'soroq[train]'") from error
    return trafilatura.extract(page, include_comments=False, include_tables=False) or ""


def read_pdf(path: Path) -> list[tuple[str, str]]:
    """Return each page's text and, if it holds none that can be used, why not ('' if it does).

    Raises UnreadablePdf for a file that pypdf can't read.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, PyPdfError
    except ImportError as error:
        raise CalibrationError(f"reading PDF: {error}; pip install 'soroq[train]'") from error
    broken = (PyPdfError, DependencyError, *_OF_BROKEN_FILES)
    with path.open("rb") as file:
        try:
            pages = [page.extract_text() or "" for page in PdfReader(file).pages]
        except broken as error:
            raise UnreadablePdf(f"{path}: unreadable PDF: {error}") from error
    return [(_flow(page), _kind_of_page(page)) for page in pages]


def _pdf(path: Path, language: str, license: str) -> Iterator[Raw]:
    """Yield the text of a PDF's good pages as one document, then each page without."""

    def raw(text: str, where: str, dropped: str) -> Raw:
        return Raw(text, language, path.name, license, where, dropped)

    try:
        pages = read_pdf(path)
    except UnreadablePdf:
        yield raw("", path.name, "unreadable PDF")
        return
    if not pages:
        yield raw("", path.name, "PDF without pages")
    if text := "\n\n".join(page for page, dropped in pages if not dropped):
        yield raw(text, path.name, "")
    for number, (_, dropped) in enumerate(pages, 1):
        if dropped:
            yield raw("", f"{path.name}, page {number}", dropped)


def _flow(page: str) -> str:
    """Return a page's text with the lines of a paragraph joined, and words parted by a hyphen.

    A line goes on where the next one begins with a small letter.
    """
    return _BROKEN_LINE.sub(" ", _BROKEN_WORD.sub("", page)).strip()


def _kind_of_page(text: str) -> str:
    """Return '' for text, else why a page is none."""
    if sum(char.isalpha() for char in text) < LETTERS_OF_A_PAGE:
        return "PDF page without text"
    strange = sum("\ue000" <= char <= "\uf8ff" or char == "\ufffd" for char in text)
    strange += 4 * len(re.findall(r"\(cid:\d+\)|/g\d{2,}", text))
    return "PDF page in a broken font" if strange > STRANGE * len(text) else ""


def _row(row: Any, path: Path, number: int, language: str, license: str) -> Raw:
    where = f"{path.name}:{number}"
    if not isinstance(row, dict):
        raise CalibrationError(f"{path}:{number}: not an object with 'text' or 'html'")
    text = row.get("text")
    if text is None and isinstance(row.get("html"), str):
        text = read_html(row["html"])
    if not isinstance(text, str):
        raise CalibrationError(f"{path}:{number}: neither 'text' nor 'html'")
    source, own = row.get("source"), row.get("license")
    return Raw(
        text,
        language,
        source if isinstance(source, str) and source else path.name,
        own if isinstance(own, str) and own else license,
        where,
    )


def _lines(path: Path, longest: int = -1) -> Iterator[str]:
    """Yield lines; with `longest`, those of more characters in pieces."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from iter(lambda: file.readline(longest), "")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise CalibrationError(f"{path}: unreadable: {error}") from error


def _parts(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines together, cut at the first empty one behind LONGEST characters, or at twice that.

    A file without a line gives one empty text.
    """
    part: list[str] = []
    size = 0
    cut = False
    for line in lines:
        part.append(line)
        size += len(line)
        if size >= 2 * LONGEST or (size >= LONGEST and not line.strip()):
            yield "".join(part)
            part, size, cut = [], 0, True
    if part or not cut:
        yield "".join(part)


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}:{number}: not JSON: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CalibrationError("reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(path)
        wanted = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(256, columns=wanted):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: unreadable parquet: {error}") from error
