"""What a tokenizer makes of a language: tokens a word, whole words, bytes on their own."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from soroq.core.errors import CalibrationError
from soroq.train.corpus.quality import words_of

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenizerReport:
    """Counts over a text. whole_words: share of words that are one token behind a blank;
    bytes_alone: share of tokens that stand for a single byte, which no word should need.
    """

    words: int
    tokens: int
    bytes: int
    characters: int
    whole_words: float
    bytes_alone: float

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / self.words

    @property
    def tokens_per_byte(self) -> float:
        return self.tokens / self.bytes

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens

    def words_in_context(self, tokens: int) -> int:
        """Return how many words fit into a context of so many tokens."""
        return int(tokens / self.tokens_per_word)


def report(tokenizer: Any, texts: Iterable[str]) -> TokenizerReport:
    """Return the counts of some texts together. Raises CalibrationError when they have no word."""
    words = tokens = size = characters = whole = alone = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = words_of(text)
        words += len(found)
        tokens += len(ids)
        size += len(text.encode())
        characters += len(text)
        pieces = tokenizer.convert_ids_to_tokens(ids)
        alone += sum(bool(_BYTE.fullmatch(piece)) for piece in pieces)
        for word in found:
            whole += len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    if not words or not tokens:
        raise CalibrationError("a tokenizer's report needs text with words")
    return TokenizerReport(words, tokens, size, characters, whole / words, alone / tokens)
