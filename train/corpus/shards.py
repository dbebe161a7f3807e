"""Shards: tokenized documents one behind the other, mapped into memory when they are read.

    corpus = read_corpus(Path("tajik.corpus"))
    tokens = corpus.documents("train", "tg")[17]      # int32 (n,), begins with BOS

A corpus is a directory with `corpus.json` (format "soroq-corpus-1": tokenizer, splits, sources) and
`<split>-<language>-NNNNN.safetensors`, each with `tokens` int32 (n,) and `starts` int64 (d,), the
index of each document's first token. How documents are cut into sequences is the trainer's choice.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from soroq.core.errors import CalibrationError
from soroq.io.safetensors_file import SafetensorsFile
from soroq.io.writer import atomic_write, sha256_file

FORMAT = "soroq-corpus-1"
CARD = "corpus.json"
Bounds = npt.NDArray[np.int64]
SHARD_TOKENS = 16_000_000  # 64 MB, of which a builder holds three copies while it writes


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary: its tokens and their ids, by id."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    text = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ShardWriter:
    """Writes the documents of one split and language, a shard at a time."""

    def __init__(
        self,
        folder: Path,
        split: str,
        language: str,
        shard_tokens: int = SHARD_TOKENS,
        shards: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """shards: what an earlier writer has written, behind which this one goes on."""
        self._folder, self._name, self._limit = folder, f"{split}-{language}", shard_tokens
        self._tokens: list[np.ndarray[Any, Any]] = []
        self._starts: list[int] = []
        self._size = 0
        self.shards: list[dict[str, Any]] = [dict(shard) for shard in shards]

    def add(self, tokens: Sequence[int]) -> None:
        """Add one document, BOS first. Raises ValueError for an empty one."""
        if not len(tokens):
            raise ValueError("a document without tokens")
        if self._size and self._size + len(tokens) > self._limit:
            self._flush()
        self._starts.append(self._size)
        self._tokens.append(np.asarray(tokens, np.int32))
        self._size += len(tokens)

    def finish(self) -> dict[str, Any]:
        """Write what is left; return the split's entry for corpus.json."""
        self._flush()
        return {
            "shards": self.shards,
            "tokens": sum(shard["tokens"] for shard in self.shards),
            "documents": sum(shard["documents"] for shard in self.shards),
        }

    def _flush(self) -> None:
        if not self._starts:
            return
        path = self._folder / f"{self._name}-{len(self.shards):05d}.safetensors"
        tensors = {
            "tokens": torch.from_numpy(np.concatenate(self._tokens)),
            "starts": torch.tensor(self._starts, dtype=torch.int64),
        }
        atomic_write(path, save(tensors))
        self.shards.append(
            {
                "file": path.name,
                "tokens": self._size,
                "documents": len(self._starts),
                "sha256": sha256_file(path),
            }
        )
        self._tokens, self._starts, self._size = [], [], 0


class Documents(Sequence[torch.Tensor]):
    """The documents of one split and language, in the order in which they were written."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._shards: list[tuple[torch.Tensor, Bounds]] = []
        self._first = [0]
        for file in files:
            tokens, bounds = _open_shard(file)
            self._shards.append((tokens, bounds))
            self._first.append(self._first[-1] + len(bounds) - 1)

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: Any) -> Any:
        """Return document `index`, int32 (n,), from the mapped file."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        tokens, bounds = self._shards[shard]
        place = index - self._first[shard]
        return tokens[bounds[place] : bounds[place + 1]]


@dataclass(frozen=True)
class Corpus:
    """A corpus directory and its card."""

    path: Path
    card: dict[str, Any]

    @property
    def tokenizer_sha256(self) -> str:
        return str(self.card["tokenizer_sha256"])

    def languages(self, split: str) -> list[str]:
        return sorted(self.card["splits"].get(split, {}))

    def tokens(self, split: str, language: str) -> int:
        return int(self.card["splits"][split][language]["tokens"])

    def documents(self, split: str, language: str) -> Documents:
        """Raises CalibrationError when there are none, or a shard is not what the card says."""
        entry = self.card["splits"].get(split, {}).get(language)
        if not entry or not entry["documents"]:
            have = ", ".join(self.languages(split)) or "nothing"
            raise CalibrationError(
                f"{self.path} has no {split} text in {language!r}; there is {have}"
            )
        found = Documents(self.path / shard["file"] for shard in entry["shards"])
        if len(found) != entry["documents"]:
            raise CalibrationError(
                f"{self.path}: {split} {language} has {len(found)} documents, its card says "
                f"{entry['documents']}; build it anew"
            )
        return found


def read_corpus(path: Path) -> Corpus:
    """Open a corpus. Raises CalibrationError when it isn't one."""
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, this soroq reads {FORMAT!r}")
        for languages in card["splits"].values():
            for entry in languages.values():
                _ = [str(shard["file"]) for shard in entry["shards"]], int(entry["documents"])
        _ = str(card["tokenizer_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is no corpus ({error}); make one with: soroq train corpus"
        ) from error
    return Corpus(path, card)


def _open_shard(path: Path) -> tuple[torch.Tensor, Bounds]:
    """Return a shard's tokens and where its documents begin, and the end."""
    if not path.is_file():
        raise CalibrationError(f"{path} is missing; build the corpus anew")
    file = SafetensorsFile(path)
    if {"tokens", "starts"} - set(file.names()):
        raise CalibrationError(f"{path} has no tokens and starts: no shard of a corpus")
    starts = file.load("starts")
    info = file.info("tokens")
    if info.dtype != torch.int32 or starts.dtype != torch.int64:
        raise CalibrationError(f"{path}: tokens are {info.dtype}, starts {starts.dtype}")
    with safe_open(path, framework="pt") as mapped:
        tokens = mapped.get_tensor("tokens")
    bounds = np.append(starts.numpy(), len(tokens))
    if bounds[0] != 0 or np.any(np.diff(bounds) <= 0):
        raise CalibrationError(f"{path}: starts are not the beginnings of documents")
    return tokens, bounds
