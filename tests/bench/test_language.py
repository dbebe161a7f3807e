"""The measure of the language check: halves, alphabets, passages, rates."""

from collections import Counter
from pathlib import Path

import pytest

from soroq.bench.language import (
    half_of,
    measure,
    passages,
    rates,
    read_ntrex,
    read_udhr,
    uzbek_in_cyrillic,
)
from soroq.core.errors import CheckError


def test_uzbek_is_written_in_cyrillic() -> None:
    latin = "Barcha odamlar erkin, qadr-qimmat va huquqlarda teng boʻlib tugʻiladilar. Yoʻl, eʼlon"
    cyrillic = "барча одамлар эркин, қадр-қиммат ва ҳуқуқларда тенг бўлиб туғиладилар. йўл, эълон"
    assert uzbek_in_cyrillic(latin) == cyrillic


def test_passages_keep_every_word_but_a_short_rest() -> None:
    assert list(passages("a b\nc  d e", 2)) == ["a b", "c d", "e"]
    assert list(passages("a b c d e f g", 3)) == ["a b c", "d e f"]


def test_precision_counts_each_language_alike() -> None:
    found = {"ru": Counter({"ru": 90, "ky": 10}), "ky": Counter({"ky": 1, "ru": 1})}
    made = rates(found)
    assert made["ru"] == pytest.approx((0.9, 0.9 / 1.4))
    assert made["ky"] == pytest.approx((0.5, 0.5 / 0.6))
    assert rates({"kk": Counter({"ru": 3})}) == {"kk": (0.0, None)}


def test_passages_are_called_by_the_check() -> None:
    russian = "Мы не знали, что он уже приехал и что все его ждут, но она сказала об этом."
    assert measure({"ru": [russian]}, 8) == {"ru": Counter({"ru": 2})}


def test_ntrex_is_read_by_document_and_lines_must_fit(tmp_path: Path) -> None:
    (tmp_path / "NTREX-128").mkdir()
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("a\na\nb\n")
    file = tmp_path / "NTREX-128" / "newstest2019-ref.rus.txt"
    file.write_text("один\nдва\nтри\n")
    assert read_ntrex(tmp_path, "ru") == {"a": "один\nдва", "b": "три"}
    file.write_text("один\n")
    with pytest.raises(CheckError, match="has 1 lines, DOCUMENT_IDS.tsv 3"):
        read_ntrex(tmp_path, "ru")


def test_both_halves_hold_about_half_of_the_documents() -> None:
    halves = Counter(half_of(f"news.{number}") for number in range(400))
    assert set(halves) == {"tune", "held-out"} and min(halves.values()) > 150


def test_a_declaration_gives_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "udhr.xml"
    path.write_text(
        '<udhr xmlns="http://www.unhchr.ch/udhr"><title>T</title><article><para>Один <b>два</b>'
        "</para><para>три</para></article></udhr>"
    )
    assert read_udhr(path) == "Один два\nтри"
