"""Conversations out of files, whatever the form: messages, sharegpt, alpaca, prompt and answer.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}
    {"instruction": …, "input": …, "output": …}
    {"prompt": …, "completion": …}            # or question and answer

A row that is none of these is an error that names it: nothing is left out silently.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CalibrationError

SUFFIXES = (".jsonl", ".json", ".parquet")
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Conversation:
    """turns: (role, content), roles user, assistant and a leading system; where: file and line."""

    turns: tuple[tuple[str, str], ...]
    where: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def answers(self) -> str:
        return "\n".join(content for role, content in self.turns if role == "assistant")


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yield a file's conversations. Raises CalibrationError for a file or row that isn't one."""
    for number, row in _rows(path):
        yield as_conversation(row, f"{path}:{number}")


def as_conversation(row: Any, where: str) -> Conversation:
    """Return a row of any known form as a conversation. Raises CalibrationError."""
    if not isinstance(row, Mapping):
        raise CalibrationError(f"{where}: not an object")
    for keys, convert in FORMS:
        if all(row.get(key) is not None for key in keys):
            try:
                turns = convert(row)
            except (KeyError, TypeError, AttributeError) as error:
                raise CalibrationError(
                    f"{where}: {keys[0]} isn't in its known form ({type(error).__name__} {error})"
                ) from error
            return Conversation(_checked(turns, where), where)
    known = "; ".join(" and ".join(keys) for keys, _ in FORMS)
    raise CalibrationError(f"{where}: fields {sorted(map(str, row))} are no conversation ({known})")


def _checked(turns: list[tuple[str, str]], where: str) -> tuple[tuple[str, str], ...]:
    for number, (role, content) in enumerate(turns, 1):
        if role not in ROLES:
            raise CalibrationError(
                f"{where}: turn {number} has role {role!r}; known: {', '.join(ROLES)}"
            )
        if not isinstance(content, str) or not content.strip():
            raise CalibrationError(f"{where}: turn {number} ({role}) has no text")
    known = tuple((ROLES[role], content) for role, content in turns)
    spoken = known[1:] if known and known[0][0] == "system" else known
    wanted = tuple("assistant" if i % 2 else "user" for i in range(len(spoken)))
    if not spoken or tuple(role for role, _ in spoken) != wanted:
        raise CalibrationError(f"{where}: roles must alternate, user first, after a system turn")
    if len(spoken) % 2:
        raise CalibrationError(f"{where}: the last turn is the user's; an answer is needed")
    return known


def _messages(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in row["messages"]]


def _sharegpt(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in row["conversations"]]


def _alpaca(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    more = row.get("input") or ""
    question = f"{row['instruction']}\n\n{more}" if more.strip() else row["instruction"]
    system = [("system", row["system"])] if row.get("system") else []
    return [*system, ("user", question), ("assistant", row["output"])]


def _pair(question: str, answer: str) -> Callable[[Mapping[str, Any]], list[tuple[str, str]]]:
    return lambda row: [("user", row[question]), ("assistant", row[answer])]


FORMS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[tuple[str, str]]]], ...] = (
    (("messages",), _messages),
    (("conversations",), _sharegpt),
    (("instruction", "output"), _alpaca),
    (("prompt", "completion"), _pair("prompt", "completion")),
    (("question", "answer"), _pair("question", "answer")),
)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield a file's rows with their numbers, from 1."""
    if not path.is_file():
        raise CalibrationError(f"conversations {str(path)!r} do not exist")
    if path.suffix not in SUFFIXES:
        raise CalibrationError(f"{path}: unknown kind of file; use {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        try:
            rows = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise CalibrationError(f"{path}: unreadable parquet: {error}") from error
        yield from enumerate(rows, 1)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} is not readable as UTF-8: {error}") from error
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{path}: not JSON: {error}") from error
        if not isinstance(rows, list):
            raise CalibrationError(f"{path}: not a list of conversations")
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CalibrationError(f"{path}:{number}: not JSON: {error}") from error
            yield number, row
