"""Mask what names a person: e-mail addresses, telephone, passport and tax numbers.

Tajik telephone numbers are +992 and nine digits; without +992 they are groups of 2-3-2-2 or
3-3-2-2, or any six to eleven digits behind a word for telephone. Passports are a letter A or B and
seven or eight digits, or six to ten digits behind that word; tax numbers (РМА, ИНН) nine or twelve
digits behind that word. Years, prices, numbers of laws and plain long numbers stay.
"""

import re
from collections import Counter

_GAP = r"[ \u00a0()-]{0,3}"  # between digits; never a new line
_BETWEEN = r"[^\w\n]{0,4}"
_CALL = r"\b(?:тел|телефон\w*|моб|мобил\w*|факс|whatsapp|viber|phone|tel|fax)\b"
_TAX = r"\b(?:рма|инн|рям|inn|tin|мушаххаси андоз\w*)\b"
_PASSPORT = r"\b(?:шиноснома\w*|паспорт\w*|passport)\b"
_NUMBER = rf"{_BETWEEN}(?:(?:сери\w*|силсила\w*|рақам\w*|номер\w*|no|number)\b{_BETWEEN}){{0,2}}"
# A price or a count has groups of three, a row of temperatures groups of two.
_COUNT = r"(?!992)\d{1,3}(?: \d{3})+(?! ?\d)|\d\d(?: \d\d)+(?! ?\d)"
_YEARS = r"(?:19|20)\d\d[ -](?:19|20)\d\d(?!\d)"
_MONEY = r"(?:сомон|дирам|рубл|доллар|нафар|\$|€|%)"

# Group 1 is what stays.
_PATTERNS = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("EMAIL", r"()[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
        ("TAX", rf"({_TAX}{_BETWEEN}(?:\((?:inn|tin|инн)\){_BETWEEN})?)\d{{9}}(?:\d{{3}})?(?!\d)"),
        (
            "PASSPORT",
            rf"({_PASSPORT}{_NUMBER})(?:[a-zа-я]{{1,2}}{_BETWEEN})?\d(?:[ -]?\d){{5,9}}(?!\d)",
        ),
        ("PASSPORT", r"()(?<!\w)(?-i:[AАBВ])(?: ?№ ?)?\d{7,8}(?!\d)"),
        ("PHONE", rf"()(?<![\w+])(?:\+|00)(?!{_COUNT})\d(?:{_GAP}\d){{9,14}}(?!\d)"),
        ("PHONE", rf"()(?<![\w+])992(?:{_GAP}\d){{9}}(?!\d)"),
        ("PHONE", rf"({_CALL}{_NUMBER})(?!{_YEARS})\d(?:[ -]?\d){{5,10}}(?![\d-]| ?{_MONEY})"),
        ("PHONE", r"()(?<![\w.,-])\(?\d{2,3}\)?[ -]\d{3}[ -]\d{2}[ -]\d{2}(?![\w-]|[.,]\d)"),
    )
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """Return text with ‹EMAIL›, ‹PHONE›, ‹PASSPORT› and ‹TAX› in their places, and how many.

    A word that tells what a number is stays.
    """
    counts: Counter[str] = Counter()
    for name, pattern in _PATTERNS:
        text, found = pattern.subn(rf"\1‹{name}›", text)
        if found:
            counts[name] += found
    return text, counts
