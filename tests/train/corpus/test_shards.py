"""Shards give back what was written, and a corpus that is broken says so in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from soroq.core.errors import CalibrationError
from soroq.train.corpus.shards import CARD, FORMAT, ShardWriter, read_corpus

documents = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=20
)


def _write(folder: Path, texts: list[list[int]], limit: int) -> dict[str, Any]:
    writer = ShardWriter(folder, "train", "tg", limit)
    for tokens in texts:
        writer.add(tokens)
    card = {
        "format": FORMAT,
        "tokenizer_sha256": "0" * 64,
        "vocab_size": 2**31,
        "bos": 2,
        "splits": {"train": {"tg": writer.finish()}, "valid": {}},
    }
    (folder / CARD).write_text(json.dumps(card))
    return card


@given(texts=documents, limit=st.integers(1, 30))
def test_documents_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    card = _write(folder, texts, limit)
    corpus = read_corpus(folder)
    found = corpus.documents("train", "tg")
    assert [found[i].tolist() for i in range(len(found))] == texts
    assert corpus.tokens("train", "tg") == sum(map(len, texts))
    assert corpus.languages("train") == ["tg"] and corpus.languages("valid") == []
    shards = card["splits"]["train"]["tg"]["shards"]
    assert all(shard["tokens"] <= limit or shard["documents"] == 1 for shard in shards)
    with pytest.raises(IndexError):
        found[len(texts)]


def test_a_document_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without tokens"):
        ShardWriter(tmp_path, "train", "tg").add([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "soroq-corpus-9"}, "format 'soroq-corpus-9', this soroq reads"),
        ({"splits": 3}, "is no corpus"),
        ({"splits": {"train": {"tg": {}}}}, "is no corpus"),
        ({"tokenizer_sha256": None, "format": None}, "is no corpus"),
    ],
)
def test_a_card_that_is_none_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    card = _write(tmp_path, [[2, 5]], 99)
    (tmp_path / CARD).write_text(json.dumps(card | change))
    with pytest.raises(CalibrationError, match=message):
        read_corpus(tmp_path)


def test_a_folder_without_a_card_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="make one with: soroq train corpus"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": torch.tensor([1, 3])}, "not the beginnings"),
        ({"starts": torch.tensor([0, 3, 3])}, "not the beginnings"),
        ({"starts": torch.tensor([0, 9])}, "not the beginnings"),
        ({"tokens": torch.tensor([2, 5, 2, 7])}, "tokens are torch.int64"),
        ({"starts": torch.tensor([0])}, "has 1 documents, its card says 2"),
    ],
    ids=["first", "empty", "beyond", "dtype", "count"],
)
def test_a_shard_that_is_not_what_it_says_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor], message: str
) -> None:
    _write(tmp_path, [[2, 5], [2, 7]], 99)
    path = tmp_path / "train-tg-00000.safetensors"
    save_file({n: t.clone() for n, t in load_file(path).items()} | changes, path)
    with pytest.raises(CalibrationError, match=message):
        read_corpus(tmp_path).documents("train", "tg")


def test_a_missing_shard_and_a_missing_language_are_named(tmp_path: Path) -> None:
    _write(tmp_path, [[2, 5], [2, 7]], 99)
    corpus = read_corpus(tmp_path)
    with pytest.raises(CalibrationError, match="no train text in 'en'; there is tg"):
        corpus.documents("train", "en")
    (tmp_path / "train-tg-00000.safetensors").unlink()
    with pytest.raises(CalibrationError, match="train-tg-00000.safetensors is missing"):
        corpus.documents("train", "tg")
