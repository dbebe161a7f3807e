"""Evaluation sets: one text per language, cut into windows once for every model that is compared.

    sets = [make_set("tg", read_passages(Path("valid.jsonl")), tokenizer, seq_len=512)]

Passages of one kind (news, law, interface strings, …) are joined and cut into windows of BOS and
running text, so that every window has a kind; kinds too short for a window are joined as "other".
Every token is scored exactly once: with a stride, windows overlap and only the new tokens count.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soroq.calib.language import guess_language
from soroq.calib.sources import read_documents
from soroq.core.errors import CalibrationError, CheckError

Passage = tuple[str, str]  # text, kind
LANGUAGES = ("tg", "ru", "uz", "fa", "en")  # names that a text must live up to
PIECE, PIECES = 1000, 64  # characters, pieces


@dataclass(frozen=True)
class EvalSet:
    """Windows of one text.

    ids (n, seq_len) int64; scored (n, seq_len − 1) bool: which next tokens count; n_bytes (n,):
    UTF-8 bytes of the text that counts; kinds: one a window.
    """

    name: str
    ids: torch.Tensor
    scored: torch.Tensor
    n_bytes: torch.Tensor
    kinds: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Identify the windows: the same tokens, scored at the same places."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        digest.update(self.scored.numpy().tobytes())
        return digest.hexdigest()

    @property
    def n_tokens(self) -> int:
        return int(self.scored.sum())

    def first(self, n: int) -> "EvalSet":
        """Return the first n windows, or all if there are fewer."""
        return EvalSet(self.name, self.ids[:n], self.scored[:n], self.n_bytes[:n], self.kinds[:n])


def read_passages(path: Path) -> list[Passage]:
    """Return the passages of a text file (kinds: see soroq.calib.sources.read_documents).

    Raises CheckError with the line at fault.
    """
    try:
        passages = [(document.plain, document.kind) for document in read_documents(path)]
        passages = [(text, kind) for text, kind in passages if text.strip()]
    except CalibrationError as error:
        raise CheckError(str(error)) from error
    if not passages:
        raise CheckError(f"{path} holds no text")
    return passages


def refuse_other_language(name: str, passages: Sequence[Passage]) -> None:
    """Raise CheckError when a text called by a language's code is mostly in another language.

    Looked at in pieces of PIECE characters, at most PIECES of them, spread evenly; names that are
    no code in LANGUAGES are let be.
    """
    if name not in LANGUAGES:
        return
    whole = "\n".join(text for text, _ in passages)
    n = max(1, len(whole) // PIECE)
    picks = range(n) if n <= PIECES else [i * n // PIECES for i in range(PIECES)]
    guesses = [guess_language(whole[i * PIECE : (i + 1) * PIECE]).language for i in picks]
    decided = [guess for guess in guesses if guess != "unknown"]
    others = [guess for guess in decided if guess != name]
    if 2 * len(others) > len(decided):
        likeliest = max(sorted(set(others)), key=others.count)
        raise CheckError(
            f"the text {name!r} is not in that language: {others.count(likeliest)} of "
            f"{len(guesses)} pieces look like {likeliest!r}; give it another name or another file"
        )


def make_set(
    name: str,
    passages: Sequence[Passage],
    tokenizer: Any,
    *,
    seq_len: int = 512,
    stride: int | None = None,
    limit: int | None = None,
) -> EvalSet:
    """Cut passages into windows of seq_len tokens, each beginning with the tokenizer's BOS.

    stride: new tokens a window (None: all, the windows don't overlap). limit: at most so many
    windows, spread evenly. Raises CheckError when the text is shorter than one window.
    """
    head = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    body = seq_len - len(head)
    step = body if stride is None else stride
    if not 0 < step <= body:
        raise CheckError(f"stride {stride} does not fit windows of {body} tokens of text")
    windows: list[tuple[list[int], int, int, str]] = []
    leftover: list[str] = []
    kinds: dict[str, list[str]] = {}
    for text, kind in passages:
        kinds.setdefault(kind, []).append(text)
    for kind, texts in kinds.items():
        found = _cut(texts, tokenizer, body, step, kind)
        windows += found
        leftover += [] if found else texts
    windows += _cut(leftover, tokenizer, body, step, "other" if kinds.keys() - {"text"} else "text")
    if not windows:
        n = sum(len(_encode("\n\n".join(texts), tokenizer)[0]) for texts in kinds.values())
        raise CheckError(
            f"the text {name!r} has {n} tokens, one window needs {body}; give more text, or "
            "shorter windows with --seq-len"
        )
    if limit is not None and limit < len(windows):
        windows = [windows[i * len(windows) // limit] for i in range(limit)]
    ids = torch.tensor([head + tokens for tokens, _, _, _ in windows])
    scored = torch.zeros(len(windows), seq_len - 1, dtype=torch.bool)
    for row, (_, new, _, _) in enumerate(windows):
        scored[row, seq_len - 1 - new :] = True
    return EvalSet(
        name,
        ids,
        scored,
        torch.tensor([n_bytes for _, _, n_bytes, _ in windows]),
        tuple(kind for _, _, _, kind in windows),
    )


def _cut(
    texts: Sequence[str], tokenizer: Any, body: int, step: int, kind: str
) -> list[tuple[list[int], int, int, str]]:
    """Return (tokens, how many of them are new, bytes of the new ones, kind) of each window."""
    if not texts:
        return []
    ids, n_bytes = _encode("\n\n".join(texts), tokenizer)
    windows = []
    for end in range(body, len(ids) + 1, step):
        new = step if end > body else body - (tokenizer.bos_token_id is None)
        windows.append((ids[end - body : end], new, sum(n_bytes[end - new : end]), kind))
    return windows


def _encode(text: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return token ids and how many UTF-8 bytes of the text each adds."""
    if not tokenizer.is_fast:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids, [len(tokenizer.decode([token]).encode()) for token in ids]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    n_bytes, reached = [], 0
    for _, end in encoded["offset_mapping"]:  # the bytes of one letter share their offsets
        n_bytes.append(len(text[reached:end].encode()) if end > reached else 0)
        reached = max(reached, end)
    return list(encoded["input_ids"]), n_bytes
