"""Mask what names a person: e-mail addresses, telephone, passport and tax numbers.

Tajik telephone numbers are +992 and nine digits, in groups; passports are a letter A or B and seven
or eight digits; tax numbers (РМА, ИНН) are nine or twelve digits behind that word. Years, prices,
numbers of laws and plain long numbers stay.
"""

import re
from collections import Counter

_PATTERNS = (
    ("EMAIL", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("TAX", re.compile(r"(?i)\b(?:рма|инн|рям|inn|tin)\b\W{0,4}\d{9}(?:\d{3})?(?!\d)")),
    ("PHONE", re.compile(r"(?<![\w+])(?:\+|00)\d{1,3}[\s()-]*\d(?:[\s()-]*\d){6,11}(?!\d)")),
    ("PHONE", re.compile(r"(?<![\w+])992[\s()-]*\d{2}(?:[\s()-]*\d){7}(?!\d)")),
    ("PHONE", re.compile(r"(?<![\w.,-])\(?\d{2,3}\)?[ -]\d{3}[ -]\d{2}[ -]\d{2}(?![\w-]|[.,]\d)")),
    ("PASSPORT", re.compile(r"(?<!\w)[AАBВ] ?(?:№ ?)?\d{7,8}(?!\d)")),
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """Return text with ‹EMAIL›, ‹PHONE›, ‹PASSPORT› and ‹TAX› in their places, and how many."""
    counts: Counter[str] = Counter()
    for name, pattern in _PATTERNS:
        text, found = pattern.subn(f"‹{name}›", text)
        if found:
            counts[name] += found
    return text, counts
