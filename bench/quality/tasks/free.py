"""Free answers: greedy text behind a prompt, compared with references, and whether it is sane.

chrF follows Popović 2015 as sacreBLEU computes it (character n-grams of 1 to 6 without spaces,
β = 2, sentence by sentence).
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from soroq.bench.quality.model import Model
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.tasks.choices import write_json
from soroq.bench.quality.tasks.items import Item
from soroq.bench.quality.tasks.prompts import write_context
from soroq.calib.language import guess_language

PART = 4  # answers in a cached part: what is lost when a run is stopped
ORDER, BETA = 6, 2.0
REPEATED_GRAM = 4
PIECE_WORDS = 8  # of text whose language is guessed: docs/check.md says how often it is wrong
NUMBER = re.compile(r"-?\d+(?:[ \u00a0\u202f]\d{3}(?!\d))*(?:[.,]\d+)*")


def generate(model: Model, prompt: str, max_tokens: int) -> str:
    """Return the greedy continuation of a prompt, up to the end token."""
    tokenizer = model.tokenizer
    head = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = head + tokenizer.encode(prompt, add_special_tokens=False)
    tokens = model.generate(ids, max_tokens)
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def generate_all(
    scorer: Scorer,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    name: str = "text",
    listen: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[str]:
    """Return the continuation of every prompt; finished parts are read from the cache."""
    texts: list[str] = []
    for first in range(0, len(prompts), PART):
        part = list(prompts[first : first + PART])
        key = hashlib.sha256(json.dumps([part, max_tokens]).encode()).hexdigest()[:24]
        file = scorer.item_file(f"text-{key}")
        if not file.exists():
            found = []
            for place, prompt in enumerate(part):
                listen(first + place, len(prompts), f"{scorer.source} {name}")
                found.append(generate(scorer.model, prompt, max_tokens))
            write_json(file, found)
        texts += json.loads(file.read_text(encoding="utf-8"))
    listen(len(prompts), len(prompts), f"{scorer.source} {name}")
    return texts


def score_free(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    examples: Sequence[Item] = (),
    max_tokens: int = 64,
    name: str = "items",
    listen: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[float]:
    """Return each item's score in [0, 1]: exact match, the same number, or chrF."""
    prompts = [write_context(item, examples) for item in items]
    answers = generate_all(scorer, prompts, max_tokens, name=name, listen=listen)
    if examples:  # models that have seen some go on with a question of their own
        answers = [answer.strip().split("\n\n")[0] for answer in answers]
    return [score_answer(a, item) for a, item in zip(answers, items, strict=True)]


def score_answer(answer: str, item: Item) -> float:
    """Compare one answer with an item's references; the best of them counts."""
    if item.metric == "chrf":
        return max(chrf(answer.strip().split("\n\n")[0], r) for r in item.references)
    if item.metric == "number":
        final = NUMBER.findall(answer.partition("####")[2])
        numbers = final[:1] or NUMBER.findall(answer)
        given = _number(numbers[-1]) if numbers else None
        return float(given is not None and any(given == _number(r) for r in item.references))
    first = _plain(answer.strip().split("\n")[0])
    return float(any(first == _plain(reference) for reference in item.references))


def _plain(text: str) -> str:
    """Lower case, NFC, without punctuation around and doubled spaces."""
    text = unicodedata.normalize("NFC", text).lower()
    return re.sub(r"\s+", " ", text).strip(" .,;:!?«»\"'()")


def _number(text: str) -> float | None:
    """Return what a number of NUMBER's form means: 1,200 and 1 200 are 1200, 12,5 is 12.5."""
    digits = re.sub(r"\s", "", text)
    thousands = re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", digits)
    digits = digits.replace(",", "" if thousands else ".")
    try:
        return float(digits)
    except ValueError:
        return None


def chrf(hypothesis: str, reference: str) -> float:
    """Return sentence chrF2 in [0, 1]."""
    hyp, ref = ("".join(text.split()) for text in (hypothesis, reference))
    precisions, recalls = [], []
    for n in range(1, ORDER + 1):
        h, r = _grams(hyp, n), _grams(ref, n)
        total_h, total_r = sum(h.values()), sum(r.values())
        if total_h == 0 or total_r == 0:
            continue
        matched = sum((h & r).values())
        precisions.append(matched / total_h)
        recalls.append(matched / total_r)
    if not precisions:
        return 0.0
    p, r_ = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if p + r_ == 0:
        return 0.0
    return (1 + BETA**2) * p * r_ / (BETA**2 * p + r_)


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


@dataclass(frozen=True)
class Health:
    """How generated text holds up, as shares in [0, 1] of one text or means over many.

    repetition: word 4-grams that stood in the text before; cyrillic: letters that are Cyrillic;
    empty: 1 without any letter; foreign: pieces of about PIECE_WORDS words that are in another
    language than Tajik, Russian above all, which is Cyrillic too.
    """

    repetition: float
    cyrillic: float
    empty: float
    foreign: float


def health(text: str) -> Health:
    """Measure one text that was generated behind a Tajik prompt."""
    letters = [c for c in text if c.isalpha()]
    cyrillic = sum("\u0400" <= c <= "\u04ff" for c in letters)
    return Health(
        repetition(text), cyrillic / max(len(letters), 1), float(not letters), foreign(text)
    )


def mean_health(found: Sequence[Health]) -> Health:
    """Return the means over several texts."""
    n = max(len(found), 1)
    return Health(
        sum(h.repetition for h in found) / n,
        sum(h.cyrillic for h in found) / n,
        sum(h.empty for h in found) / n,
        sum(h.foreign for h in found) / n,
    )


def repetition(text: str) -> float:
    """Return the share of a text's word 4-grams that stood in it before."""
    words = text.lower().split()
    grams = [tuple(words[i : i + REPEATED_GRAM]) for i in range(len(words) - REPEATED_GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def foreign(text: str) -> float:
    """Return the share of a text's pieces whose language can be told and isn't Tajik."""
    words = text.split()
    n = max(1, round(len(words) / PIECE_WORDS))
    cuts = [len(words) * i // n for i in range(n + 1)]
    pieces = [" ".join(words[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    return sum(guess_language(p).language not in ("tg", "unknown") for p in pieces) / n
