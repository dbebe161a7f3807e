"""Log-likelihood of every choice of every item, kept in the cache beside its other scores."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from soroq.bench.quality.model import Model
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.tasks.items import Item
from soroq.bench.quality.tasks.prompts import LETTERS, Prompt, encode_choices, write_context
from soroq.core.errors import CheckError
from soroq.io.writer import atomic_write, make_folder

PART = 8  # items in a cached part: what is lost when a run is stopped
MODES = ("text", "letter")


@dataclass(frozen=True)
class ChoiceScores:
    """Nats of each choice's tokens, summed; lengths in characters."""

    item: str
    answer: int
    log_likelihood: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Whether the likeliest choice is the right one."""
        return _best(self.log_likelihood) == self.answer

    @property
    def right_normalized(self) -> bool:
        """The same with log-likelihood a character."""
        scores = [s / max(n, 1) for s, n in zip(self.log_likelihood, self.lengths, strict=True)]
        return _best(scores) == self.answer


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def score_prompt(model: Model, prompt: Prompt) -> tuple[float, ...]:
    """Return the summed log-probability of each continuation behind the context."""
    if any(not continuation for continuation in prompt.continuations):
        raise CheckError(f"{model.source}: a choice has no tokens of its own")
    return model.score_continuations(prompt.context, prompt.continuations)


def score_choices(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    examples: Sequence[Item] = (),
    mode: str = "text",
    name: str = "items",
    listen: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[ChoiceScores]:
    """Return the scores of all items; finished parts are read from the cache.

    mode: "text" scores the choices' texts, "letter" lists them and scores A, B, C, ….
    """
    letters = mode == "letter"

    def compute(item: Item) -> ChoiceScores:
        context = write_context(item, examples, letters=letters)
        answers = [LETTERS[i] for i in range(len(item.choices))] if letters else item.choices
        prompt = encode_choices(context, answers, scorer.model.tokenizer)
        scores = score_prompt(scorer.model, prompt)
        return ChoiceScores(item.id, item.answer, scores, prompt.lengths)

    found: list[ChoiceScores] = []
    for first in range(0, len(items), PART):
        part = items[first : first + PART]
        file = scorer.item_file(_key(part, examples, f"choices-{mode}"))
        if file.exists():
            rows = json.loads(file.read_text())
        else:
            rows = []
            for place, item in enumerate(part):
                listen(first + place, len(items), f"{scorer.source} {name}")
                rows.append(asdict(compute(item)))
            write_json(file, rows)
        found += [
            ChoiceScores(r["item"], r["answer"], tuple(r["log_likelihood"]), tuple(r["lengths"]))
            for r in rows
        ]
    listen(len(items), len(items), f"{scorer.source} {name}")
    return found


def _key(items: Sequence[Item], examples: Sequence[Item], kind: str) -> str:
    facts = [kind, [asdict(i) for i in items], [asdict(e) for e in examples]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def write_json(file: Path, document: object) -> None:
    """Write JSON as a whole, with the folders above it."""
    make_folder(file.parent)
    atomic_write(file, json.dumps(document, ensure_ascii=False).encode(), shared=True)
