"""Teacher-style examples: a curriculum's topics, questions about them, a local model's answers.

    ## Биология, синфи 6
    ? Мавзӯи «{topic}»-ро бо мисол шарҳ деҳ.
    - Фотосинтез
    - Ҳуҷайраи растанӣ

Every answer goes through checks, and what fails is written to a file beside the result with the
reason: a model as small as one can run here makes mistakes, and nobody has read its answers. Each
row says so, and which model wrote it; reading them is the user's part.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soroq.calib.language import guess_language
from soroq.core.errors import CalibrationError, OutputError
from soroq.io.writer import atomic_write

# What is asked where an outline asks nothing itself: {topic}, {subject}.
QUESTIONS = (
    "Муаллим, мавзӯи «{topic}»-ро ({subject}) шарҳ диҳед.",
    "Аз мавзӯи «{topic}» ({subject}) як мисол оред ва онро шарҳ диҳед.",
    "Аз мавзӯи «{topic}» ({subject}) се саволи санҷишӣ бо ҷавобҳояшон нависед.",
)
NEAR = 0.7  # answers that share so much of their word triples are duplicates
REPEATED = 0.3  # share of word triples that came before in the same answer
Answer = Callable[[str, int], tuple[str, bool]]  # question, seed → text, and whether it ended
Listen = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Task:
    """One question; id: its place in the outline."""

    id: str
    subject: str
    topic: str
    question: str


@dataclass(frozen=True)
class Checks:
    """What an answer must be. words: the least and the most."""

    language: str = "tg"
    words: tuple[int, int] = (8, 400)


@dataclass
class Tally:
    """Answers that were accepted, and how many failed, by reason."""

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


def read_outline(path: Path) -> list[Task]:
    """Return the questions of an outline: `## subject`, `? question`, `- topic`.

    Questions count for the topics behind them, until the next subject. Raises CalibrationError for
    a line that is none of these, a topic without a subject, or no topic at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"outline {path} is not readable: {error}") from error
    subject, asked, tasks = "", list[str](), list[Task]()
    for number, line in enumerate(lines, 1):
        mark, _, text = line.strip().partition(" ")
        text = text.strip()
        if not mark:
            continue
        if mark not in ("##", "?", "-") or not text:
            raise CalibrationError(
                f"{path}:{number}: {line.strip()!r} is no '## subject', '? question' or '- topic'"
            )
        if mark == "##":
            subject, asked = text, []
        elif mark == "?":
            if "{topic}" not in text:
                raise CalibrationError(f"{path}:{number}: the question has no {{topic}} in it")
            asked.append(text)
        elif not subject:
            raise CalibrationError(f"{path}:{number}: topic {text!r} stands before any ## subject")
        else:
            for i, question in enumerate(asked or QUESTIONS):
                filled = question.replace("{topic}", text).replace("{subject}", subject)
                tasks.append(Task(f"{number}.{i}", subject, text, filled))
    if not tasks:
        raise CalibrationError(f"{path}: no '- topic' in it")
    return tasks


def objection(answer: str, ended: bool, checks: Checks, others: Sequence[set[str]]) -> str:
    """Return why an answer can't be taken, '' if it can. others: `triples` of those taken."""
    words = _words(answer)
    if not ended:
        return "unfinished"
    if len(words) < checks.words[0]:
        return "too short"
    if len(words) > checks.words[1]:
        return "too long"
    guess = guess_language(answer).language
    if guess != checks.language:
        return f"language {guess}"
    own = triples(answer)
    if len(own) < (1 - REPEATED) * (len(words) - 2):
        return "repeats itself"
    for other in others:
        if len(own & other) > NEAR * min(len(own), len(other)):
            return "duplicate"
    return ""


def triples(text: str) -> set[str]:
    """Return the triples of words in a text, without case and punctuation."""
    words = _words(text)
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}


def write_teacher_data(
    tasks: Sequence[Task],
    out: Path,
    answer: Answer,
    model: str,
    checks: Checks,
    *,
    tries: int,
    resume: bool,
    listen: Listen,
) -> Tally:
    """Ask every question up to `tries` times, until an answer passes; write those that do to out.

    What fails goes to `<out>.rejected.jsonl` with its reason. Until all is asked, rows are in
    `<out>.partial`; resume goes on there. Raises OutputError where it can't be written.
    """
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        raise OutputError(f"{out} exists; choose another --out or delete it")
    if partial.exists() and not resume:
        raise OutputError(f"{partial} is unfinished; go on with --resume, or delete it")
    rows = list(_written(partial))
    asked = {(row["task"], row["try"]) for row in rows}
    taken = {row["task"] for row in rows if not row["reason"]}
    others = [triples(row["messages"][1]["content"]) for row in rows if not row["reason"]]
    try:
        with partial.open("a", encoding="utf-8") as file:
            for done, task in enumerate(tasks):
                for number in range(tries):
                    if task.id in taken or (task.id, number) in asked:
                        continue
                    text, ended = answer(task.question, number)
                    reason = objection(text, ended, checks, others)
                    row = _row(task, number, text.strip(), model, reason)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    rows.append(row)
                    if not reason:
                        taken.add(task.id)
                        others.append(triples(text))
                listen(done + 1, len(tasks), f"{task.topic}: {len(taken)} accepted")
    except OSError as error:
        raise OutputError(
            f"can't write {partial}: {error.strerror}; go on with --resume"
        ) from error
    rejected = [row for row in rows if row["reason"]]
    accepted = [
        {k: v for k, v in row.items() if k != "reason"} for row in rows if not row["reason"]
    ]
    atomic_write(out.with_name(out.name + ".rejected.jsonl"), _lines(rejected))
    atomic_write(out, _lines(accepted))
    partial.unlink()
    return Tally(len(accepted), Counter(row["reason"] for row in rejected))


def _row(task: Task, number: int, text: str, model: str, reason: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": task.question},
            {"role": "assistant", "content": text},
        ],
        "kind": "teacher",
        "subject": task.subject,
        "topic": task.topic,
        "source": f"written by {model}, read by nobody",
        "task": task.id,
        "try": number,
        "reason": reason,
    }


def _written(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an unfinished file; cut off what a kill left of the last one."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        atomic_write(path, whole)
    for line in whole.decode().splitlines():
        yield json.loads(line)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
