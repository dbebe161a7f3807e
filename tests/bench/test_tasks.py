"""Items as published sets have them, choices scored against plain runs, free answers, bad rows."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.sets import read_passages
from soroq.bench.quality.tasks import free
from soroq.bench.quality.tasks.choices import PART, ChoiceScores, score_choices
from soroq.bench.quality.tasks.free import (
    chrf,
    foreign,
    health,
    mean_health,
    repetition,
    score_answer,
    score_free,
)
from soroq.bench.quality.tasks.items import Item, answer_index, read_items
from soroq.bench.quality.tasks.prompts import encode_choices, split_shots, write_context
from soroq.calib.sources import builtin_documents
from soroq.core.errors import CheckError
from soroq.loading import load, load_tokenizer
from soroq.models.tiny import write_tiny_model

ROWS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {  # row → (choices, answer)
    "own": ({"question": "с?", "choices": ["а", "б", "в"], "answer": 2}, (3, 2)),
    "own-letter": ({"question": "с?", "choices": ["а", "б", "в"], "answer": "B"}, (3, 1)),
    "tajlib": (
        {"question": "с", "option_a": "1", "option_b": "2", "option_c": "3", "option_d": "4"}
        | {"answer": "C"},
        (4, 2),
    ),
    "tajlib-cyrillic": (
        {"question": "с", "option_a": "x", "option_b": "y", "option_c": "z", "option_d": "w"}
        | {"answer": "Г"},
        (4, 3),
    ),
    "talim": (
        {"number": 7, "question": "с", "options": '{"A": "х", "B": "у"}', "type": "mcq"}
        | {"topic": "t", "section": "s", "answer": "B", "subject": "math"},
        (2, 1),
    ),
    "talim-list": ({"question": "с", "options": ["х", "у", "з"], "answer": "з"}, (3, 2)),
    "belebele": (
        {"link": "l", "question_number": 1, "flores_passage": "матн", "question": "с"}
        | {"mc_answer1": "1", "mc_answer2": "2", "mc_answer3": "3", "mc_answer4": "4"}
        | {"correct_answer_num": "4"},
        (4, 3),
    ),
    "sib200": ({"index_id": 1, "category": "travel", "text": "Мо ба кӯҳ рафтем."}, (7, 1)),
    "mmlu": ({"question": "q", "subject": "s", "choices": ["a", "b"], "answer": 0}, (2, 0)),
    "arc": (
        {"id": "x", "question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}}
        | {"answerKey": "2"},
        (2, 1),
    ),
    "hellaswag": ({"ctx": "He", "endings": ["a", "b", "c", "d"], "label": "3"}, (4, 3)),
}


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


@pytest.mark.parametrize("name", sorted(ROWS))
def test_published_fields_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    row, (n, answer) = ROWS[name]
    (item,) = read_items(_write(tmp_path / "x.jsonl", [row]))
    assert (len(item.choices), item.answer) == (n, answer)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    (same,) = read_items(tmp_path / "x.parquet")
    assert (same.choices, same.answer) == (item.choices, item.answer)


def test_free_answers_are_read_with_their_metric(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "2+2?", "answer": "Two and two.\n#### 4"},
        {"sentence_eng_Latn": "Hello", "sentence_tgk_Cyrl": "Салом"},
        {"number": 1, "question": "с", "options": "", "type": "free", "answer": "Рӯдакӣ"},
        {"question": "с", "reference": ["а", "б"], "metric": "chrf"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ]
    items = read_items(_write(tmp_path / "x.jsonl", rows))
    assert [i.metric for i in items] == ["number", "chrf", "exact", "chrf", "chrf"]
    assert [i.references[0] for i in items] == ["4", "Салом", "Рӯдакӣ", "а", "y"]


def test_questions_with_answers_are_numbers_only_where_the_answer_is_one(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": a} for a in ("a\n#### 1,200", "$12.50", "Рӯдакӣ", 7)]
    items = read_items(_write(tmp_path / "x.jsonl", rows))
    got = [(i.metric, i.references[0]) for i in items]
    assert got == [("number", "1,200"), ("number", "12.50"), ("exact", "Рӯдакӣ"), ("number", "7")]
    _write(tmp_path / "x.jsonl", [*rows, {"question": "q", "answer": "#### many"}])
    with pytest.raises(CheckError, match=r"x.jsonl:5: answer 'many' behind #### is no number"):
        read_items(tmp_path / "x.jsonl")


def test_flores_is_read_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "eng_Latn.devtest").write_text("Hello\nBread\n")
    (tmp_path / "tgk_Cyrl.devtest").write_text("Салом\nНон\n")
    (tmp_path / "rus_Cyrl.devtest").write_text("Привет\nХлеб\n")
    items = read_items(tmp_path)
    assert [(i.question, i.references, i.metric) for i in items] == [
        ("English: Hello\nТоҷикӣ:", ("Салом",), "chrf"),
        ("English: Bread\nТоҷикӣ:", ("Нон",), "chrf"),
    ]
    (tmp_path / "tgk_Cyrl.devtest").write_text("Салом\n")
    with pytest.raises(CheckError, match="has 2 lines, tgk_Cyrl.devtest 1"):
        read_items(tmp_path)
    (tmp_path / "tgk_Cyrl.devtest").unlink()
    with pytest.raises(CheckError, match="without one eng_Latn"):
        read_items(tmp_path)


def test_an_answer_behind_examples_ends_where_the_next_question_begins(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = " 42\n\nЧанд?\nҶавоб: 7"
    monkeypatch.setattr(free, "generate", lambda model, prompt, n: written)
    item = Item("x", "Чанд?", references=("42",), metric="number")
    scorer = Scorer(str(base), cache=tmp_path)
    assert score_free(scorer, [item]) == [0.0]  # alone, the last number is the answer
    assert score_free(scorer, [item], examples=[item]) == [1.0]


def test_csv_and_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index_id\tcategory\ttext\n1\ttravel\tA trip.\n")
    assert read_items(tmp_path / "x.tsv")[0].answer == 1
    (tmp_path / "x.json").write_text(json.dumps([ROWS["own"][0]]))
    assert read_items(tmp_path / "x.json")[0].answer == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "с", "choices": ["а", "б"], "answer": 2}', "answer 2 is not one of"),
        ('{"question": "с", "choices": ["а", "б"], "answer": "Я"}', "names no choice"),
        ('{"question": "с", "choices": ["а"], "answer": 0}', "at least 2"),
        ('{"question": " ", "choices": ["а", "б"], "answer": 0}', "question is empty"),
        ('{"question": "с", "choices": ["а", ""], "answer": 0}', "empty choice"),
        ('{"q": 1}', "of no known set"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"text": "x", "category": "cooking"}', "x.jsonl:2"),
        ('{"question": "q", "choices": {"text": ["a"]}, "answerKey": "A"}', "label"),
    ],
)
def test_malformed_rows_name_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    good = json.dumps(ROWS["own"][0])
    (tmp_path / "x.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(CheckError, match=said) as error:
        read_items(tmp_path / "x.jsonl")
    assert "x.jsonl:2" in str(error.value)


def _mutated(draw: st.DrawFn, value: Any) -> Any:
    """Return a row with a field dropped, doubled, or replaced by something of another kind."""
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=6),
        st.lists(st.text(max_size=3), max_size=3), st.dictionaries(st.text(max_size=3), st.none()),
    )  # fmt: skip
    changed = dict(value)
    for name in draw(st.lists(st.sampled_from(sorted(changed)), max_size=3)):
        if draw(st.booleans()):
            changed[name] = draw(odd)
        else:
            changed.pop(name, None)
    return changed


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_row_it_is_an_item_or_a_clear_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ROWS)))
    row = _mutated(data.draw, ROWS[name][0])
    suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]))
    text = json.dumps(row) if suffix == ".jsonl" else json.dumps([row])
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        text = mark.join(row) + "\n" + mark.join(str(v) for v in row.values())
    raw = text.encode()
    if data.draw(st.booleans()):  # a cut, and bytes that don't belong
        place = data.draw(st.integers(0, len(raw)))
        raw = raw[:place] + data.draw(st.binary(max_size=4)) + raw[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"x{suffix}"
        file.write_bytes(raw)
        try:
            items = read_items(file)
        except CheckError as error:
            assert "\n" not in str(error)
            return
    for item in items:
        assert item.choices or item.references
        assert all(isinstance(choice, str) and choice for choice in item.choices)
        assert not item.choices or 0 <= item.answer < len(item.choices)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_items_or_a_clear_error(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
            file = Path(folder) / f"x{suffix}"
            file.write_bytes(raw)
            with contextlib.suppress(CheckError):
                read_items(file)
        (Path(folder) / "t.jsonl").write_bytes(raw)
        with contextlib.suppress(CheckError):
            read_passages(Path(folder) / "t.jsonl")


def test_nested_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(CheckError, match="not JSON"):
        read_items(tmp_path / "x.json")
    for choices in ('"абв"', "[1, null]", '[["а"], "б"]'):
        row = f'{{"question": "с", "choices": {choices}, "answer": 0}}'
        (tmp_path / "x.jsonl").write_text(row)
        with pytest.raises(CheckError, match="`choices`"):
            read_items(tmp_path / "x.jsonl")


def test_empty_and_unknown_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    (tmp_path / "x.doc").write_text("")
    for name, said in (("x.jsonl", "no items"), ("x.doc", "unknown kind"), ("no.jsonl", "exist")):
        with pytest.raises(CheckError, match=said):
            read_items(tmp_path / name)


def test_answers_are_indices_letters_or_texts() -> None:
    choices = ("ҳа", "не", "шояд")
    for answer, index in ((1, 1), ("1", 1), ("B", 1), ("b)", 1), ("Б", 1), ("не", 1), ("(C)", 2)):
        assert answer_index(answer, choices) == index
    for bad in (None, True, "Ҳеҷ", "", "AB"):
        with pytest.raises(ValueError, match="names no choice"):
            answer_index(bad, choices)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "base")


def _items(n: int = 5) -> list[Item]:
    choices = ("як", "дувоздаҳ", "се")
    return [Item(str(i), f"Чанд {'?' * (i + 1)}", choices, i % 3) for i in range(n)]


@pytest.mark.parametrize("mode", ["text", "letter"])
@pytest.mark.parametrize("shots", [0, 2])
def test_scores_are_those_of_running_each_choice_whole(
    mode: str, shots: int, base: Path, tmp_path: Path
) -> None:
    examples, items = split_shots(_items(), shots, seed=3)
    assert len(items) == 5 - shots
    got = score_choices(Scorer(str(base), cache=tmp_path), items, examples=examples, mode=mode)
    model, tokenizer = load(base, dtype=torch.float64), load_tokenizer(base)
    for item, scores in zip(items, got, strict=True):
        context = write_context(item, examples, letters=mode == "letter")
        for index, choice in enumerate(item.choices):
            answer = "ABC"[index] if mode == "letter" else choice
            start = tokenizer(context).input_ids
            ids = torch.tensor([tokenizer(f"{context} {answer}").input_ids])
            with torch.no_grad():
                log_p = model(ids).logits.log_softmax(-1)[0, :-1]
            want = log_p.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum()
            assert scores.log_likelihood[index] == pytest.approx(float(want), rel=1e-4)
            assert scores.lengths[index] == len(answer)


def test_cached_scores_are_read_back(base: Path, tmp_path: Path) -> None:
    items = _items(PART + 3)
    scorer = Scorer(str(base), cache=tmp_path)
    first = score_choices(scorer, items)
    cold = Scorer(str(base), cache=tmp_path)
    assert score_choices(cold, items) == first
    assert cold._model is None


def test_right_answers_raw_and_by_length() -> None:
    scores = ChoiceScores("x", 1, (-4.0, -6.0), (2, 12))
    assert not scores.right
    assert scores.right_normalized


def test_context_and_answer_are_cut_where_the_context_ends(base: Path) -> None:
    prompt = encode_choices("Чанд?", ["се"], load_tokenizer(base))
    assert prompt.context[0] == 2
    assert load_tokenizer(base).decode(prompt.continuations[0]) == " се"


def test_prompts_show_examples_letters_and_leads() -> None:
    a, b = Item("a", "Як?", ("х", "у"), 1), Item("b", "Ду?", ("з", "в"), 0, passage="Матн.")
    assert write_context(b, [a]) == "Як?\nҶавоб: у\n\nМатн.\nДу?\nҶавоб:"
    assert write_context(a, letters=True) == "Як?\nA. х\nB. у\nҶавоб:"
    assert write_context(Item("c", "He", ("a", "b"), 0, lead=True)) == "He"


def test_chrf_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = [
        ("Ман ба мактаб меравам", "Ман ба мактаб рафтам"),
        ("салом", "салом"),
        ("", "салом"),
        ("the cat", "a cat sat on the mat"),
    ]
    for hypothesis, reference in pairs:
        want = sacrebleu.sentence_chrf(hypothesis, [reference]).score / 100
        assert chrf(hypothesis, reference) == pytest.approx(want, abs=1e-4)


def test_chrf_by_hand() -> None:
    assert chrf("салом", "салом") == pytest.approx(1.0)
    assert chrf("", "салом") == 0.0
    # "ab" against "ac": 1-grams 1/2 and 1/2, 2-grams 0 and 0: P = R = 1/4
    assert chrf("ab", "ac") == pytest.approx(0.25)


def test_exact_and_number_answers_are_compared_without_dressing() -> None:
    exact = Item("x", "q", references=("Рӯдакӣ",), metric="exact")
    assert score_answer(" «рӯдакӣ».\nва боз", exact) == 1.0
    assert score_answer("Ҳофиз", exact) == 0.0
    number = Item("x", "q", references=("1200",), metric="number")
    assert score_answer("It is 1,200.", number) == 1.0
    assert score_answer("12 + 8 = 20\n1200", number) == 1.0
    assert score_answer("Ҳамагӣ 1 200 сомонӣ", number) == 1.0
    assert score_answer("#### 1200\n\nQuestion: what is 5 + 5?", number) == 1.0
    assert score_answer("12\n00", number) == 0.0
    half = Item("x", "q", references=("12,5",), metric="number")
    assert score_answer("12.5", half) == 1.0
    assert score_answer("125", half) == 0.0
    assert score_answer("It is 12", number) == 0.0
    assert score_answer("none", number) == 0.0


def test_free_answers_are_generated_scored_and_kept(base: Path, tmp_path: Path) -> None:
    items = [Item(str(i), f"q{i}", references=("х",), metric="chrf") for i in range(3)]
    scorer = Scorer(str(base), cache=tmp_path)
    scores = score_free(scorer, items, max_tokens=4)
    assert len(scores) == 3
    cold = Scorer(str(base), cache=tmp_path)
    assert score_free(cold, items, max_tokens=4) == scores
    assert cold._model is None


def test_degenerate_text_is_seen() -> None:
    loop = "ин аст он " * 10
    assert repetition(loop) > 0.8
    assert repetition("ҳар калима дар ин ҷумла танҳо як бор меояд") == 0.0
    found = mean_health([health(text) for text in (loop, "hello world", "...")])
    assert found.foreign == pytest.approx(1 / 3)
    assert found.empty == pytest.approx(1 / 3)
    assert found.cyrillic == pytest.approx(1 / 3)


RUSSIAN = (
    "Утром дети пришли в школу, и учитель рассказал им, как наши предки строили города у реки. "
    "Потом они долго рисовали мосты, которые были видны из окна, но дождь так и не кончился. "
)
TAJIK = (
    "Пагоҳӣ кӯдакон ба мактаб омаданд ва муаллим нақл кард, ки гузаштагони мо дар соҳили дарё чӣ "
    "гуна шаҳр месохтанд. Баъд онҳо пулҳоеро, ки аз тиреза намоён буданд, дуру дароз кашиданд. "
)


def test_a_switch_to_russian_is_seen_where_letters_stay_cyrillic() -> None:
    assert foreign(TAJIK * 2) == foreign("") == foreign("ман") == 0.0
    assert foreign(RUSSIAN) == foreign(RUSSIAN * 4) == 1.0
    assert foreign(TAJIK + RUSSIAN) == pytest.approx(0.5, abs=0.13)  # a piece lies across
    assert health(RUSSIAN).cyrillic == health(TAJIK).cyrillic == 1.0


def test_tajik_text_is_hardly_ever_taken_for_another_language() -> None:
    documents = [*builtin_documents("tg", "calib"), *builtin_documents("tg", "check")]
    texts = [document.plain for document in documents]
    alarms = [foreign(text) for text in texts]
    assert len(alarms) > 300
    assert sum(alarms) / len(alarms) < 0.005
