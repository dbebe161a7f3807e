"""Tell Tajik Cyrillic from what is easily taken for it: Russian, Uzbek Cyrillic, Persian, Latin.

Words decide first (frequent function words, and -ро, -ҳо, ме- that Tajik builds its sentences
with), letters second: ӣ ӯ ҷ stand in Tajik only, ў in Uzbek, ы щ in Russian, ғ қ ҳ in Tajik and
Uzbek. Enough for passages of a few words; a single word can't be told.
"""

import re
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+")

FUNCTION_WORDS = {
    "tg": "ва дар ки аз ба бо ин он аст барои ҳам шуд буд мо ман шумо ҳар як низ то агар кард "
    "мешавад мекунад карда шуда ҳаст нест худ чӣ вай онҳо бояд хеле пас вале аммо инчунин",
    "ru": "и в на что не с по как это для к из был его от но она они мы вы то же так за все при "
    "или если только было быть который также",
    "uz": "ва бу билан учун ҳам эди бўлган бир эса шу лекин мен сиз биз улар керак бўлади деб каби "
    "унинг қилиш бўлиб шунинг йил ўз",
    "en": "the of and to in a is that for it as was with be by on not he his but at are this have",
}
_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
_LETTERS = {"tg": "ӣӯҷ", "uz": "ў", "ru": "ыщ"}
_TAJIK_ENDINGS = ("ҳо", "ҳои", "ҳоро", "ро", "анд", "ист")


@dataclass(frozen=True)
class LanguageGuess:
    """language: tg, ru, uz, fa (Arabic script), en, latin, other or unknown (too little text)."""

    language: str
    score: float


def guess_language(text: str) -> LanguageGuess:
    """Return the language of a passage, with the share of words that speak for it."""
    words = [word.lower() for word in _WORD.findall(text)]
    letters = [char for word in words for char in word]
    if len(letters) < 8:
        return LanguageGuess("unknown", 0.0)
    cyrillic = sum("\u0400" <= char <= "\u04ff" for char in letters) / len(letters)
    arabic = sum("\u0600" <= char <= "\u06ff" for char in letters) / len(letters)
    latin = sum("a" <= char <= "z" for char in letters) / len(letters)
    if arabic > 0.5:
        return LanguageGuess("fa", arabic)
    if latin > 0.5:
        share = _share(words, "en")
        return LanguageGuess("en", share) if share > 0.08 else LanguageGuess("latin", latin)
    if cyrillic < 0.5:
        return LanguageGuess("other", 1.0 - cyrillic)
    scores = {language: _score(words, letters, language) for language in ("tg", "ru", "uz")}
    best = max(scores, key=lambda language: scores[language])
    if scores[best] < 0.03:
        return LanguageGuess("unknown", scores[best])
    return LanguageGuess(best, scores[best])


def _share(words: list[str], language: str) -> float:
    return sum(word in _WORDS[language] for word in words) / len(words)


def _score(words: list[str], letters: list[str], language: str) -> float:
    own = _LETTERS[language]
    score = _share(words, language) + 4 * sum(char in own for char in letters) / len(letters)
    if language == "tg":
        score += 0.5 * sum(len(w) > 3 and w.endswith(_TAJIK_ENDINGS) for w in words) / len(words)
        score -= 8 * sum(char in "ыщў" for char in letters) / len(letters)
    return score
