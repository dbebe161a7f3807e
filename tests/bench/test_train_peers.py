"""soroq and TRL take the same steps: their losses agree, and a difference is not recorded."""

import json
from pathlib import Path

import pytest

from soroq.bench import train_peers
from soroq.models.tiny import write_tiny_model

pytest.importorskip("trl")


def _arguments(model: Path) -> list[str]:
    shape = ["--seq-len", "32", "--batch", "2", "--steps", "3", "--rounds", "1"]
    return ["--model", str(model), *shape, "--compute", "float32"]


def test_both_come_to_the_same_losses(tmp_path: Path) -> None:
    options = train_peers._parse(_arguments(write_tiny_model(tmp_path / "m")))
    seconds, losses = train_peers.run_soroq(options)
    peer_seconds, peer_losses = train_peers.run_trl(options)
    assert losses == pytest.approx(peer_losses, rel=1e-4)
    assert len(seconds) == len(peer_seconds) == 3 and min(seconds + peer_seconds) > 0


def test_other_losses_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, arguments: list[str]) -> dict[str, object]:
        loss = 2.0 if name == "soroq" else 2.1
        return {"seconds": [1.0, 1.0], "losses": [loss, loss], "peak_bytes": 1}

    monkeypatch.setattr(train_peers, "_measure", measure)
    monkeypatch.setattr("soroq.bench.record.RECORDS", tmp_path)
    assert train_peers.main([*_arguments(tmp_path), "--record"]) == 1
    assert "nothing recorded" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_record_holds_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"seconds": [9.0, 1.0, 1.0], "losses": [2.0, 1.9, 1.8], "peak_bytes": 1}
    monkeypatch.setattr(train_peers, "_measure", lambda name, arguments: measured)
    monkeypatch.setattr("soroq.bench.record.RECORDS", tmp_path)
    assert train_peers.main([*_arguments(tmp_path), "--record"]) == 0
    (file,) = tmp_path.glob("*/train-peers.jsonl")
    record = json.loads(file.read_text())
    assert record["results"]["trl"]["tokens_s"] == 64.0  # the first step is left out
    assert record["seq_len"] == 32 and record["trl"]
