"""Tell Tajik Cyrillic from what is easily taken for it.

Russian, Uzbek, Kyrgyz and Kazakh in Cyrillic letters, Persian script, Latin letters.

Words decide first (frequent function words, and the endings that sentences are built with),
letters second: ӣ ӯ ҷ stand in Tajik only, ў in Uzbek, ә ұ і in Kazakh, ң ө ү in Kyrgyz and Kazakh,
ғ қ ҳ not in Russian and Kyrgyz; a letter that a language hasn't got speaks against it. Enough for
passages of ten words (docs/train-data.md has the rates, `python -m soroq.bench.language` measures
them); a single word can't be told. Not told apart: Persian, Pashto and Arabic; Russian, Bulgarian
and Ukrainian.
"""

import re
from collections import Counter
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+")

FUNCTION_WORDS = {
    "tg": "ва дар ки аз ба бо ин он аст барои ҳам шуд буд мо ман шумо ҳар як низ то агар кард "
    "мешавад мекунад карда шуда ҳаст нест худ чӣ вай онҳо бояд хеле пас вале аммо инчунин "
    "ё дигар баъд чун зеро дорад доранд буданд шуданд мекунанд гуфт хоҳад ҳастанд соли танҳо "
    "ҳатто онро инро худро шудааст кардааст карданд бошад байни нисбат шавад кунад кунед",
    "ru": "и в на что не с по как это для к из был его от но она они мы вы то же так за все при "
    "или если только было быть который также о об до без еще уже чтобы может этого их им себя "
    "чем после во со нет да есть которые которая была были",
    "uz": "ва бу билан учун ҳам эди бўлган бир эса шу лекин мен сиз биз улар керак бўлади деб каби "
    "унинг қилиш бўлиб шунинг йил ўз у ёки эмас бўйича энг кейин кўра қилди қилган бўлса йўқ бор "
    "деди уни унга кўп ҳақида томонидан орқали сўнг ҳеч лозим эга",
    "ky": "жана менен үчүн бул ал да эле болгон деп бир ошол анын эмес же кийин болуп керек болот "
    "бар жок мен биз алар сиз аны өз ар эң көп деген боюнча жөнүндө бирок ошондой айтты алган "
    "болду экен дагы анда",
    "kk": "және мен үшін бұл ол да де бір болып деп емес немесе кейін керек бар жоқ біз олар сіз "
    "оның осы өз әр ең көп туралы бойынша бірақ сондай болды айтты екен еді алған болады оны тиіс",
    "en": "the of and to in a is that for it as was with be by on not he his but at are this have",
}
_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
LANGUAGES = ("tg", "ru", "uz", "ky", "kk", "fa", "en")  # that can be told
_OWN = {"tg": "ӣӯҷ", "ru": "щь", "uz": "ў", "ky": "ңөү", "kk": "әұі"}
_FOREIGN = {
    "tg": "ыщўңөүәұі",
    "ru": "ӣӯҷғқҳўңөүәұі",
    "uz": "ыщӣӯҷңөүәұі",
    "ky": "ӣӯҷғқҳўәұі",
    "kk": "ӣӯҷҳў",
}
_ENDINGS = {
    "tg": "ҳо ҳои ҳоро ро анд ист",
    "ru": "ого его ому ать ить ных ных ния ние ый ой ых ами ться ся",
    "uz": "лар лари ларни ларга ларда ларнинг ларини нинг ган лик лиги моқда ади диган",
    "ky": "нын нин нун нүн дын дин дун дүн лар лер лор лөр ган ген гон гөн дагы деги уу үү",
    "kk": "ның нің дың дің тың тің лар лер дар дер тар тер ған ген қан кен",
}
_SUFFIXES = {language: tuple(endings.split()) for language, endings in _ENDINGS.items()}


@dataclass(frozen=True)
class LanguageGuess:
    """language: tg, ru, uz, ky, kk (Cyrillic), fa (any Arabic script), en, latin, other, or unknown
    (too little text).
    """

    language: str
    score: float


def guess_language(text: str) -> LanguageGuess:
    """Return the language of a passage, with the share of words that speak for it."""
    words = [word.lower() for word in _WORD.findall(text)]
    letters = Counter("".join(words))
    total = letters.total()
    if total < 8:
        return LanguageGuess("unknown", 0.0)
    cyrillic = sum(n for char, n in letters.items() if "\u0400" <= char <= "\u04ff") / total
    arabic = sum(n for char, n in letters.items() if "\u0600" <= char <= "\u06ff") / total
    latin = sum(n for char, n in letters.items() if "a" <= char <= "z") / total
    if arabic > 0.5:
        return LanguageGuess("fa", arabic)
    if latin > 0.5:
        share = _share(words, "en")
        return LanguageGuess("en", share) if share > 0.08 else LanguageGuess("latin", latin)
    if cyrillic < 0.5:
        return LanguageGuess("other", 1.0 - cyrillic)
    scores = {language: _score(words, letters, language) for language in _OWN}
    best = max(scores, key=lambda language: scores[language])
    if scores[best] < 0.03:
        return LanguageGuess("unknown", scores[best])
    return LanguageGuess(best, scores[best])


def _share(words: list[str], language: str) -> float:
    known = _WORDS[language]
    return sum(word in known for word in words) / len(words)


def _score(words: list[str], letters: Counter[str], language: str) -> float:
    suffixes = _SUFFIXES[language]
    ended = sum(word.endswith(suffixes) for word in words if len(word) > 3)
    own = sum(letters[char] for char in _OWN[language])
    foreign = sum(letters[char] for char in _FOREIGN[language])
    return (
        _share(words, language)
        + 0.5 * ended / len(words)
        + (4 * own - 8 * foreign) / letters.total()
    )
