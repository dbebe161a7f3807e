"""Items of benchmarks, and the readers that know how published sets lie on disk.

    items = read_items(Path("talim.jsonl"))        # the reader is found by the field names

JSONL, JSON (a list), CSV, TSV and Parquet are read. A row that fits no reader, or whose answer is
out of range, is an error that names file and line. Field names: TajLiB, TALIM, TajikMMLU, Belebele,
SIB-200, FLORES, MMLU, ARC, HellaSwag and GSM8K as their authors publish them; `question`,
`choices`, `answer` for a set of one's own.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckError

Row = Mapping[str, Any]
SIB_TOPICS = (
    "science/technology",
    "travel",
    "politics",
    "sports",
    "health",
    "entertainment",
    "geography",
)
SIB_TOPICS_TG = (
    "илм ва технология",
    "сайёҳат",
    "сиёсат",
    "варзиш",
    "тандурустӣ",
    "фароғат",
    "ҷуғрофия",
)
FLORES = ("eng_Latn", "tgk_Cyrl")
_LETTERS = ("ABCDEFGHIJ", "АБВГДЕЖЗИК", "АБСДЕФГҲИЙ")  # Latin, Cyrillic order, Cyrillic look-alike


@dataclass(frozen=True)
class Item:
    """One question.

    With choices, `answer` is the index of the right one; without, `references` are the right
    texts and `metric` says how an answer is compared with them: "exact", "number" or "chrf".
    lead: whether the choices continue `question` itself (HellaSwag), with no "Answer:" between.
    """

    id: str
    question: str
    choices: tuple[str, ...] = ()
    answer: int = -1
    references: tuple[str, ...] = ()
    metric: str = ""
    passage: str = ""
    subject: str = ""
    lead: bool = False


def read_items(path: Path) -> list[Item]:
    """Return all items of a file. Raises CheckError naming file and row."""
    items = []
    for where, row in read_rows(path):
        reader = next((read for wanted, read in READERS if wanted <= row.keys()), None)
        if reader is None:
            raise CheckError(
                f"{where}: fields {', '.join(sorted(row))} are of no known set; a set of one's own "
                "has question, choices, answer"
            )
        try:
            item = reader(row, where)
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise CheckError(f"{where}: {error}") from error
        if item is not None:
            items.append(_checked(item, where))
    if not items:
        raise CheckError(f"{path} holds no items")
    return items


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield ("file:line", row) of a JSONL, JSON, CSV, TSV or Parquet file, or of FLORES' folder."""
    if path.is_dir():
        yield from _flores_rows(path)
        return
    if not path.is_file():
        raise CheckError(f"items {str(path)!r} do not exist")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise CheckError(f"{path}: Parquet needs pyarrow; pip install pyarrow") from error
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise CheckError(f"{path}: unreadable Parquet: {error}") from error
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckError(f"{path} is not UTF-8: {error}") from error
    if path.suffix in (".csv", ".tsv"):
        table = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            for row in table:
                known = {k: v for k, v in row.items() if k is not None and v is not None}
                yield f"{path}:{table.line_num}", known
        except csv.Error as error:
            raise CheckError(f"{path}:{table.line_num}: {error}") from error
        return
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckError(f"{path}: not JSON: {error}") from error
        if not isinstance(rows, list):
            raise CheckError(f"{path}: not a list of items")
    elif path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise CheckError(f"{path}:{number}: not JSON: {error}") from error
        for number, row in rows:
            yield f"{path}:{number}", _object(row, f"{path}:{number}")
        return
    else:
        raise CheckError(f"{path}: unknown kind of file; use .jsonl, .json, .csv, .tsv or .parquet")
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", _object(row, f"{path}:{number}")


def _flores_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield the pairs of a folder of FLORES-200: a file a language, a line a sentence."""
    sides = [sorted(folder.glob(f"{language}.*")) for language in FLORES]
    if any(len(side) != 1 for side in sides):
        raise CheckError(
            f"{folder} is a folder without one {FLORES[0]}.* and one {FLORES[1]}.* file (FLORES); "
            "name a file of items"
        )
    try:
        lines = [side[0].read_text(encoding="utf-8").splitlines() for side in sides]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckError(f"{folder}: unreadable: {error}") from error
    if len(lines[0]) != len(lines[1]):
        raise CheckError(
            f"{sides[0][0]} has {len(lines[0])} lines, {sides[1][0].name} {len(lines[1])}; they "
            "are to be the same sentences"
        )
    for number, pair in enumerate(zip(*lines, strict=True), 1):
        row = {f"sentence_{name}": line for name, line in zip(FLORES, pair, strict=True)}
        yield f"{sides[1][0]}:{number}", row


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise CheckError(f"{where}: not a JSON object")
    return row


def _checked(item: Item, where: str) -> Item:
    if not item.question.strip() and not item.passage.strip():
        raise CheckError(f"{where}: the question is empty")
    if item.choices:
        if len(item.choices) < 2:
            raise CheckError(f"{where}: {len(item.choices)} choice, at least 2 are needed")
        if any(not choice.strip() for choice in item.choices):
            raise CheckError(f"{where}: an empty choice among {list(item.choices)!r}")
        if not 0 <= item.answer < len(item.choices):
            raise CheckError(
                f"{where}: answer {item.answer} is not one of the {len(item.choices)} choices"
            )
    elif not item.references:
        raise CheckError(f"{where}: neither choices nor a reference answer")
    return item


def answer_index(given: Any, choices: tuple[str, ...]) -> int:
    """Return which choice an answer names: an index, a letter (Latin or Cyrillic) or its text.

    Raises ValueError for anything else.
    """
    if isinstance(given, bool) or given is None:
        raise ValueError(f"answer {given!r} names no choice")
    if isinstance(given, int):
        return given
    text = str(given).strip()
    if text in choices:
        return choices.index(text)
    if re.fullmatch(r"\d+", text):
        return int(text)
    letter = re.fullmatch(r"\(?(\w)\)?[.)]?", text.upper())
    if letter:
        for letters in _LETTERS:
            if letter[1] in letters:
                return letters.index(letter[1])
    raise ValueError(f"answer {given!r} names no choice of {list(choices)!r}")


def is_cyrillic(text: str) -> bool:
    """Whether most letters are Cyrillic."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum("\u0400" <= c <= "\u04ff" for c in letters) > len(letters)


def _plain(value: Any, name: str) -> str:
    """Return a text or a number as text; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"`{name}` is {value!r}, not text")
    return str(value)


def _string(row: Row, name: str) -> str:
    return _plain(row[name], name)


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is {value!r}, not a list")
    return tuple(_plain(one, name) for one in value)


def _text(row: Row, *names: str) -> str:
    """Return the first of these fields that is there, else an empty text."""
    return next((_string(row, name) for name in names if row.get(name) is not None), "")


def _id(row: Row, where: str) -> str:
    return _text(row, "id", "number", "index_id", "question_number") or where.rpartition("/")[2]


def _own(row: Row, where: str) -> Item:
    choices = _strings(row["choices"], "choices")
    return Item(
        _id(row, where),
        _string(row, "question"),
        choices,
        answer_index(row["answer"], choices),
        passage=_text(row, "passage"),
        subject=_text(row, "subject"),
    )


def _lettered(row: Row, where: str) -> Item:
    """TajLiB: question, option_a … option_d, answer."""
    names = sorted(name for name in row if re.fullmatch(r"option_[a-j]", name))
    choices = tuple(_string(row, n) for n in names if row[n] not in (None, ""))
    answer = answer_index(row["answer"], choices)
    return Item(
        _id(row, where), _string(row, "question"), choices, answer, subject=_text(row, "subject")
    )


def _talim(row: Row, where: str) -> Item | None:
    """TALIM: options is JSON (a list, or letter → text); free response has none; matching is left
    out, its answers are pairs."""
    options = row["options"]
    if isinstance(options, str) and options.strip():
        options = json.loads(options)
    subject = _text(row, "subject", "section", "topic")
    if "match" in _text(row, "type").lower():
        return None
    if not options:
        answer = _string(row, "answer")
        return Item(
            _id(row, where), _string(row, "question"), (), -1, (answer,), "exact", "", subject
        )
    if isinstance(options, dict):
        letters = [str(key).strip().upper() for key in options]
        choices = _strings(list(options.values()), "options")
        given = _string(row, "answer").strip().upper()
        index = letters.index(given) if given in letters else answer_index(row["answer"], choices)
    else:
        choices = _strings(options, "options")
        index = answer_index(row["answer"], choices)
    return Item(_id(row, where), _string(row, "question"), choices, index, subject=subject)


def _belebele(row: Row, where: str) -> Item:
    choices = tuple(_string(row, f"mc_answer{i}") for i in range(1, 5))
    return Item(
        f"{_text(row, 'link')}#{_id(row, where)}",
        _string(row, "question"),
        choices,
        int(_string(row, "correct_answer_num")) - 1,
        passage=_string(row, "flores_passage"),
        subject="reading",
    )


def _sib200(row: Row, where: str) -> Item:
    answer, text = SIB_TOPICS.index(_string(row, "category")), _string(row, "text")
    if is_cyrillic(text):
        question, topics = "Мавзӯи матн чист?", SIB_TOPICS_TG
    else:
        question, topics = "What is the topic of this text?", SIB_TOPICS
    return Item(_id(row, where), question, topics, answer, passage=text)


def _arc(row: Row, where: str) -> Item:
    found = row["choices"]
    labels, choices = _strings(found["label"], "label"), _strings(found["text"], "text")
    answer = _string(row, "answerKey")
    if answer not in labels:
        raise ValueError(f"answerKey {answer!r} is not one of {list(labels)!r}")
    return Item(_id(row, where), _string(row, "question"), choices, labels.index(answer))


def _hellaswag(row: Row, where: str) -> Item:
    endings = row["endings"]
    endings = json.loads(endings) if isinstance(endings, str) else endings
    choices = _strings(endings, "endings")
    return Item(
        _id(row, where), _string(row, "ctx"), choices, int(_string(row, "label")), lead=True
    )


def _gsm8k(row: Row, where: str) -> Item:
    """GSM8K: the number behind "####". Any other question and answer: a number, or exact text."""
    _, mark, answer = _string(row, "answer").rpartition("####")
    answer = answer.strip()
    number = re.fullmatch(r"[-$]*\d[\d.,]*%?", answer)
    if mark and not number:
        raise ValueError(f"answer {answer!r} behind #### is no number")
    if not answer:
        raise ValueError("`answer` is empty")
    return Item(
        _id(row, where),
        _string(row, "question"),
        references=(answer.strip("$%"),) if number else (answer,),
        metric="number" if number else "exact",
        subject=_text(row, "subject") or ("maths" if mark else ""),
    )


def _flores(row: Row, where: str) -> Item:
    source, target = _string(row, "sentence_eng_Latn"), _string(row, "sentence_tgk_Cyrl")
    question = f"English: {source}\nТоҷикӣ:"
    return Item(_id(row, where), question, (), -1, (target,), "chrf", subject="translation")


def _free(row: Row, where: str) -> Item:
    """A set of one's own: question and reference (a string or several), maybe metric."""
    given = row["reference"]
    references = _strings(given if isinstance(given, list) else [given], "reference")
    metric = _text(row, "metric") or "exact"
    if metric not in ("exact", "number", "chrf"):
        raise ValueError(f"metric {metric!r} is not exact, number or chrf")
    return Item(_id(row, where), _string(row, "question"), (), -1, references, metric)


def _messages(row: Row, where: str) -> Item:
    """A conversation: the last message is the reference for the one before it."""
    turns = row["messages"]
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError("`messages` is not a list of at least two")
    return Item(
        _id(row, where),
        _string(turns[-2], "content"),
        (),
        -1,
        (_string(turns[-1], "content"),),
        "chrf",
        subject=_text(row, "kind"),
    )


Reader = Callable[[Row, str], Item | None]
# wanted fields → reader; the first that fits is taken, so the special come before the general
READERS: tuple[tuple[set[str], Reader], ...] = (
    ({"flores_passage", "mc_answer1", "mc_answer4", "correct_answer_num"}, _belebele),
    ({"question", "option_a", "option_b", "answer"}, _lettered),
    ({"question", "options", "answer"}, _talim),
    ({"question", "choices", "answerKey"}, _arc),
    ({"question", "choices", "answer"}, _own),
    ({"ctx", "endings", "label"}, _hellaswag),
    ({"sentence_eng_Latn", "sentence_tgk_Cyrl"}, _flores),
    ({"text", "category"}, _sib200),
    ({"question", "reference"}, _free),
    ({"question", "answer"}, _gsm8k),
    ({"messages"}, _messages),
)
