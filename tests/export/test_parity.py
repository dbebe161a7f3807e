"""Parity finds a graph that says something else, and names the block where it begins."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from soroq.cli import app
from soroq.commands import export as command
from soroq.core.errors import CheckpointError, KernelError
from soroq.export import parity
from soroq.export.ort_library import find_library
from soroq.export.parity import bisect, compare
from soroq.export.session import EVERY, LAST
from soroq.inspection import describe
from soroq.loading import load
from soroq.models.tiny import write_tiny_model

Make = Callable[..., tuple[Path, Path]]

WINDOWS = torch.randint(4, 260, (2, 60), generator=torch.Generator().manual_seed(1))
EXACT = {"compute": "float32", "precision": "exact"}
WINDOW = 16  # of the tiny Gemma 3's sliding attention


def _compare(source: Path, folder: Path) -> dict[str, Any]:
    return compare(folder, load(source), WINDOWS, boundary=WINDOW, say=lambda line: None, **EXACT)


def _damage(folder: Path, change: Callable[[Any], None]) -> None:
    """Change both graphs of a folder."""
    for name in (EVERY, LAST):
        path = folder / "onnx" / name
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        path.write_bytes(model.SerializeToString())


def _widen_windows(graph: Any) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i += 1


def _spoil_norm(graph: Any) -> None:
    for index, tensor in enumerate(graph.initializer):
        if tensor.name == "layers.1/pre_ffn_norm/factor":
            other = numpy_helper.from_array(np.full(64, 0.5, np.float32), tensor.name)
            graph.initializer[index].CopyFrom(other)


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3"])
def test_an_export_passes(model_type: str, exported: Make) -> None:
    source, folder = exported(model_type)
    report = _compare(source, folder)
    assert report["passed"]
    assert report["prefill"]["tokens"] == 120 and report["prefill"]["kl"] < 1e-7
    assert report["at_once"]["tokens"] == 16 and report["steps"]["tokens"] == 2 * 59
    assert report["batch"]["tokens"] == 2 * 2 * 9
    assert report["greedy"]["equal"] == report["greedy"]["tokens"] == 48
    assert bisect(folder, load(source), WINDOWS[0], compute="float32").first is None


def test_a_window_wider_by_one_fails(exported: Make) -> None:
    source, folder = exported()
    _damage(folder, _widen_windows)
    assert not _compare(source, folder)["passed"]
    assert bisect(folder, load(source), WINDOWS[0], compute="float32").first == 0


def test_prompts_stand_on_all_sides_of_the_boundary() -> None:
    assert parity._prompt_lengths(60, 16) == [1, 2, 15, 16, 17, 45, 52, 60]
    assert parity._prompt_lengths(8, 0) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert parity._prompt_lengths(544, 512)[-3:] == [512, 513, 544]


def test_other_words_alone_fail(exported: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = exported()
    for equal, passes in ((47, True), (46, False)):
        said = {"prompts": 2, "tokens": 48, "equal": equal, "gap": 0.1}
        monkeypatch.setattr(parity, "_greedy", lambda *_, said=said: said)
        assert _compare(source, folder)["passed"] == passes


@pytest.mark.parametrize("target", ["onnx-cpu", "onnx-soroq"])
def test_rounded_activations_hide_no_wrong_graph(target: str, exported: Make) -> None:
    if target == "onnx-soroq":
        try:
            find_library("skip this test")
        except KernelError as error:
            pytest.skip(str(error))
    source, folder = exported(precision="int8", target=target)
    rounded = {"compute": "float32", "precision": "int8", "boundary": WINDOW}
    report = compare(folder, load(source), WINDOWS, say=lambda line: None, **rounded)
    assert report["passed"]
    assert report["graph"]["kl"] < 1e-7 < report["prefill"]["kl"]
    _damage(folder, _widen_windows)
    report = compare(folder, load(source), WINDOWS, say=lambda line: None, **rounded)
    assert not report["passed"]
    assert report["graph"]["kl"] > report["graph"]["limits"]["kl"]
    assert not list(folder.rglob(".*"))  # nothing left of what was compared


def test_float8_rounded_anew_has_no_close_graph(exported: Make, tmp_path: Path) -> None:
    source, _ = exported(scheme="fp8-rtn")
    out = tmp_path / "by-command"
    done = CliRunner().invoke(app, ["export", str(source), "-o", str(out), "--bisect"])
    assert done.exit_code == 0, done.output
    assert "graph" not in json.loads((out / "soroq.json").read_text())["parity"]


def test_a_window_of_2000_tokens_is_crossed(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "base", sliding_window=2000)
    windows = command.parity_windows(str(source), 2000, 260)
    assert windows.shape == (2, 2032)
    assert len(windows.unique()) > 20


def test_bisect_names_the_first_block_that_differs(exported: Make) -> None:
    source, folder = exported()
    _damage(folder, _spoil_norm)
    assert not _compare(source, folder)["passed"]
    found = bisect(folder, load(source), WINDOWS[0], compute="float32")
    assert found.first == 1
    assert found.errors[0] < 1e-5 < found.errors[1]
    assert sorted(p.name for p in (folder / "onnx").glob(".*")) == []


def test_command_writes_the_report(exported: Make, tmp_path: Path) -> None:
    source, _ = exported()
    out = tmp_path / "by-command"
    arguments = ["export", str(source), "-o", str(out), "--precision", "exact", "--bisect"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    parity = json.loads((out / "soroq.json").read_text())["parity"]
    assert parity["passed"] and parity["first_diverging"] is None
    assert parity["windows"] == [2, 96] and len(parity["block_errors"]) == 3
    assert ("parity", "passed") in describe(out).facts


def test_command_keeps_what_failed_and_exits_1(
    exported: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = exported()
    out = tmp_path / "by-command"
    check = command.check_parity

    def damage_first(folder: Path, *arguments: Any) -> dict[str, Any]:
        _damage(folder, _spoil_norm)
        return check(folder, *arguments)

    monkeypatch.setattr(command, "check_parity", damage_first)
    done = CliRunner().invoke(
        app, ["export", str(source), "-o", str(out), "--precision", "exact", "--bisect"]
    )
    assert done.exit_code == 1
    assert "parity failed, nothing was deleted" in done.output
    assert "block 1 is first" in done.output
    assert json.loads((out / "soroq.json").read_text())["parity"]["first_diverging"] == "layers.1"
    assert (out / "onnx" / EVERY).is_file()


def test_inspect_finds_a_tampered_file(exported: Make) -> None:
    folder = exported()[1]
    assert ("parity", "not compared") in describe(folder).facts
    path = folder / "onnx" / f"{EVERY}_data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="onnx_data has other bytes than were written") as e:
        describe(folder)
    assert "tokenizer.json is missing" in str(e.value)
