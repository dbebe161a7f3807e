"""The ladder's table and picture show what the last run recorded, and nothing else."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from soroq.bench import record
from soroq.bench.quality import ladder
from soroq.bench.quality.picture import FLOOR, scatter


def _record(run: str, model: str, text: str, delta: float) -> dict[str, Any]:
    measured = {"perplexity": 50.0, "kl": 0.1, "top1": 0.9}
    span = {"delta_nll": delta, "delta_nll_low": delta - 0.01, "delta_nll_high": delta + 0.01}
    return {"run": run, "model": model, "text": text} | span | measured


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        _record("2026-01-01", "old", "tg", 9.0),
        _record("2026-01-01", "old", "en", 9.0),
        _record("2026-02-02", "bfloat16", "tg", 0.0),
        _record("2026-02-02", "int4", "tg", 0.05),
        _record("2026-02-02", "int4", "en", 0.07),
        _record("2026-02-02", "peer:gptq", "tg", 0.212),
        _record("2026-02-02", "peer:gptq", "en", 0.462),
    ]
    (tmp_path / "cpu").mkdir()
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "cpu" / "quality-ladder.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(record, "RECORDS", tmp_path)


def test_table_is_of_the_last_run(records: None) -> None:
    text = ladder.table(ladder.last_run())
    assert "old" not in text
    row = next(line for line in text.splitlines() if "peer:gptq" in line)
    assert "0.212 [0.202, 0.222]" in row
    assert "0.462 [0.452, 0.472]" in row


def test_picture_has_one_point_a_model(records: None) -> None:
    root = ET.fromstring(ladder.picture(ladder.last_run()))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("int4") == 1
    assert texts.count("gptq") == 1
    assert "bfloat16" not in texts
    legend = 2
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2 + legend


def test_smaller_losses_stand_further_left_and_lower() -> None:
    root = ET.fromstring(scatter({"a": (0.05, 0.3), "b": (0.5, 0.03), "c": (-0.1, 0.0)}, "x", "y"))
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles[:3]]
    c, a, b = places  # in the order of x
    assert c[0] < a[0] < b[0]
    assert a[1] < b[1] < c[1]  # y grows downwards
    assert FLOOR > 0
