"""Evaluation windows: BOS and running text, tokenized once for every model that is compared."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from soroq.core.errors import CalibrationError


def read_texts(path: Path) -> list[str]:
    """Return the passages of a .txt file (empty lines part them) or a .jsonl with `text` fields."""
    if not path.is_file():
        raise CalibrationError(f"evaluation text {str(path)!r} does not exist")
    try:
        raw = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in raw.splitlines() if line.strip()]
            texts = [row["text"] for row in rows if isinstance(row.get("text"), str)]
        else:
            texts = [part for part in raw.split("\n\n") if part.strip()]
    except (UnicodeDecodeError, ValueError, AttributeError) as error:
        raise CalibrationError(f"{path}: not readable as text: {error}") from error
    if not texts:
        raise CalibrationError(f"{path} holds no text")
    return texts


def make_windows(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    *,
    bos: int | None,
    seq_len: int = 512,
    limit: int | None = None,
) -> torch.Tensor:
    """Return ids (n, seq_len): disjoint windows of BOS and seq_len − 1 tokens of the joined texts.

    With `limit`, that many windows spread evenly over the text. Raises CalibrationError when the
    text is shorter than one window.
    """
    head = [] if bos is None else [bos]
    body = seq_len - len(head)
    ids = encode("\n\n".join(texts))
    n = len(ids) // body
    if n == 0:
        raise CalibrationError(f"the text has {len(ids)} tokens, one window needs {body}")
    picks = range(n) if limit is None or limit >= n else [i * n // limit for i in range(limit)]
    return torch.tensor([head + ids[i * body : (i + 1) * body] for i in picks])
