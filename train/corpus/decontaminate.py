"""Keep the benchmarks that will be reported out of the text that is trained on.

A document is dropped when it has a run of 13 words of a benchmark's item (arXiv 2005.14165,
appendix C), or all words of a shorter field of at least six, in order.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from soroq.calib.normalize import normalize_tajik, normalize_text
from soroq.core.errors import CalibrationError
from soroq.train.corpus.quality import words_of

RUN = 13
LEAST = 6


class Benchmarks:
    """Runs of words of the items of some JSONL files; every string in a row counts."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self._runs: dict[str, str] = {}
        self._lengths: set[int] = set()
        for file in files:
            for where, text in _texts(file):
                for clean in (normalize_text, normalize_tajik):  # as documents come here
                    self._add(words_of(clean(text)), where)

    def find(self, text: str) -> tuple[str, str] | None:
        """Return (the item's place, the words) of a run that the text shares, None for none."""
        words = words_of(text)
        for length in sorted(self._lengths):
            for start in range(len(words) - length + 1):
                run = " ".join(words[start : start + length])
                if run in self._runs:
                    return self._runs[run], run
        return None

    def _add(self, words: list[str], where: str) -> None:
        length = min(len(words), RUN)
        if length < LEAST:
            return
        self._lengths.add(length)
        for start in range(len(words) - length + 1):
            self._runs.setdefault(" ".join(words[start : start + length]), where)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"benchmark {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{path}:{number}: not JSON: {error}") from error
        for text in _strings(row):
            yield f"{path.name}:{number}", text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
