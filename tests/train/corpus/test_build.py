"""soroq train corpus: what is kept, dropped, masked and split; the same bytes after a kill."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soroq import cli
from soroq.core.errors import CalibrationError
from soroq.models.tiny import write_tiny_model
from soroq.train.corpus import sources
from soroq.train.corpus.build import Request, build
from soroq.train.corpus.decontaminate import Benchmarks
from soroq.train.corpus.dedup import Seen
from soroq.train.corpus.quality import objection
from soroq.train.corpus.shards import read_corpus
from soroq.train.corpus.sources import find_files, read_file, read_html, read_pdf
from soroq.train.corpus.tokens import write_shards

WORDS = (
    "ва дар ки аз ба барои мактаб китоб хонандагон рӯз шаҳр кӯҳ об ҷавон қалам ин он аст мо "
    "шумо ҳар як низ агар кард омӯзгор дарс забони тоҷикӣ хона боғ дарахт мева деҳа роҳ"
).split()

RUSSIAN = (
    "Школа и книга для детей в городе: это было так, как если бы они жили там всегда. Мы не знали, "
    "что он уже приехал и что все его ждут, но она сказала нам об этом вечером, когда мы вышли."
)
PROGRAM = "from soroq.cli import main; main()"


def passage(seed: int, length: int = 60) -> str:
    """Return words that no two seeds have in the same order."""
    state, found = seed * 7919 + 13, []
    for _ in range(length):
        state = (state * 1103515245 + 12345) % 2**31
        found.append(WORDS[state // 65536 % len(WORDS)])
    return " ".join(found) + "."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from soroq.loading import load_tokenizer

    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("corpus") / "model"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def reasons(out: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (out / "dropped.jsonl").open()]


def test_good_text_is_kept_and_the_rest_is_told(tmp_path: Path, tokenizer: Any) -> None:
    item = passage(900, 40)
    rows = [
        *({"text": passage(i), "source": "school", "license": "CC0"} for i in range(30)),
        {"text": passage(3) + " охир"},  # nearly the fourth
        {"text": RUSSIAN},
        {"text": "кӯтоҳ"},
        {"text": "1 2 3 4 5 6 7 8 9 10 " * 10},
        {"text": f"Матни дароз {item} ва анҷом. " + passage(901)},
    ]
    path = write(tmp_path / "tg.jsonl", rows)
    bench = write(tmp_path / "bench.jsonl", [{"question": item, "choices": ["ҳа", "не"]}])
    out = tmp_path / "out"
    request = Request((("tg", path),), (bench,), valid_share=0.2, license="unknown")
    build(request, out, tokenizer)
    assert sorted(reasons(out)) == [
        "benchmark", "few letters", "language: ru", "near-duplicate", "too short",
    ]  # fmt: skip
    corpus = read_corpus(out)
    train, valid = (corpus.documents(split, "tg") for split in ("train", "valid"))
    assert len(train) + len(valid) == 30 and len(valid) > 0
    texts = {tokenizer.decode(train[i][1:]) for i in range(len(train))}
    assert all(int(train[i][0]) == tokenizer.bos_token_id for i in range(len(train)))
    assert len(texts) == len(train)
    school = next(s for s in corpus.card["sources"] if s["source"] == "school")
    assert school["documents"] == 30 and school["license"] == "CC0"
    split_tokens = sum(e["tg"]["tokens"] for e in corpus.card["splits"].values())
    assert school["tokens"] == split_tokens
    card = (out / "DATA_CARD.md").read_text()
    assert "| CC0 | tg | 30 |" in card and "near-duplicate: 1" in card and "bench.jsonl" in card


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("trafilatura")
    import pyarrow.parquet as parquet

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(passage(1))
    with gzip.open(folder / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": passage(2), "source": "s"}))
    table = pyarrow.table({"text": [passage(3)], "license": ["CC-BY"]})
    parquet.write_table(table, folder / "c.parquet")
    body = "".join(f"<p>{passage(i)}</p>" for i in (4, 5, 6))
    (folder / "d.html").write_text(
        f"<html><body><nav>Меню</nav><article><h1>Дарс</h1>{body}</article></body></html>"
    )
    (folder / "e.png").write_bytes(b"no text")
    found = [raw for file in find_files(folder) for raw in read_file(file, "tg", "told")]
    assert [raw.text for raw in found[:3]] == [passage(1), passage(2), passage(3)]
    assert [raw.license for raw in found] == ["told", "told", "CC-BY", "told"]
    assert found[1].source == "s" and found[1].where == "b.jsonl.gz:1"
    assert passage(5) in found[3].text and "Меню" not in found[3].text
    assert read_html("<html></html>") == ""


def pdf_of(*pages: str) -> bytes:
    """Return a PDF of a page for each text, in Latin letters; '' is a page without text."""
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(600, 800)
        stream = DecodedStreamObject()
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.split("\n"))
        stream.set_data(f"BT /F 12 Tf 20 700 Td {lines}ET".encode("latin-1"))
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        named = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
        fonts = DictionaryObject({NameObject("/F"): writer._add_object(named)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        page[NameObject("/Contents")] = writer._add_object(stream)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


PAGE = "The rivers of the coun-\ntry are long and cold,\nand they are many.\nThey come from ice."


def test_a_pdf_is_its_good_pages_and_the_others_say_why(tmp_path: Path) -> None:
    cid = "(cid:12)".replace("(", "\\(").replace(")", "\\)") * 20 + " some letters of a page" * 3
    (tmp_path / "a.pdf").write_bytes(pdf_of(PAGE, "", cid))
    text, scan, font = read_file(tmp_path / "a.pdf", "en", "told")
    assert text.text == (
        "The rivers of the country are long and cold, and they are many.\nThey come from ice."
    )
    assert not text.dropped and text.where == "a.pdf"
    assert (scan.where, scan.dropped) == ("a.pdf, page 2", "PDF page without text")
    assert (font.where, font.dropped) == ("a.pdf, page 3", "PDF page in a broken font")


@pytest.mark.parametrize("data", [b"%PDF-1.7 nothing", b""], ids=["damaged", "empty"])
def test_an_unreadable_pdf_is_dropped(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("pypdf")
    path = tmp_path / "bad.pdf"
    path.write_bytes(data)
    assert [raw.dropped for raw in read_file(path, "tg", "")] == ["unreadable PDF"]
    with pytest.raises(CalibrationError, match="unreadable PDF"):
        read_pdf(path)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_pdf_is_text_or_dropped(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(pdf_of(PAGE))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = tmp_path / "damaged.pdf"
    path.write_bytes(whole)
    for raw in read_file(path, "en", ""):
        assert raw.dropped or raw.text


def test_a_long_text_file_is_cut_at_empty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST", 20)
    path = tmp_path / "a.txt"
    whole = "мактаб ва китоб\nхона\n\nшаҳр\n\n" + "д" * 55 + "\nохир"
    path.write_text(whole)
    found = list(read_file(path, "tg", ""))
    assert "".join(raw.text for raw in found) == whole
    assert found[0].text == "мактаб ва китоб\nхона\n\n"
    assert all(len(raw.text) < 60 for raw in found)
    assert [raw.where for raw in found][:2] == ["a.txt", "a.txt, part 2"]


def test_quality_names_its_reason() -> None:
    good = passage(1)
    assert objection(good, "tg") == ""
    assert objection(good, "ru") == "language: tg"
    assert objection("\n".join([good] * 6), "tg") in ("repeated lines", "repeated passages")
    assert (
        objection(" ".join(["мактаб китоб хонандагон рӯз шаҳр"] * 20), "tg") == "repeated passages"
    )
    assert objection("а б в г д е ж з и к " * 4, "tg") == "words too short or too long"
    assert objection(" ".join(f"{w} 12" for w in WORDS), "tg") == "many digits"


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen.sqlite", 0)
    texts = [passage(i, 200) for i in range(50)]
    assert [seen.add(text, number) for number, text in enumerate(texts)] == [None] * 50
    changed = texts[7].split()
    changed[100] = "дигар"
    assert seen.add(" ".join(changed), 50) == 7
    seen.close()
    again = Seen(tmp_path / "seen.sqlite", 8)  # a build that goes on at document 8
    assert again.add(texts[7], 8) == 7
    assert again.add(texts[30], 8) is None
    again.close()


def test_benchmarks_are_found_by_runs_of_words(tmp_path: Path) -> None:
    long, short = passage(1, 30), "Пойтахти Тоҷикистон кадом шаҳр аст имрӯз"
    path = write(tmp_path / "b.jsonl", [{"q": long, "a": {"b": [short, "не"]}}])
    found = Benchmarks([path])
    middle = " ".join(long.split()[8:22])
    hit = found.find(f"Инҷо {middle.upper()} ва ғайра")
    assert hit is not None and hit[0] == "b.jsonl:1"
    assert found.find(f"Савол: {short}?") is not None
    assert found.find(" ".join(long.split()[8:20])) is None  # twelve words
    assert found.find("не") is None
    item = " ".join(["забони тоҷикӣ дар рӯзи нав"] * 3)
    raw = item.replace("ӣ", "и\u0304").replace("о", "o")  # a macron of its own, a Latin o
    unclean = Benchmarks([write(tmp_path / "c.jsonl", [{"q": raw}])])
    assert unclean.find(item) is not None
    with pytest.raises(CalibrationError, match="b2.jsonl:1: not JSON"):
        (tmp_path / "b2.jsonl").write_text("{")
        Benchmarks([tmp_path / "b2.jsonl"])


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": passage(i, 40), "source": f"s{i % 3}"} for i in range(1200)]
    path = write(tmp_path / "tg.jsonl", rows + rows[:40])
    model = tokenizer.name_or_path
    command = [sys.executable, "-c", PROGRAM, "train", "corpus", "--model", model]
    command += ["--text", f"tg={path}", "--valid-share", "0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    state = tmp_path / "killed.partial" / "state.json"
    run = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    until = time.monotonic() + 60
    while time.monotonic() < until and run.poll() is None and not state.exists():
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert state.exists() and not (tmp_path / "killed").exists()
    subprocess.run([*command, "--resume", str(tmp_path / "killed")], check=True, env=environment)
    whole, killed = (sorted((tmp_path / name).iterdir()) for name in ("whole", "killed"))
    assert [p.name for p in whole] == [p.name for p in killed]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(whole, killed, strict=True))
    assert not (tmp_path / "killed.partial").exists()
    assert reasons(tmp_path / "whole").count("near-duplicate") >= 40


def test_tokenizing_goes_on_behind_the_last_shard(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": passage(i, 30), "source": f"s{i % 3}"} for i in range(60)]
    files = {
        ("train", "tg"): write(tmp_path / "tg.jsonl", rows),
        ("train", "ru"): write(tmp_path / "ru.jsonl", [{"text": RUSSIAN, "source": "r"}]),
        ("valid", "tg"): write(tmp_path / "valid.jsonl", []),
    }
    calls = 0

    class Killed(Exception):
        pass

    class Stops:
        """The tokenizer, which is killed at its 41st text."""

        bos_token_id = tokenizer.bos_token_id
        get_vocab = tokenizer.get_vocab

        def __call__(self, text: str, **how: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 41:
                raise Killed
            return tokenizer(text, **how)

    whole = write_shards(tmp_path / "whole", files, tokenizer, shard_tokens=900)
    assert list(whole[0]["train"]) == ["tg", "ru"] and whole[0]["valid"] == {}
    assert len(whole[0]["train"]["tg"]["shards"]) > 4
    assert whole[1]["r"] == whole[0]["train"]["ru"]["tokens"]
    assert sum(whole[1].values()) == sum(e["tokens"] for e in whole[0]["train"].values())
    with pytest.raises(Killed):
        write_shards(tmp_path / "killed", files, Stops(), shard_tokens=900)
    before = len(list((tmp_path / "killed").glob("*.safetensors")))
    assert write_shards(tmp_path / "killed", files, Stops(), shard_tokens=900) == whole
    assert before >= 2 and calls < 41 + 61 - 20  # what the first run wrote was not tokenized again
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_bad_input_is_one_line(
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "ru.jsonl", [{"text": f"{RUSSIAN} {i}"} for i in range(5)])
    with pytest.raises(CalibrationError, match="no tg text is left"):
        build(Request((("tg", path),)), tmp_path / "a", tokenizer)
    with pytest.raises(CalibrationError, match="--resume, or delete"):
        build(Request((("tg", path),)), tmp_path / "a", tokenizer)
    with pytest.raises(CalibrationError, match="begun with other seed"):
        build(Request((("tg", path),), seed=1), tmp_path / "a", tokenizer, resume=True)
    with pytest.raises(CalibrationError, match="does not exist"):
        build(Request((("tg", tmp_path / "no"),)), tmp_path / "b", tokenizer)
    (tmp_path / "x.jsonl").write_text('{"text": 3}')
    with pytest.raises(CalibrationError, match="x.jsonl:1: neither 'text' nor 'html'"):
        build(Request((("tg", tmp_path / "x.jsonl"),)), tmp_path / "c", tokenizer)
    with pytest.raises(CalibrationError, match="text in 'de' can't be told from others; known: tg"):
        build(Request((("de", path),)), tmp_path / "e", tokenizer)
    assert not (tmp_path / "e.partial").exists()
    words = ["soroq", "train", "corpus", str(tmp_path / "d"), "--model", tokenizer.name_or_path]
    monkeypatch.setattr("sys.argv", [*words, "--text", "tajik.txt"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "give LANGUAGE=PATH" in capsys.readouterr().err


def test_the_tokenizer_report_counts(
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "tg.jsonl", [{"text": passage(1)}, {"text": passage(2)}])
    words = ["soroq", "train", "tokenizer", "--model", tokenizer.name_or_path]
    words += ["--text", f"tg={path}"]
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    made = json.loads(capsys.readouterr().out)["tg"]
    texts = [passage(1), passage(2)]
    assert made["words"] == 120 and made["bytes"] == sum(len(t.encode()) for t in texts)
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert made["tokens"] == sum(map(len, ids))
    monkeypatch.setattr("sys.argv", [*words, "--text", f"en={path}"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "a word of tg takes 1.00 times the tokens of en's" in " ".join(
        capsys.readouterr().out.split()
    )


def test_translations_are_compared_whole(
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twice as many words of the same cost for one content: a word alone would say 1.00."""
    once, twice = tmp_path / "en.txt", tmp_path / "tg.txt"
    once.write_text("дар боғ\nдар роҳ\n")
    twice.write_text("дар боғ дар боғ\nдар роҳ дар роҳ\n")
    words = ["soroq", "train", "tokenizer", "--model", tokenizer.name_or_path, "--parallel"]

    def run(*texts: str) -> Any:
        monkeypatch.setattr("sys.argv", [*words, *texts])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code

    assert not run("--text", f"tg={twice}", "--text", f"en={once}")
    said = " ".join(capsys.readouterr().out.split())
    count = [len(tokenizer(p.read_text(), add_special_tokens=False)["input_ids"])
             for p in (twice, once)]  # fmt: skip
    assert f"what is said in tg takes {count[0] / count[1]:.2f} times the tokens of en's" in said
    once.write_text("дар боғ\n")
    assert run("--text", f"tg={twice}", "--text", f"en={once}") == 2
    assert "have tg 2, en 1 lines" in capsys.readouterr().err
