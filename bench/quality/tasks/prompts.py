"""What a model is shown for an item: passage, question, worked examples, and what it continues."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soroq.bench.quality.tasks.items import Item, is_cyrillic

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Prompt:
    """Token ids of the context, and of each continuation that is scored.

    lengths: characters of each continuation's text, by which length-normalized scores divide.
    """

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]


def split_shots(items: Sequence[Item], shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Return (examples, the rest): examples are drawn with the seed and never scored."""
    if shots == 0:
        return [], list(items)
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    taken = set(order[:shots])
    return [items[i] for i in order[:shots]], [x for i, x in enumerate(items) if i not in taken]


def write_context(item: Item, examples: Sequence[Item] = (), *, letters: bool = False) -> str:
    """Return the text in front of the answer; letters: choices are listed by letter."""
    shown = [_question(e, letters) + " " + _answer(e, letters) for e in examples]
    return "\n\n".join([*shown, _question(item, letters)])


def _question(item: Item, letters: bool) -> str:
    lines = [item.passage] if item.passage else []
    lines.append(item.question)
    if letters:
        lines += [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(item.choices)]
    if item.lead and not letters:
        return "\n".join(lines)
    lines.append("Ҷавоб:" if is_cyrillic(item.question) else "Answer:")
    return "\n".join(lines)


def _answer(item: Item, letters: bool) -> str:
    if not item.choices:
        return item.references[0]
    return LETTERS[item.answer] if letters else item.choices[item.answer]


def encode_choices(context: str, answers: Sequence[str], tokenizer: Any) -> Prompt:
    """Return the ids of a context and of " answer" behind it.

    Context and answer are tokenized together and cut where the context's own tokens end, as
    lm-evaluation-harness does, so that scores can be compared item by item.
    """
    head = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    start = head + tokenizer.encode(context, add_special_tokens=False)
    continuations = []
    for answer in answers:
        whole = head + tokenizer.encode(f"{context} {answer}", add_special_tokens=False)
        continuations.append(tuple(whole[len(start) :]))
    return Prompt(tuple(start), tuple(continuations), tuple(len(answer) for answer in answers))
