"""How often the language check is right, on text whose language is known.

    python -m soroq.bench.language --ntrex NTREX --udhr UDHR --text tg=valid.jsonl --record

NTREX: a checkout of MicrosoftTranslator/NTREX (news in many languages, translated by people,
CC-BY-SA-4.0), UDHR: one of unicode-org/udhr (the Universal Declaration of Human Rights). Documents
are cut into passages of `--words` words; those of NTREX are two halves by a hash of the document's
name, and the rules of `soroq.calib.language` were made looking at the half `tune` alone. NTREX's
Uzbek is in Latin letters and is written in Cyrillic here by the rules of the two alphabets.

Recall: the share of a language's passages called so. Precision: the share of what is called so that
is so, each language counted as if it had as many passages as the others.
"""

import argparse
import hashlib
import re
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from soroq.bench.record import append_record
from soroq.calib.language import guess_language
from soroq.calib.normalize import normalize_text
from soroq.calib.sources import read_documents
from soroq.core.errors import CheckError

BENCH = "language-check"
NTREX = {"ru": "rus", "ky": "kir", "kk": "kaz", "fa": "fas", "en": "eng-US", "uz": "uzb"}
UDHR = {"tg": "tgk", "ru": "rus", "ky": "kir", "kk": "kaz", "fa": "pes_1", "uz": "uzn_cyrl"}

# Uzbek's alphabet of 1995 in that of 1940; ye, yo, ya and the like before single letters.
_APOSTROPHE = "[ʻʼ‘’'`]"
_PAIRS = {
    f"o{_APOSTROPHE}": "ў",
    f"g{_APOSTROPHE}": "ғ",
    "sh": "ш",
    "ch": "ч",
    "yo": "ё",
    "yu": "ю",
    "ya": "я",
    "ye": "е",
    r"\be": "э",
    _APOSTROPHE: "ъ",
}
_SINGLE = str.maketrans("abdefghijklmnopqrstuvxyz", "абдефгҳижклмнопқрстувхйз")


def uzbek_in_cyrillic(text: str) -> str:
    """Return Uzbek in Cyrillic letters, lower case."""
    text = text.lower()
    for latin, cyrillic in _PAIRS.items():
        text = re.sub(latin, cyrillic, text)
    return text.translate(_SINGLE)


def read_ntrex(folder: Path, language: str) -> dict[str, str]:
    """Return a language's documents by name."""
    names = (folder / "DOCUMENT_IDS.tsv").read_text("utf-8").splitlines()
    file = folder / "NTREX-128" / f"newstest2019-ref.{NTREX[language]}.txt"
    lines = file.read_text("utf-8").splitlines()
    if len(lines) != len(names):
        raise CheckError(f"{file} has {len(lines)} lines, DOCUMENT_IDS.tsv {len(names)}")
    documents: dict[str, list[str]] = {}
    for name, line in zip(names, lines, strict=True):
        documents.setdefault(name, []).append(line)
    clean = uzbek_in_cyrillic if language == "uz" else str
    return {name: clean("\n".join(parts)) for name, parts in documents.items()}


def half_of(name: str) -> str:
    """Return 'tune' or 'held-out', by the document's name."""
    return ("tune", "held-out")[hashlib.sha256(name.encode()).digest()[0] % 2]


def read_udhr(path: Path) -> str:
    """Return the paragraphs of a declaration."""
    return "\n".join(
        "".join(part.itertext()) for part in xml.parse(path).iter() if part.tag.endswith("}para")
    )


def passages(text: str, words: int) -> Iterator[str]:
    """Cut a document into passages of `words` words; a rest shorter than half of that is left."""
    every = normalize_text(text).split()
    for start in range(0, len(every), words):
        part = every[start : start + words]
        if 2 * len(part) >= words:
            yield " ".join(part)


def measure(texts: Mapping[str, Sequence[str]], words: int) -> dict[str, Counter[str]]:
    """Return, for each language, how many of its passages were called what."""
    return {
        language: Counter(
            guess_language(passage).language for text in many for passage in passages(text, words)
        )
        for language, many in texts.items()
    }


def rates(found: Mapping[str, Counter[str]]) -> dict[str, tuple[float, float | None]]:
    """Return (recall, precision) by language; precision None when nothing was called so."""
    share = {
        language: {guess: n / counts.total() for guess, n in counts.items()}
        for language, counts in found.items()
        if counts.total()
    }
    made: dict[str, tuple[float, float | None]] = {}
    for language, own in share.items():
        called = sum(other.get(language, 0.0) for other in share.values())
        right = own.get(language, 0.0)
        made[language] = right, right / called if called else None
    return made


def collect(options: argparse.Namespace) -> dict[str, dict[str, list[str]]]:
    """Return set → language → texts."""
    sets: dict[str, dict[str, list[str]]] = {}
    given: dict[str, list[str]] = {}
    for text in options.text:
        language, _, path = text.partition("=")
        given.setdefault(language, []).extend(d.plain for d in read_documents(Path(path)))
    if options.ntrex:
        for language in NTREX:
            for name, text in read_ntrex(options.ntrex, language).items():
                if half_of(name) == options.half:
                    sets.setdefault("ntrex", {}).setdefault(language, []).append(text)
    if options.udhr:
        folder = options.udhr / "data" / "udhr"
        sets["udhr"] = {lang: [read_udhr(folder / f"udhr_{k}.xml")] for lang, k in UDHR.items()}
    if given:
        sets.setdefault("ntrex" if options.ntrex else "texts", {}).update(given)
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ntrex", type=Path)
    parser.add_argument("--udhr", type=Path)
    parser.add_argument(
        "--text", action="append", default=[], help="LANGUAGE=FILE, goes with NTREX"
    )
    parser.add_argument("--words", default="10,30,100", help="lengths of passages")
    parser.add_argument("--half", choices=("tune", "held-out"), default="held-out")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    for name, texts in collect(options).items():
        for words in map(int, options.words.split(",")):
            found = measure(texts, words)
            for language, (recall, precision) in rates(found).items():
                called = ", ".join(f"{k} {n}" for k, n in found[language].most_common())
                exact = "-" if precision is None else f"{precision:.4f}"
                print(f"{name} {words:4} {language} {recall:.4f} {exact} ({called})")
            if options.record:
                append_record(
                    BENCH,
                    {
                        "set": name,
                        "half": options.half if name == "ntrex" else "all",
                        "words": words,
                        "called": {k: dict(sorted(n.items())) for k, n in found.items()},
                        "recall_precision": {k: list(v) for k, v in rates(found).items()},
                    },
                )


if __name__ == "__main__":
    main()
