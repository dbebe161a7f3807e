"""Sequences of equal length out of documents, and the exact place in the text where one goes on.

    streams = {"tg": Stream(documents, 1024, seed=0), "en": Stream(others, 1024, seed=0)}
    packer = Packer(streams, {"tg": 0.8, "en": 0.2})
    sequence = packer.next()      # tokens, positions, labels (seq_len,), and what it is made of
    state = packer.state()        # a small dict; packer.restore(state) goes on bit for bit

Positions begin at 0 with each document: transformers makes masks from them in which no token sees
another document, in sliding-window blocks too (masking_utils, packed sequences). A label is the
document's next token, IGNORED at its end.

Two ways to fill: "cut" goes on with the rest of a document in the next sequence, behind a BOS of
its own (Gemma is lost without one); "whole" never cuts one (conversations), pads, and counts what
was too long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from soroq.core.errors import CalibrationError
from soroq.train.loss import IGNORED

LOOKAHEAD = 32  # documents that may fill what is left of a sequence, with "whole"


@dataclass(frozen=True)
class Example:
    """A document to learn from. tokens int (n,); learned bool (n,): tokens to be predicted."""

    tokens: torch.Tensor
    learned: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """tokens, positions, labels int64 (seq_len,); n_tokens: without padding.

    where: the language and the documents it is made of.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    n_tokens: int
    where: str

    @property
    def n_learned(self) -> int:
        return int((self.labels != IGNORED).sum())


class Stream:
    """One language's documents in a new order each time round, cut into sequences."""

    def __init__(
        self,
        documents: Sequence[Any],
        seq_len: int,
        seed: int,
        fill: Literal["cut", "whole"] = "cut",
        pad: int = 0,
    ) -> None:
        if not len(documents):
            raise CalibrationError("no documents to train on")
        self._documents, self._seq_len, self._seed = documents, seq_len, seed
        self._fill, self._pad = fill, pad
        self._order: list[int] = []
        self._waiting: list[int] = []  # documents passed over, "whole" only
        self._epoch, self._at, self._offset = 0, 0, 0
        self.truncated = 0
        self._shuffle()

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "at": self._at,
            "offset": self._offset,
            "waiting": list(self._waiting),
            "truncated": self.truncated,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._at = int(state["epoch"]), int(state["at"])
        self._offset, self._waiting = int(state["offset"]), list(state["waiting"])
        self.truncated = int(state["truncated"])
        self._shuffle()

    def next(self) -> Packed:
        """Return the next sequence; `where` names its round and documents."""
        parts: list[tuple[int, Example]] = []
        room, epoch = self._seq_len, self._epoch
        while room > 0:
            taken = self._take(room) if self._fill == "cut" else self._take_whole(room)
            if taken is None:
                break
            parts.append(taken)
            room -= len(taken[1].tokens)
        tokens = torch.full((self._seq_len,), self._pad, dtype=torch.int64)
        positions = torch.zeros(self._seq_len, dtype=torch.int64)
        labels = torch.full((self._seq_len,), IGNORED, dtype=torch.int64)
        at = 0
        for _, example in parts:
            n = len(example.tokens)
            tokens[at : at + n] = example.tokens
            positions[at : at + n] = torch.arange(n)
            following = example.tokens[1:].long()
            labels[at : at + n - 1] = following.where(example.learned[1:], IGNORED)
            at += n
        positions[at:] = torch.arange(room)
        documents = [index for index, _ in parts]
        shown = ", ".join(map(str, documents[:4])) + (" …" if len(documents) > 4 else "")
        return Packed(tokens, positions, labels, at, f"round {epoch}, documents {shown}")

    def _take(self, room: int) -> tuple[int, Example]:
        """Return what fits of the document at hand: its beginning, or a BOS and how it goes on."""
        index, start = self._order[self._at], self._offset
        whole = _example(self._documents[index])
        n = min(room - (start > 0), len(whole.tokens) - start)
        tokens, learned = whole.tokens[start : start + n], whole.learned[start : start + n].clone()
        if start:
            learned[:1] = False  # behind BOS alone, the middle of a sentence can't be known
            tokens = torch.cat([whole.tokens[:1], tokens])
            learned = torch.cat([torch.zeros(1, dtype=torch.bool), learned])
        self._offset += n
        if self._offset == len(whole.tokens):
            self._offset = 0
            self._advance()
        return index, Example(tokens, learned)

    def _take_whole(self, room: int) -> tuple[int, Example] | None:
        empty = room == self._seq_len
        while len(self._waiting) < LOOKAHEAD:
            self._waiting.append(self._order[self._at])
            self._advance()
            if self._at == 0:  # a new round begins with what is left of this one
                break
        for place, index in enumerate(self._waiting):
            example = _example(self._documents[index])
            n = len(example.tokens)
            if n > room and empty and place == 0:
                self.truncated += 1
                example = Example(example.tokens[:room], example.learned[:room])
            elif n > room:
                continue
            del self._waiting[place]
            return index, example
        return None

    def _advance(self) -> None:
        self._at += 1
        if self._at == len(self._order):
            self._at, self._epoch = 0, self._epoch + 1
            self._shuffle()

    def _shuffle(self) -> None:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        self._order = torch.randperm(len(self._documents), generator=generator).tolist()


class Packer:
    """Sequences of several languages in given shares; each sequence is in one language."""

    def __init__(self, streams: Mapping[str, Stream], shares: Mapping[str, float]) -> None:
        total = sum(shares.values())
        self._shares = {name: share / total for name, share in sorted(shares.items()) if share > 0}
        self._streams = {name: streams[name] for name in self._shares}
        self._taken = dict.fromkeys(self._shares, 0)

    def next(self) -> Packed:
        """Return the next sequence, of the language that is furthest behind its share."""
        n = sum(self._taken.values()) + 1
        name = max(self._shares, key=lambda name: self._shares[name] * n - self._taken[name])
        self._taken[name] += 1
        packed = self._streams[name].next()
        return replace(packed, where=f"{name}, {packed.where}")

    def state(self) -> dict[str, Any]:
        streams = {name: stream.state() for name, stream in self._streams.items()}
        return {"taken": dict(self._taken), "streams": streams}

    def rounds(self) -> dict[str, int]:
        """Return how often each language's text was read to its end."""
        return {name: int(stream.state()["epoch"]) for name, stream in self._streams.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._taken = {name: int(state["taken"][name]) for name in self._shares}
        for name, stream in self._streams.items():
            stream.restore(state["streams"][name])


def _example(document: Any) -> Example:
    if isinstance(document, Example):
        return document
    return Example(document, torch.ones(len(document), dtype=torch.bool))
