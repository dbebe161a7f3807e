"""`soroq train …` as typed: what it prints and leaves; bad input is one line and exit code 2."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest

from soroq import cli
from soroq.calib.sources import builtin_documents
from soroq.commands.train_demo import DemoRequest, run_train_demo
from soroq.loading import load_tokenizer


def _soroq(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["soroq", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def _file(folder: Path, tiny: Any) -> Path:
    path = folder / "c.toml"
    path.write_text(
        f'[model]\nsource = "{tiny.model}"\n[data]\ncorpus = "{tiny.corpus}"\nseq_len = 48\n'
        '[train]\nsteps = 2\nbatch = 2\ncompute = "float32"\n[run]\npeak_tflop_s = 0.1\n'
    )
    return path


def test_pretrain_shows_speed_and_time_left_and_writes_a_model(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    file = _file(tmp_path, tiny)
    arguments = ["train", "pretrain", "--config", file, "-o", out, "--set", "train.steps=3"]
    assert _soroq(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if "tokens/s" in line]
    assert len(lines) == 3
    assert all("loss" in line and "MFU" in line and "left" in line for line in lines)
    assert "wrote" in shown.out
    assert json.loads((out / "soroq-train.json").read_text())["config"]["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.step=3"], "did you mean 'steps'?"),
        (["--set", "data.corpus=nowhere"], "nowhere is no corpus"),
        (["--set", "model.source=nowhere"], "'nowhere' is not a local directory"),
        (["--set", "train.batch=3", "--set", "train.micro_batch=2"], "is no multiple of"),
    ],
    ids=["key", "corpus", "model", "batch"],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    file = _file(tmp_path, tiny)
    given = ["train", "pretrain", "--config", file, "-o", tmp_path / "out", *arguments]
    assert _soroq(monkeypatch, *given) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("soroq: ") and message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "setting", "message"),
    [
        ("torch.utils.tensorboard", "run.tensorboard=true", "pip install tensorboard"),
        ("peft", "model.lora_rank=2", "pip install peft"),
    ],
    ids=["tensorboard", "peft"],
)
def test_a_missing_package_is_named(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    setting: str,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    file = _file(tmp_path, tiny)
    given = ["train", "pretrain", "--config", file, "-o", tmp_path / "out", "--set", setting]
    assert _soroq(monkeypatch, *given) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from soroq.train import loop

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    file = _file(tmp_path, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_learn", interrupt)
        code = _soroq(patch, "train", "pretrain", "--config", file, "-o", tmp_path / "out")
    assert code == 130
    assert "--resume" in capsys.readouterr().err
    given = ["train", "pretrain", "--config", file, "-o", tmp_path / "out", "--resume"]
    assert _soroq(monkeypatch, *given) == 0


def test_the_demo_goes_from_text_to_a_checked_quantized_model(
    chat: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = {"tg": _passages(tmp_path / "valid.jsonl", "check")}
    request = DemoRequest(
        tmp_path,
        steps=8,
        texts={"tg": _passages(tmp_path / "tg.jsonl", "calib")},
        valid=valid,
        windows=2,
        model=str(chat.model),
        seq_len=192,
        batch=2,
        group_size="64",
    )
    run_train_demo(request)
    card = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    languages = {source["source"]: source["language"] for source in card["sources"]}
    assert languages["mine"] == "tg" and languages["built-in, essay"] == "en"  # not given: built-in
    for name in ("pretrained", "tuned"):
        assert (tmp_path / name / "adapter" / "adapter_config.json").is_file(), name
        assert set(json.loads((tmp_path / name / "soroq-train.json").read_text())["validation"])
    assert load_tokenizer(tmp_path / "tuned-int4-gptq").chat_template
    trained, quantized = (
        json.loads((tmp_path / f"check-{what}.json").read_text())
        for what in ("trained", "quantized")
    )
    assert trained["quant"] == quantized["base"] == str(tmp_path / "tuned")
    assert [text["name"] for text in trained["texts"]] == ["tg"]
    assert "pretrained: validation loss" in capsys.readouterr().out
    run_train_demo(request)  # what is there is kept
    assert "tokens/s" not in capsys.readouterr().err


def _passages(path: Path, split: Literal["calib", "check"]) -> Path:
    rows = [
        json.dumps({"text": document.plain, "source": "mine"}) + "\n"
        for document in islice(builtin_documents("tg", split), 40)
    ]
    path.write_text("".join(rows))
    return path


def test_teacher_data_tells_what_became_of_every_answer(
    chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outline = tmp_path / "outline.txt"
    outline.write_text("## Биология\n- Фотосинтез\n")
    out = tmp_path / "teacher.jsonl"
    given = ["train", "teacher-data", outline, "-o", out, "--max-tokens", "6", "--tries", "1"]
    assert _soroq(monkeypatch, *given, "--model", chat.model) == 2
    assert "has no chat template" in capsys.readouterr().err
    from soroq.train.chat_data import GEMMA_TEMPLATE

    (chat.model / "chat_template.jinja").write_text(GEMMA_TEMPLATE)
    try:
        assert _soroq(monkeypatch, *given, "--model", chat.model) == 0
    finally:
        (chat.model / "chat_template.jinja").unlink()
    shown = capsys.readouterr().out
    assert "rejected: unfinished" in shown and "read by nobody" in shown
    assert out.read_text() == ""
    rejected = (tmp_path / "teacher.jsonl.rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 3 and json.loads(rejected[0])["reason"] == "unfinished"
