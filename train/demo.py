"""What `soroq train demo` learns from where nothing is given: the built-in passages.

As text, and as conversations in which a passage's beginning is the question and its rest the
answer: enough to see that training runs, no data to make a good chat model of.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from soroq.calib.sources import BUILTIN_LICENSE, builtin_documents
from soroq.io.writer import atomic_write

ASK = "Ин матнро давом диҳед: "
FEW = 40  # conversations


def write_demo_text(path: Path, language: str) -> Path:
    """Write the passages in a language as JSONL, without those kept for checks; return the file."""
    rows = (
        {"text": document.plain, "source": f"built-in, {document.kind}", "license": BUILTIN_LICENSE}
        for document in builtin_documents(language, "calib")
    )
    return _write(path, rows)


def write_demo_conversations(path: Path) -> Path:
    """Write some built-in Tajik passages as questions and answers; return the file."""
    rows: list[dict[str, str]] = []
    for document in builtin_documents("tg", "calib"):
        first, dot, rest = document.plain.partition(". ")
        if rest and len(rows) < FEW:
            rows.append({"prompt": f"{ASK}{first}{dot}", "completion": rest[:300]})
    return _write(path, rows)


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(path, text.encode())
    return path
