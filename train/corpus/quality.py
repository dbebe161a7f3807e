"""Is this a text in the language that it is said to be in? Rules, each with its reason.

After the rules of Gopher (arXiv 2112.11446, appendix A) and FineWeb (arXiv 2406.17557), with
thresholds for whole documents; `MOST` and `LEAST` are shares of words, lines or characters.
"""

import re
from collections import Counter

from soroq.calib.language import guess_language

LEAST_WORDS = 20
LEAST_LETTERS = 0.6
MOST_DIGITS = 0.2
MEAN_WORD = (2.5, 12.0)
MOST_REPEATED_LINES = 0.3
MOST_REPEATED_GRAMS = 0.3
GRAM = 5

WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def objection(text: str, language: str) -> str:
    """Return why a document is no good text in `language`, '' if it is."""
    words = words_of(text)
    if len(words) < LEAST_WORDS:
        return "too short"
    solid = Counter("".join(text.split()))
    if sum(n for char, n in solid.items() if char.isalpha()) < LEAST_LETTERS * solid.total():
        return "few letters"
    if sum(n for char, n in solid.items() if char.isdigit()) > MOST_DIGITS * solid.total():
        return "many digits"
    mean = sum(map(len, words)) / len(words)
    if not MEAN_WORD[0] <= mean <= MEAN_WORD[1]:
        return "words too short or too long"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 3 and 1 - len(set(lines)) / len(lines) > MOST_REPEATED_LINES:
        return "repeated lines"
    grams = Counter(zip(*(words[i:] for i in range(GRAM)), strict=False))
    if grams and 1 - len(grams) / grams.total() > MOST_REPEATED_GRAMS:
        return "repeated passages"
    found = guess_language(text).language
    if found != language:
        return f"language: {found}"
    return ""
