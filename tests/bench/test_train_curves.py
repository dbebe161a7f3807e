"""The picture of a training run: an SVG whose lines go where the losses go."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from soroq.bench import train_curves
from soroq.bench.train_curves import curves

SVG = "{http://www.w3.org/2000/svg}"


def test_dots_stand_at_their_tokens_and_losses() -> None:
    points = [(0.0, 4.0), (500.0, 3.0), (1000.0, 2.0)]
    lines = {"tg": points, "·training": [(250.0, 3.9), (750.0, 2.2)]}
    root = ElementTree.fromstring(curves(lines, "tokens", "loss"))
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert len(dots) == len(points)  # the thin line has none
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x0 < x2 and y0 < y2  # a picture's y grows downwards: the loss falls
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"tg", "training", "tokens", "loss", "1,000"} <= set(texts)


def test_a_run_of_one_loss_has_a_picture() -> None:
    ElementTree.fromstring(curves({"tg": [(0.0, 3.0)]}, "tokens", "loss"))


def test_the_picture_is_drawn_from_a_runs_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pretrained", "tuned"):
        (tmp_path / name).mkdir()
        record = {
            "config": {
                "train": {"batch": 2},
                "data": {"seq_len": 100, "files": ["/home/me/a.jsonl"]},
            },
            "losses": [3.0, 2.5],
            "validation": {"0": {"tg": 3.1}, "2": {"tg": 2.4}},
            "rounds": {},
            "learned_parameters": 1,
            "versions": {},
        }
        (tmp_path / name / "soroq-train.json").write_text(json.dumps(record))
    picture = tmp_path / "train.svg"
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--picture", str(picture)])
    train_curves.main()
    assert train_curves.read_run(tmp_path / "tuned")["config"]["data"]["files"] == ["a.jsonl"]
    drawn = picture.read_text()
    assert "tg, validation" in drawn and "400" in drawn  # 2 steps of 2 × 100 tokens
