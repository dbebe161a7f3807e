"""The command line: what it prints, and that bad input is one line and exit code 2."""

import json
import shutil
from pathlib import Path

import pytest

from soroq import cli
from soroq.models.tiny import write_tiny_model

TEXT = "ва дар ки аз ба бо ин он аст барои мактаб китоб хонандагон рӯз шаҳр кӯҳ об ҷавон қалам. "


def _soroq(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["soroq", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "base", hidden_size=128)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = TEXT.split()
    passages = [" ".join(words[i % 19 :] + words[: i % 7]) for i in range(60)]
    path = tmp_path / "tajik.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i} {p}"}) for i, p in enumerate(passages)))
    return path


def test_quantize_check_inspect_and_generate_work_together(
    base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    arguments = ["quantize", base, "--scheme", "int4-gptq", "--group-size", "32", "-o", out]
    calibration = ["--calib", text, "--samples", "8", "--seq-len", "64"]
    assert _soroq(monkeypatch, *arguments, *calibration) == 0
    capsys.readouterr()
    monkeypatch.setenv("SOROQ_CACHE", str(tmp_path / "cache"))
    check = ["--text", f"tg={text}", "--windows", "3", "--seq-len", "64", "--json"]
    assert _soroq(monkeypatch, "check", base, out, *check) == 0
    (found,) = json.loads(capsys.readouterr().out)["texts"]
    assert found["n_tokens"] == 3 * 63
    assert found["kl"]["estimate"] > 0
    assert _soroq(monkeypatch, "inspect", out, "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert len(described["layers"]) == 21
    assert _soroq(monkeypatch, "generate", out, "-p", "дар", "-n", "4") == 0
    assert capsys.readouterr().out.strip()


def test_sensitivity_then_a_budget_mix_formats(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOROQ_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "s.json"
    sizes = ["--windows", "2", "--seq-len", "32"]
    assert _soroq(monkeypatch, "sensitivity", base, "-o", file, *sizes) == 0
    out = tmp_path / "out"
    budget = ["--scheme", "int4-rtn", "--sensitivity", file, "-o", out]
    assert _soroq(monkeypatch, "quantize", base, "--budget", "5bpw", *budget) == 0
    assert "budget: " in capsys.readouterr().err
    layers = json.loads((out / "soroq.json").read_text())["layers"]
    assert len({layer["bits_per_weight"] for layer in layers}) > 1
    assert _soroq(monkeypatch, "quantize", base, "--max-size", "0.01MB", *budget) == 2
    assert "below the" in capsys.readouterr().err


def test_dry_run_names_every_module_and_touches_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _soroq(
        monkeypatch, "quantize", base, "--group-size", "32", "--skip", "*.0.mlp.*", "--dry-run",
        "--json",
    ) == 0  # fmt: skip
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["modules"]) == 21
    assert sum(m["scheme"] is None for m in plan["modules"]) == 3
    assert plan["output_bytes"] < plan["source_bytes"]
    assert not list(tmp_path.iterdir())


def test_calib_build_writes_a_set_that_quantize_takes(
    base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "set.calib"
    assert _soroq(
        monkeypatch, "calib", "build", made, "--model", base, "--text", f"tg={text}", "--samples",
        "8", "--seq-len", "64",
    ) == 0  # fmt: skip
    out = tmp_path / "out"
    assert _soroq(
        monkeypatch, "quantize", base, "--scheme", "int4-awq", "--group-size", "32", "--calib",
        made, "--samples", "8", "--seq-len", "64", "-o", out,
    ) == 0  # fmt: skip
    assert json.loads((out / "soroq.json").read_text())["calibration"]["name"] == "set.calib"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "BASE", "--scheme", "int4-akq"], "unknown scheme 'int4-akq'; known: fp8"),
        (["quantize", "BASE", "--group-size", "48"], "group size '48' is not 32, 64, 128 or row"),
        (["quantize", "nowhere"], "'nowhere' is not a local directory"),
        (["quantize", "BASE", "--embed", "int3"], "--embed 'int3' is not int8, int4 or none"),
        (["quantize", "BASE", "--override", "x"], "override 'x' is not"),
        (["quantize", "BASE", "--skip", "*.nothing"], "pattern '*.nothing' matches no module"),
        (["quantize", "BASE", "--mix", "tg"], "mix 'tg' is not like tg=0.8,en=0.2"),
        (["quantize", "BASE", "--samples", "100000"], "windows of 512 tokens, 70000 were asked"),
        (["quantize", "BASE", "--calib", "no.txt"], "does not exist"),
        (["quantize", "BASE", "--budget", "few"], "'few' is no budget"),
        (["quantize", "BASE", "--max-size", "2.5"], "'2.5' is no budget"),
        (["quantize", "BASE", "--budget", "4.5bpw", "--max-dnll", "0.1"], "exclude each other"),
        (["quantize", "BASE", "--sensitivity", "s.json"], "needs --budget"),
        (["quantize", "BASE", "--budget", "4.5", "--sensitivity", "s.json"], "s.json: not a file"),
        (["quantize", "BASE", "--seq-len", "513"], "--seq-len 513 is beyond the model's context"),
        (["quantize", "BASE", "--seq-len", "513", "--dry-run"], "use at most 512"),
        (["quantize", "BASE", "--seq-len", "513", "--budget", "4.5"], "use at most 512"),
        (["quantize", "BASE", "--scheme", "fp8", "--reorder"], "fp8 has no groups along a row"),
        (["quantize", "BASE", "--group-size", "row", "--reorder"], "no groups along a row; drop"),
        (["quantize", "BASE", "--scheme", "fp8", "--distill"], "no integer groups to tune"),
        (["sensitivity", "BASE", "--seq-len", "513"], "--seq-len 513 is beyond"),
        (["check", "BASE", "BASE", "--seq-len", "513"], "beyond the context of "),
        (["check", "BASE", "nowhere"], "'nowhere' is not a local directory"),
        (["check", "BASE", "BASE", "--text", "tg"], "--text 'tg' is not name=FILE"),
        (["check", "BASE", "BASE", "--task", "t=no.jsonl"], "'no.jsonl' do not exist"),
        (["check", "BASE", "BASE", "--gate", "no.toml"], "gate 'no.toml' can't be read"),
        (["check", "BASE", "BASE", "--mode", "loud"], "--mode 'loud' is not one of text, letter"),
        (["check", "BASE", "BASE", "--stride", "600"], "stride 600 does not fit"),
        (["report", "no.json", "-o", "x.html"], "not a report of soroq check"),
        (["report", "no.json", "-o", "no/x.html"], "can't write no/x.html: no is no directory"),
        (["check", "BASE", "BASE", "--text", "a=x", "--text", "a=y"], "--text 'a' is given twice"),
        (["check", "BASE", "BASE", "--out", "no/x.json"], "can't write no/x.json: no is no dir"),
        (["check", "BASE", "BASE", "--html", "."], "is a directory; give the name of a file"),
        (["check", "BASE", "BASE", "--write-card"], "has no README.md to write the results to"),
        (["check", "BASE", "BASE", "--task", "lm_eval:"], "lm"),
        (["generate", "BASE", "-p", "x", "--device", "gpu"], "--device 'gpu' is not one"),
        (["generate", "BASE", "-p", "x", "--device", "cuda:63"], "there is no such GPU here"),
        (["tune", "BASE", "--rows", "1,x"], "--rows '1,x' is not a list of numbers"),
        (["inspect", "README"], "'README' is not a local directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    changed = [str(base) if a == "BASE" else a for a in arguments]
    assert _soroq(monkeypatch, *changed) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("soroq: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not any(path.name.endswith("partial") for path in tmp_path.iterdir())


def test_an_unknown_architecture_is_named_before_text_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert _soroq(monkeypatch, "quantize", other, "-o", tmp_path / "out") == 2
    assert "model_type 'mamba' is not supported; supported: gemma3" in capsys.readouterr().err


def test_interrupt_says_how_to_resume_and_resuming_finishes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from soroq.pipeline import run

    out = tmp_path / "out"
    arguments = ["quantize", base, "--scheme", "int4-rtn", "--group-size", "32", "-o", out]
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_output", _interrupt)
        assert _soroq(monkeypatch, *arguments) == 130
    assert "go on with the same command and --resume" in capsys.readouterr().err
    assert _soroq(monkeypatch, *arguments) == 2
    assert _soroq(monkeypatch, *arguments, "--resume") == 0
    assert (out / "model.safetensors").is_file()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
