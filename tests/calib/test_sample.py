"""Calibration sets: shares, language filter, duplicates, the seed, files and their errors."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.calib.dataset import CalibrationSet, load_calibration
from soroq.calib.sample import build_calibration, filter_documents, share_windows, take_turns
from soroq.calib.sources import Document, builtin_documents, read_documents
from soroq.core.errors import CalibrationError

WORDS = {
    "tg": "ва дар ки аз ба бо ин он аст барои мактаб китоб хонандагон рӯз шаҳр кӯҳ об ҷавон қалам",
    "en": "the of and to in a is that for it school book pupils day town mountain water young pen",
}


def _document(text: str, language: str | None = None, kind: str = "text") -> Document:
    return Document(text, (), language, kind, "test", "CC0")


def _documents(language: str, n: int) -> list[Document]:
    generator = random.Random(5)
    words = WORDS[language].split()
    return [_document(" ".join(generator.choices(words, k=14))) for _ in range(n)]


def _encode(document: Document) -> list[int]:
    return list(document.plain.encode())


def _build(**changes: Any) -> CalibrationSet:
    options: dict[str, Any] = {
        "bos": 2,
        "n_samples": 8,
        "seq_len": 64,
        "mix": {"tg": 0.75, "en": 0.25},
        "seed": 0,
        "name": "t",
    } | changes
    documents = {language: _documents(language, 40) for language in ("tg", "en")}
    return build_calibration(documents, _encode, **options)


def test_windows_start_with_bos_and_languages_have_their_share() -> None:
    calibration = _build()
    assert calibration.ids.shape == (8, 64)
    assert (calibration.ids[:, 0] == 2).all()
    assert sorted(calibration.languages) == ["en"] * 2 + ["tg"] * 6


def test_same_seed_same_tokens_other_seed_others() -> None:
    first, again, other = _build(), _build(), _build(seed=1)
    assert torch.equal(first.ids, again.ids)
    assert first.manifest == again.manifest
    assert not torch.equal(first.ids, other.ids)


def test_too_little_text_says_how_much_there_is() -> None:
    with pytest.raises(CalibrationError, match=r"gives \d+ windows of 64 tokens, 750 were asked"):
        _build(n_samples=1000)


def test_text_in_another_language_is_refused() -> None:
    russian = [_document("Это русский текст, который не подходит для таджикской модели, и всё.")]
    with pytest.raises(
        CalibrationError, match=r"no calibration text in 'tg' is left \(language:ru 1\)"
    ):
        build_calibration(
            {"tg": russian},
            _encode,
            bos=2,
            n_samples=1,
            seq_len=16,
            mix={"tg": 1},
            seed=0,
            name="t",
        )


def test_exact_and_near_duplicates_are_dropped() -> None:
    base = "Дар ин ҷо як матни дароз ҳаст, ки бояд танҳо як бор ба маҷмӯа дарояд ва на бештар аз он"
    filtered = filter_documents(
        [_document(base), _document(base + "  "), _document(base + " охир")], "tg"
    )
    assert len(filtered.documents) == 1
    assert filtered.dropped == {"duplicate": 1, "near duplicate": 1}


def test_kinds_take_turns() -> None:
    documents = [_document(str(i), kind="news") for i in range(6)] + [_document("x", kind="law")]
    assert "law" in [d.kind for d in take_turns(documents, 0)[:2]]


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["tg", "en", "ru"]), st.floats(0.01, 5), min_size=1),
    st.integers(1, 300),
)
def test_shares_add_up_and_stay_within_one_of_the_exact_value(
    mix: dict[str, float], n: int
) -> None:
    counts = share_windows(mix, n)
    assert sum(counts.values()) == n
    for language, count in counts.items():
        assert abs(count - mix[language] / sum(mix.values()) * n) < 1


def test_set_survives_its_file_and_a_changed_token_is_noticed(tmp_path: Path) -> None:
    calibration = _build()
    path = tmp_path / "set.calib"
    calibration.save(path)
    again = load_calibration(path)
    assert torch.equal(again.ids, calibration.ids)
    assert again.languages == calibration.languages
    raw = bytearray(path.read_bytes())
    raw[-4] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CalibrationError, match="do not match the manifest"):
        load_calibration(path)


@pytest.mark.parametrize("place", ["missing/t.calib", ""])
def test_a_set_that_can_not_be_written_is_a_calibration_error(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(CalibrationError, match="can't write .*folder"):
        _build().save(folder / place)
    assert list(tmp_path.iterdir()) == [folder]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_calibration_error(raw: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        for name in ("a.calib", "a.jsonl", "a.txt", "a.parquet"):
            path = Path(directory) / name
            path.write_bytes(raw)
            try:
                if name == "a.calib":
                    load_calibration(path)
                else:
                    list(read_documents(path))
            except CalibrationError:
                pass


def test_broken_jsonl_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + '\n{"text": ')
    with pytest.raises(CalibrationError, match=r"a.jsonl:2: not JSON"):
        list(read_documents(path))


@pytest.mark.parametrize("language", ["tg", "en"])
def test_builtin_text_is_in_its_language_and_split_cleanly(language: str) -> None:
    calib = list(builtin_documents(language, "calib"))
    check = list(builtin_documents(language, "check"))
    assert not {d.plain for d in calib} & {d.plain for d in check}
    for documents in (calib, check):
        filtered = filter_documents(documents, language)
        assert len(filtered.documents) == len(documents), filtered.dropped
