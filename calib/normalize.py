"""Clean text without changing what it says: Unicode form, look-alike letters, white space.

Tajik text on the web mixes in Latin letters that look Cyrillic, and letters of the old 8-bit fonts
("Times New Roman Tj": љ њ ї ќ ў ѓ for ҷ ҳ ӣ қ ӯ ғ). A model's tokenizer sees them as other letters.

    >>> normalize_tajik("Тољикистон ва забoни тоҷикӣ")   # a Latin o in забони
    'Тоҷикистон ва забони тоҷикӣ'
"""

import re
import unicodedata

LATIN_LOOKALIKES = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
OLD_FONT = str.maketrans("љњїќўѓЉЊЇЌЎЃ", "ҷҳӣқӯғҶҲӢҚӮҒ")
COMBINED = {"и\u0304": "ӣ", "И\u0304": "Ӣ", "у\u0304": "ӯ", "У\u0304": "Ӯ"}

_WORD = re.compile(r"[^\W\d_]+")
_CYRILLIC = re.compile(r"[\u0400-\u04ff]")
_LATIN = re.compile(r"[A-Za-z]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufeff\u00ad]")


def normalize_text(text: str) -> str:
    """Return text in NFC, without invisible characters, runs of blanks or of empty lines."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _INVISIBLE.sub("", text)
    text = "\n".join(_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def normalize_tajik(text: str) -> str:
    """Return `normalize_text` with look-alike letters of Tajik words put right.

    A Latin letter is replaced only inside a word that also has Cyrillic letters, and only when all
    Latin letters of that word have a Cyrillic twin: names and code stay as they are.
    """
    text = normalize_text(text)
    for wrong, right in COMBINED.items():
        text = text.replace(wrong, right)
    return _WORD.sub(_repair_word, text)


def _repair_word(match: re.Match[str]) -> str:
    word = match.group()
    if not _CYRILLIC.search(word):
        return word
    repaired = word.translate(LATIN_LOOKALIKES)
    if _LATIN.search(repaired):
        return word
    return repaired.translate(OLD_FONT)
