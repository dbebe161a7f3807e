"""lm-evaluation-harness: the same items, the same scores, item by item; clear errors without it."""

import importlib.util
import json
from pathlib import Path

import pytest

from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.tasks.choices import score_choices
from soroq.bench.quality.tasks.harness import run_harness
from soroq.bench.quality.tasks.items import read_items
from soroq.core.errors import CheckError
from soroq.models.tiny import write_tiny_model

TASK = """\
task: own_items
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nҶавоб:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness (lm-eval)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(i),
            "question": f"Чанд {i}?",
            "choices": ["як", "дувоздаҳ", "се"],
            "answer": i % 3,
        }
        for i in range(24)
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    (tmp_path / "own.yaml").write_text(TASK.replace("FILE", str(file)))
    return tmp_path


@installed
def test_scores_equal_the_harness_item_by_item(folder: Path) -> None:
    scorer = Scorer(str(write_tiny_model(folder / "m")), cache=folder / "cache")
    theirs = run_harness(scorer, f"own_items@{folder}")
    ours = score_choices(scorer, read_items(folder / "items.jsonl"))
    assert theirs.metric == "acc_norm"
    assert [theirs.values[f"own_items/{i}"] for i in range(24)] == [
        float(scores.right_normalized) for scores in ours
    ]
    cold = Scorer(str(folder / "m"), cache=folder / "cache")
    assert run_harness(cold, f"own_items@{folder}") == theirs
    assert cold._model is None


@installed
def test_unknown_tasks_and_missing_data_are_one_clear_line(folder: Path) -> None:
    scorer = Scorer(str(write_tiny_model(folder / "m")), cache=folder / "cache")
    with pytest.raises(CheckError, match="has no task 'nonesuch'"):
        run_harness(scorer, "nonesuch")
    with pytest.raises(CheckError, match="is not a directory"):
        run_harness(scorer, "own_items@nowhere")
    (folder / "items.jsonl").unlink()
    with pytest.raises(CheckError, match="has to be on this machine"):
        run_harness(scorer, f"own_items@{folder}")


def test_without_the_harness_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckError, match="pip install lm-eval"):
        run_harness(Scorer("nowhere"), "x")
