"""The other tool's process: found, started, failing, stopped; and the output of a whole run.

A stand-in plays the Python that has the tool: it answers like one and copies a golden result.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import soroq.backends.run
from soroq.backends.run import plan_job, quantize_with
from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.errors import BackendError, OutputError, SchemeError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.inspection import describe
from soroq.loading import load
from soroq.manifest import Manifest, read_manifest
from soroq.models.tiny import write_tiny_model

GOLDEN = Path(__file__).parent / "golden"
SKIPPED = "model.layers.0.mlp.up_proj"
RECIPE = Recipe(
    get_scheme("int4-gptq", group_size=32), overrides=((SKIPPED, None),), n_samples=8, seq_len=64
)

STAND_IN = """#!{python}
import json, os, pathlib, shutil, signal, subprocess, sys, time
here = pathlib.Path({folder!r})
mode = (here / "mode").read_text()
if sys.argv[1] == "-c":
    sys.exit(mode == "without the tool")
with (here / "starts").open("a") as file:
    file.write(sys.argv[2] + "\\n")
job = json.loads(pathlib.Path(sys.argv[2]).read_text())
print("layer 1 of 1", flush=True)
if mode == "fails":
    print("Traceback (most recent call last):\\nValueError: no such thing\\nbye", flush=True)
    sys.exit(3)
if mode == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (here / "pids.tmp").write_text(f"{{os.getpid()}} {{child.pid}}")
    (here / "pids.tmp").rename(here / "pids")
    time.sleep(60)
if mode == "works":
    shutil.copytree({golden!r}, job["result"])
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        tmp_path_factory.mktemp("tiny") / "base",
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


def _stand_in(folder: Path, mode: str) -> Path:
    (folder / "mode").write_text(mode)
    python = folder / "python"
    golden = str(GOLDEN / "gptqmodel-asym")
    python.write_text(STAND_IN.format(python=sys.executable, folder=str(folder), golden=golden))
    python.chmod(0o755)
    return python


def _calibration() -> CalibrationSet:
    ids = torch.randint(4, 260, (8, 64), generator=torch.Generator().manual_seed(0))
    manifest = {"name": "t", "n": 8, "seq_len": 64, "mix": {"tg": 1.0}, "sha256": ids_sha256(ids)}
    return CalibrationSet(ids, ("tg",) * 8, manifest)


def _quantize(base: Path, folder: Path, mode: str, **changes: Any) -> Manifest:
    given = {"recipe": RECIPE, "calibration": _calibration(), "python": _stand_in(folder, mode)}
    return quantize_with("gptqmodel", base, folder / "out", **(given | changes))


def test_a_run_leaves_a_soroq_checkpoint_and_says_what_ran(base: Path, tmp_path: Path) -> None:
    manifest = _quantize(base, tmp_path, "works")
    written = (tmp_path / "out" / "soroq.json").read_text()
    assert written == manifest.to_json() and not (tmp_path / "out.partial").exists()
    backend = manifest.backend
    assert backend is not None
    assert (backend["tool"], backend["method"]) == ("gptqmodel", "GPTQ")
    assert backend["version"] == backend["versions"]["gptqmodel"] == "7.6.0"
    assert backend["arguments"]["group_size"] == 32
    assert backend["calibration_sha256"] == _calibration().sha256
    assert {layer["module"] for layer in manifest.layers}.isdisjoint({SKIPPED})
    assert all(0 < layer["weight_error"] < 0.05 for layer in manifest.layers)
    assert manifest.recipe["scheme"]["method"] == "gptqmodel-GPTQ"
    assert "GPTQ of gptqmodel 7.6.0" in (tmp_path / "out" / "README.md").read_text()
    assert ("quantized by", "gptqmodel 7.6.0, GPTQ") in describe(str(tmp_path / "out")).facts
    ids = torch.randint(4, 260, (1, 16))
    with torch.no_grad():
        assert bool(load(tmp_path / "out")(ids).logits.isfinite().all())


def test_two_runs_write_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _quantize(base, tmp_path / name, "works")
    for file in ("soroq.json", "model.safetensors", "config.json"):
        one, two = ((tmp_path / name / "out" / file).read_bytes() for name in ("one", "two"))
        assert one == two, file


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fails", r"gptqmodel failed \(exit code 3\); it said: ValueError: no such thing; .*log"),
        ("is killed", r"killed by signal 9, out of memory\?\); it said: layer 1 of 1"),
        ("leaves nothing", "ended without a result"),
        ("without the tool", r"has no gptqmodel; .*pip install gptqmodel==7.6.0 optimum==2.3.0"),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_output(
    mode: str, message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=message) as error:
        _quantize(base, tmp_path, mode)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_the_tool_says_is_passed_on(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError):
        _quantize(base, tmp_path, "fails")
    assert "layer 1 of 1\n" in capsys.readouterr().err
    assert "ValueError: no such thing" in (tmp_path / "out.partial" / "peer.log").read_text()


def test_a_failed_run_is_started_anew_with_resume(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        _quantize(base, tmp_path, "fails")
    with pytest.raises(OutputError, match="unfinished run; go on with --resume"):
        _quantize(base, tmp_path, "works")
    other = Recipe(RECIPE.scheme, overrides=RECIPE.overrides, damp_ratio=0.1, seq_len=64)
    with pytest.raises(OutputError, match="started with another backend"):
        _quantize(base, tmp_path, "works", resume=True, recipe=other)
    _quantize(base, tmp_path, "works", resume=True)
    assert len((tmp_path / "starts").read_text().splitlines()) == 2
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_finished_result_is_not_made_twice(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(soroq.backends.run, "collect", stopped)
        _quantize(base, tmp_path, "works")
    _quantize(base, tmp_path, "works", resume=True)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1
    run = json.loads((tmp_path / "out" / "soroq-run.json").read_text())
    assert run["resumed"] is True


def _gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_interrupt_stops_the_tool_and_its_workers(base: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        _quantize(base, tmp_path, "hangs")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not all(map(_gone, pids)):
        time.sleep(0.05)
    assert all(map(_gone, pids)) and not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_soroq_takes_the_tool_with_it(tmp_path: Path) -> None:
    tool = (
        "import os, time, soroq.backends.peer as peer\n"
        "peer.stop_with_parent()\n"
        f"open({str(tmp_path / 'pid')!r} + '.tmp', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid')!r} + '.tmp', {str(tmp_path / 'pid')!r})\n"
        "time.sleep(60)"
    )
    starter = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {tool!r}], start_new_session=True)\n"
        "time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=root)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    assert not _gone(pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not _gone(pid):
        time.sleep(0.05)
    assert _gone(pid)


def test_a_python_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"can't run .*/nowhere: No such file.*--backend-python"):
        _quantize(base, tmp_path, "works", python=tmp_path / "nowhere")


def test_a_multimodal_model_is_refused(base: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(base, both)
    text = json.loads((base / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text}
    (both / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    save_file({f"language_model.{n}": t for n, t in tensors.items()}, both / "model.safetensors")
    with pytest.raises(BackendError, match="a multimodal model; other tools are run on text"):
        plan_job("gptqmodel", both, RECIPE)


def test_shapes_are_checked_before_the_tool_is_started(base: Path, tmp_path: Path) -> None:
    recipe = Recipe(get_scheme("int4-gptq", group_size=128), n_samples=8, seq_len=64)
    with pytest.raises(SchemeError, match="not divisible by group_size 128"):
        _quantize(base, tmp_path, "works", recipe=recipe)
    assert not (tmp_path / "starts").exists()


def _command(base: Path, folder: Path, *options: str) -> list[str]:
    _calibration().save(folder / "text.calib")
    text = ["--calib", str(folder / "text.calib"), "--samples", "8", "--seq-len", "64"]
    numbers = ["--scheme", "int4-gptq", "--group-size", "32", "--skip", SKIPPED]
    return ["quantize", str(base), "-o", str(folder / "out"), *numbers, *text, *options]


def test_the_command_line_runs_a_tool_with_one_more_option(base: Path, tmp_path: Path) -> None:
    from soroq.cli import app

    python = _stand_in(tmp_path, "works")
    command = _command(base, tmp_path, "--backend", "gptqmodel")
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["arguments"]["damp_percent"] == 0.01
    done = CliRunner().invoke(app, command, env={"SOROQ_BACKEND_PYTHON": str(python)})
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.backend is not None
    assert manifest.backend["calibration_sha256"] == _calibration().sha256


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--distill",), "doesn't distil"), (("--budget", "4.5bpw"), "a budget mixes schemes")],
    ids=["distill", "budget"],
)
def test_soroqs_own_steps_are_refused_beside_a_tool(
    option: tuple[str, ...], message: str, base: Path, tmp_path: Path
) -> None:
    from soroq.cli import app

    command = _command(base, tmp_path, "--backend", "gptqmodel", *option)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, SchemeError) and message in str(result.exception)
