"""Documents from files, one at a time: JSONL, parquet, plain text, HTML, PDF.

A folder is walked in the order of its names. Rows of JSONL and parquet have `text` or `html`;
`source` and `license` are taken along when they are there. A
text, HTML or PDF file is one document.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CalibrationError

KINDS = (".txt", ".jsonl", ".parquet", ".html", ".htm", ".pdf")
LETTERS_OF_A_PAGE = 40  # fewer: a picture of text
STRANGE = 0.03  # share of characters that no text has: the font's own numbering


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
    """Yield a file's documents. Raises CalibrationError with the line for what can't be read."""
    kind = kind_of(path)
    if kind == ".jsonl":
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield _row(_json(line, path, number), path, number, language, license)
    elif kind == ".parquet":
        for number, row in enumerate(_parquet(path), 1):
            yield _row(row, path, number, language, license)
    elif kind == ".txt":
        yield Raw("".join(_lines(path)), language, path.name, license, path.name)
    elif kind == ".pdf":
        text, dropped = read_pdf(path)
        yield Raw(text, language, path.name, license, path.name, dropped)
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


def read_pdf(path: Path) -> tuple[str, str]:
    """Return a PDF's text without scanned pages and pages in a font of its own numbering.

    Also why nothing is left, '' if something is. Raises CalibrationError for an unreadable file.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise CalibrationError(f"reading PDF: {error}; pip install 'soroq[train]'") from error
    try:
        pages = [page.extract_text() or "" for page in PdfReader(path).pages]
    except (PyPdfError, OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path}: unreadable PDF: {error}") from error
    kinds = [_kind_of_page(page) for page in pages]
    text = "\n\n".join(p for p, kind in zip(pages, kinds, strict=True) if not kind)
    if text:
        return text, ""
    return "", max(kinds, key=kinds.count) if kinds else "empty PDF"


def _kind_of_page(text: str) -> str:
    """Return '' for text, else why a page is none."""
    if sum(char.isalpha() for char in text) < LETTERS_OF_A_PAGE:
        return "scanned pages"
    strange = sum("\ue000" <= char <= "\uf8ff" or char == "\ufffd" for char in text)
    strange += 4 * len(re.findall(r"\(cid:\d+\)|/g\d{2,}", text))
    return "broken font" if strange > STRANGE * len(text) else ""


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


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise CalibrationError(f"{path}: unreadable: {error}") from error


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
        for batch in parquet.ParquetFile(path).iter_batches(256):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: unreadable parquet: {error}") from error
