"""The GPU bench in miniature: every part runs, is kept, and is not run twice."""

import json
import os
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from soroq.bench.kernels import gpu
from soroq.bench.kernels.shapes import SHAPES
from soroq.bench.kernels.tuning import candidates
from soroq.kernels.triton.config import fits, rule


def test_every_part_runs_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path), "--try"]) == 0
    documents = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in gpu.PARTS}
    assert all(document["device"] == "interpreter" for document in documents.values())
    assert all(not entry["failed"] for entry in documents["check"]["entries"])
    by_float8 = documents["w4a8"]["entries"]
    checked = [entry for entry in by_float8 if "problem" in entry]
    assert checked and all(0 < entry["worst"] <= 4e-6 for entry in checked)
    timed = {entry["name"] for entry in by_float8 if "microseconds" in entry}
    assert {"soroq W4A8", "soroq W4A8 with rounding x", "soroq int4"} < timed
    names = {entry["name"] for entry in documents["sweep"]["entries"]}
    assert names == {"soroq int4", "torch bfloat16", "read the same bytes"}
    assert not list(tmp_path.glob("interpreter*"))  # no configuration is kept from a trial
    times = {part: (tmp_path / f"{part}.json").stat().st_mtime_ns for part in gpu.PARTS}
    assert gpu.main(["--out", str(tmp_path), "--try"]) == 0
    assert times == {part: (tmp_path / f"{part}.json").stat().st_mtime_ns for part in gpu.PARTS}
    assert gpu.main(["--table", str(tmp_path)]) == 0
    assert "× torch bf16" in capsys.readouterr().out
    assert gpu.main(["--picture", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("<svg ")


def test_unknown_parts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path), "--parts", "chek"]) == 2
    assert "no part chek; parts: check" in capsys.readouterr().err


@pytest.mark.parametrize("sms", [28, 132])
def test_candidates_begin_with_the_rule_and_fit_the_scratch(sms: int) -> None:
    for shape in SHAPES:
        for M in (1, 16, 64, 256):
            found = candidates(sms, M, shape.N, shape.K)
            assert found[0] == rule(sms, M, shape.N, shape.K)
            assert len(found) == len(set(found)) and all(fits(c, M, shape.N, sms) for c in found)
