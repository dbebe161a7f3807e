"""The data card: all documents and tokens are in it, and many sources of one collection one row."""

from typing import Any

import pytest

from soroq.train.corpus.card import MOST_ROWS, data_card


def _source(name: str, tokens: int) -> dict[str, Any]:
    return {
        "source": name,
        "license": "CC0-1.0",
        "language": "tg",
        "documents": 2,
        "characters": 3 * tokens,
        "tokens": tokens,
        "dropped": {"too short": 1},
        "masked": {},
    }


def _card(names: list[str]) -> str:
    return data_card(
        {
            "splits": {},
            "sources": [_source(name, 10 + n) for n, name in enumerate(names)],
            "benchmarks": [],
            "tokenizer_sha256": "0" * 64,
            "vocab_size": 9,
        }
    )


def _rows(card: str) -> list[list[str]]:
    table = card.partition("| source |")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


@pytest.mark.parametrize("few", [1, MOST_ROWS], ids=["one", "as-many-as-fit"])
def test_few_sources_have_a_row_each(few: int) -> None:
    names = [f"strings/{n}.po" for n in range(few)]
    assert [row[0] for row in _rows(_card(names))] == names


def test_many_sources_are_counted_by_collection() -> None:
    names = [f"strings/{n}.po" for n in range(MOST_ROWS)] + ["news"]
    strings, news = _rows(_card(names))
    assert strings[0] == f"strings ({MOST_ROWS} sources)" and news[0] == "news"
    tokens = sum(range(10, 10 + MOST_ROWS))
    assert strings[3:] == [str(n) for n in (2 * MOST_ROWS, 3 * tokens, tokens, MOST_ROWS)]
    assert news[3:] == ["2", str(3 * (10 + MOST_ROWS)), str(10 + MOST_ROWS), "1"]
