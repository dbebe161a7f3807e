"""lm-evaluation-harness: the same items, the same scores, item by item; clear errors without it."""

import importlib.util
import json
from pathlib import Path

import pytest

from soroq.bench.peers.parity import by_lm_eval, by_soroq
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.sets import make_set
from soroq.bench.quality.tasks.choices import score_choices
from soroq.bench.quality.tasks.harness import run_harness
from soroq.bench.quality.tasks.items import read_items
from soroq.core.errors import CheckError
from soroq.loading import load_tokenizer
from soroq.models.tiny import write_tiny_model

TASK = """\
task: NAME
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
doc_to_text: "{{question}}\\nҶавоб:"
"""
CHOICES = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
SAMPLED = """\
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  max_gen_toks: 4
  do_sample: true
  temperature: 1.0
  until: ["\\n\\n"]
metric_list:
  - metric: exact_match
"""
installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness (lm-eval)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, items and tasks: the harness reads it, and its own tasks, once."""
    folder = write_tiny_model(tmp_path_factory.mktemp("harness") / "m").parent
    rows = [
        {
            "id": str(i),
            "question": f"Чанд {i}?",
            "choices": ["як", "дувоздаҳ", "се"],
            "answer": i % 3,
        }
        for i in range(24)
    ]
    items = folder / "items.jsonl"
    items.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    for name, data, rest in (
        ("own_items", items, CHOICES),
        ("own_sampled", items, SAMPLED),
        ("own_lost", folder / "lost.jsonl", CHOICES),
    ):
        text = TASK.replace("NAME", name).replace("FILE", str(data)) + rest
        (folder / f"{name}.yaml").write_text(text)
    return folder


@installed
def test_scores_equal_the_harness_item_by_item(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(str(folder / "m"), cache=tmp_path)
    theirs = run_harness(scorer, f"own_items@{folder}")
    ours = score_choices(scorer, read_items(folder / "items.jsonl"))
    assert theirs.metric == "acc_norm"
    assert [theirs.values[f"own_items/{i}"] for i in range(24)] == [
        float(scores.right_normalized) for scores in ours
    ]
    cold = Scorer(str(folder / "m"), cache=tmp_path)
    assert run_harness(cold, f"own_items@{folder}") == theirs
    assert cold._model is None


@installed
def test_perplexity_equals_the_harness(folder: Path, tmp_path: Path) -> None:
    text = "Душанбе пойтахти Тоҷикистон аст. Дар мактаб хонандагон китоб мехонанд. " * 8
    windows = make_set("tg", [(text, "text")], load_tokenizer(folder / "m"), seq_len=64)
    scorer = Scorer(str(folder / "m"), cache=tmp_path)
    assert by_lm_eval(scorer, windows) == pytest.approx(by_soroq(scorer, windows), rel=1e-6)


@installed
@pytest.mark.parametrize("task", ["own_items", "own_sampled"])
def test_a_task_that_is_stopped_again_and_again_ends_the_same(
    task: str, folder: Path, tmp_path: Path
) -> None:
    model, spec = str(folder / "m"), f"{task}@{folder}"
    seen: list[int] = []
    stops: list[int] = []

    def listen(done: int, total: int, what: str) -> None:
        seen.append(done)
        if done in stops:
            raise KeyboardInterrupt

    want = run_harness(Scorer(model, cache=tmp_path / "whole"), spec, listen=listen)
    points = seen.copy()
    third = 24 if task == "own_items" else 8  # requests of 8 items
    assert points == [0, third, 2 * third, 3 * third]
    for stop in points[1:]:
        stops[:] = [stop]
        with pytest.raises(KeyboardInterrupt):
            run_harness(Scorer(model, cache=tmp_path / "stopped"), spec, listen=listen)
    seen.clear()
    stops.clear()
    assert run_harness(Scorer(model, cache=tmp_path / "stopped"), spec, listen=listen) == want
    assert seen == points[-1:]  # nothing was asked again
    assert _answers(tmp_path / "stopped") == _answers(tmp_path / "whole")


def _answers(cache: Path) -> dict[str, str]:
    """Return what is kept of a model's answers: file name → content."""
    return {file.name: file.read_text() for file in cache.glob("*/lm-eval-*.json")}


@installed
def test_unknown_tasks_and_missing_data_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(str(folder / "m"), cache=tmp_path)
    with pytest.raises(CheckError, match="has no task 'nonesuch'"):
        run_harness(scorer, f"nonesuch@{folder}")
    with pytest.raises(CheckError, match="is not a directory"):
        run_harness(scorer, "own_items@nowhere")
    with pytest.raises(CheckError, match="has to be on this machine"):
        run_harness(scorer, f"own_lost@{folder}")


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckError, match="pip install lm-eval"):
        run_harness(Scorer("nowhere"), "x")
