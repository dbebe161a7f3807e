"""Outlines to questions, checks of answers, and a run that is stopped and gone on with."""

import json
from pathlib import Path

import pytest

from soroq.core.errors import CalibrationError, OutputError
from soroq.train.chat_rows import read_conversations
from soroq.train.teacher import (
    QUESTIONS,
    Checks,
    objection,
    read_outline,
    triples,
    write_teacher_data,
)

GOOD = "Фотосинтез равандест, ки дар он растанӣ аз об ва нур моддаҳои органикӣ месозад."
OTHER = "Ҳуҷайра воҳиди асосии сохти ҳамаи растаниҳо ва ҳайвонот аст, ки аз мембрана иборат аст."
OUTLINE = """
## Биология, синфи 6
- Фотосинтез

## Забон
? «{topic}» чист? ({subject})
- исм
- феъл
"""


def _outline(folder: Path, text: str = OUTLINE) -> Path:
    path = folder / "outline.txt"
    path.write_text(text)
    return path


def test_an_outline_becomes_questions(tmp_path: Path) -> None:
    tasks = read_outline(_outline(tmp_path))
    assert len(tasks) == len(QUESTIONS) + 2
    assert tasks[0].question == "Муаллим, мавзӯи «Фотосинтез»-ро (Биология, синфи 6) шарҳ диҳед."
    assert tasks[-1].question == "«феъл» чист? (Забон)"
    assert len({task.id for task in tasks}) == len(tasks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- Фотосинтез", "outline.txt:1: topic 'Фотосинтез' stands before"),
        ("## А\nматн", "outline.txt:2: 'матн' is no"),
        ("## А\n? чист\n- б", "outline.txt:2: the question has no {topic}"),
        ("## А\n", "no '- topic'"),
        ("", "no '- topic'"),
    ],
)
def test_what_is_wrong_in_an_outline_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message.replace("{", r"\{")):
        read_outline(_outline(tmp_path, text))


@pytest.mark.parametrize(
    ("answer", "ended", "reason"),
    [
        (GOOD, True, ""),
        (GOOD, False, "unfinished"),
        ("Хуб аст.", True, "too short"),
        (GOOD * 40, True, "too long"),
        ("Это растение, и оно не было для них как из воды и света.", True, "language ru"),
        ("The plant makes it out of water and light in the leaf.", True, "language en"),
        (" ".join([GOOD] * 4), True, "repeats itself"),
        (OTHER.upper() + "!", True, "duplicate"),
    ],
)
def test_answers_are_checked(answer: str, ended: bool, reason: str) -> None:
    assert objection(answer, ended, Checks(), [triples(OTHER)]) == reason


def test_a_stopped_run_goes_on_and_tells_what_failed(tmp_path: Path) -> None:
    tasks = read_outline(_outline(tmp_path))
    answers = [("кӯтоҳ", True), (GOOD, True), (GOOD, True), (OTHER, True)]
    asked: list[tuple[str, int]] = []

    def answer(question: str, seed: int) -> tuple[str, bool]:
        if len(asked) == 3 and not resumed:
            raise KeyboardInterrupt
        asked.append((question, seed))
        return answers[len(asked) - 1] if len(asked) <= len(answers) else ("кӯтоҳ", True)

    out, resumed = tmp_path / "teacher.jsonl", False

    def run() -> None:
        nonlocal tally
        tally = write_teacher_data(
            tasks, out, answer, "m", Checks(), tries=2, resume=resumed, listen=lambda *_: None
        )

    tally = None
    with pytest.raises(KeyboardInterrupt):
        run()
    with (tmp_path / "teacher.jsonl.partial").open("a") as file:
        file.write('{"task": "3')  # killed while it wrote
    with pytest.raises(OutputError, match="--resume"):
        run()
    resumed = True
    run()
    assert asked[:5] == [
        (tasks[0].question, 0),
        (tasks[0].question, 1),
        (tasks[1].question, 0),
        (tasks[1].question, 1),
        (tasks[2].question, 0),
    ]
    assert tally is not None and tally.accepted == 2
    assert tally.rejected == {"duplicate": 1, "too short": 1 + 2 * (len(tasks) - 2)}
    found = list(read_conversations(out))
    assert [c.turns[1][1] for c in found] == [GOOD, OTHER]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["topic"] == "Фотосинтез" and "written by m" in rows[0]["source"]
    failed = (tmp_path / "teacher.jsonl.rejected.jsonl").read_text().splitlines()
    assert json.loads(failed[0])["reason"] == "too short"
    assert not (tmp_path / "teacher.jsonl.partial").exists()
    with pytest.raises(OutputError, match="exists"):
        run()
