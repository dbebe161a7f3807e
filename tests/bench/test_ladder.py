"""The ladder's table and picture show the newest records of the last run's windows only."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from soroq.bench import record
from soroq.bench.quality import ladder
from soroq.bench.quality.picture import FLOOR, scatter


def _record(run: str, model: str, text: str, delta: float, windows: str = "same") -> dict[str, Any]:
    measured = {"perplexity": 50.0, "kl": 0.1, "top1": 0.9, "set_sha256": f"{text} {windows}"}
    span = {"delta_nll": delta, "delta_nll_low": delta - 0.01, "delta_nll_high": delta + 0.01}
    return {"run": run, "model": model, "text": text} | span | measured


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        _record("2026-01-01", "old", "tg", 9.0, windows="other"),
        _record("2026-01-01", "old", "en", 9.0, windows="other"),
        _record("2026-01-03", "int4", "tg", 8.0),
        _record("2026-01-03", "earlier", "tg", 0.3),
        _record("2026-01-03", "earlier", "en", 0.4),
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


def test_table_has_the_newest_of_each_model_on_the_last_windows(records: None) -> None:
    text = ladder.table(ladder.newest_results())
    assert "old" not in text
    assert "8.000" not in text
    assert text.count("| int4 |") == 1
    earlier = next(line for line in text.splitlines() if "earlier" in line)
    assert "0.300 [0.290, 0.310]" in earlier
    row = next(line for line in text.splitlines() if "peer:gptq" in line)
    assert "0.212 [0.202, 0.222]" in row
    assert "0.462 [0.452, 0.472]" in row


def test_picture_has_one_point_a_model(records: None) -> None:
    root = ET.fromstring(ladder.picture(ladder.newest_results()))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("int4") == 1
    assert texts.count("gptq") == 1
    assert "bfloat16" not in texts
    legend = 2
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3 + legend


def test_smaller_losses_stand_further_left_and_lower() -> None:
    root = ET.fromstring(scatter({"a": (0.05, 0.3), "b": (0.5, 0.03), "c": (-0.1, 0.0)}, "x", "y"))
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles[:3]]
    c, a, b = places  # in the order of x
    assert c[0] < a[0] < b[0]
    assert a[1] < b[1] < c[1]  # y grows downwards
    assert FLOOR > 0
