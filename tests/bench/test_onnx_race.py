"""`soroq bench onnx` on a tiny exported model: the child's answer, the records and the table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("soroq._cpu", reason="soroq._cpu is not built")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from soroq.bench.peers import alone, onnx_race
from soroq.bench.peers import race as racing
from soroq.bench.peers.alone import AloneError, measure_alone
from soroq.bench.peers.onnx_table import newest_run, table
from soroq.bench.peers.players import Contender, import_modules, open_player
from soroq.bench.peers.race import Lengths
from soroq.core.errors import CheckError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.export.onnx_cpu import export
from soroq.export.target import ExportRequest
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize

IDS = [2, 9, 40, 7, 33, 8]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, quantized and exported."""
    at = tmp_path_factory.mktemp("tiny")
    base = write_tiny_model(at / "base", "gemma3_text")
    recipe = Recipe(get_scheme("int4-rtn", group_size=32))
    quantize(base, at / "out", recipe=recipe, calibration=None)
    export(ExportRequest(str(at / "out"), at / "onnx", "float32", "exact"), lambda line: None)
    return {"base": base, "out": at / "out", "onnx": at / "onnx"}


def contender(kind: str, path: Path) -> Contender:
    return Contender(f"{kind} {path.name}", kind, "soroq", str(path))


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "soroq", "packed"])
def test_players_say_what_transformers_says(
    kind: str, stepwise: bool, folders: dict[str, Path]
) -> None:
    import torch

    from soroq.loading import load

    path = folders["onnx" if kind == "onnx" else "out"]
    player = open_player(contender(kind, path), threads=1, window=64)
    player.feed(IDS)
    player.feed([5])
    player.rewind()
    found = torch.as_tensor(player.logits(IDS, stepwise=stepwise))
    with torch.inference_mode():
        want = load(folders["out"], precision=None)(torch.tensor([IDS])).logits[0]
    # bfloat16 keys and values, activations in 8 or 15 bits
    assert float((found - want).norm() / want.norm()) < 0.05
    player.close()


def test_bfloat16_player_keeps_the_last_logits_only(folders: dict[str, Path]) -> None:
    player = open_player(contender("transformers", folders["base"]), threads=1, window=64)
    assert player._forward(IDS, keep=1).shape[0] == 1  # type: ignore[attr-defined]
    assert len(player.logits(IDS)) == len(IDS)


def test_a_fresh_process_answers_with_seconds_and_bytes(folders: dict[str, Path]) -> None:
    facts = measure_alone(contender("onnx", folders["onnx"]), threads=1, prompt=IDS)
    assert facts["load_s"] > 0 and facts["first_token_s"] > 0 and facts["import_s"] > 0
    assert facts["peak_rss_bytes"] >= facts["imports_bytes"] > 10 << 20


def test_a_process_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AloneError, match=r"^onnx .*: exit code 1, .*soroq export") as caught:
        measure_alone(contender("onnx", tmp_path), threads=1, prompt=IDS)
    assert "\n" not in str(caught.value)


def test_what_needs_no_torch_imports_none() -> None:
    code = (
        "import sys\n"
        "from soroq.bench.peers.alone import run\n"
        "from soroq.bench.peers.players import Contender, import_modules\n"
        "for kind in ('onnx', 'llama.cpp'):\n"
        "    import_modules(Contender('', kind, '', ''))\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_modules_of_every_kind_that_is_here_can_be_imported() -> None:
    for kind in ("onnx", "soroq", "llama.cpp", "transformers", "packed"):
        import_modules(Contender("", kind, "", ""))


def test_tokenizer_and_papers_are_no_part_of_the_model(tmp_path: Path) -> None:
    for name, size in (("model.onnx_data", 1000), ("tokenizer.json", 70), ("NOTICE.html", 5)):
        (tmp_path / name).write_bytes(b"\0" * size)
    found = contender("onnx", tmp_path)
    assert (found.model_bytes(), found.disk_bytes()) == (1000, 1075)


def test_footprints_take_turns_and_drop_who_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(who: Contender, *, threads: int, prompt: list[int]) -> dict[str, Any]:
        calls.append(who.name)
        if who.name == "bad":
            raise AloneError("bad: exit code 1, no")
        facts = {name: 1.0 + len(calls) for name in onnx_race.FACTS}
        return facts | {"anonymous_bytes": 3, "file_bytes": 4}

    monkeypatch.setattr(onnx_race, "measure_alone", fake)
    found = [Contender(name, "onnx", "x", __file__) for name in ("a", "bad", "b")]
    entries = onnx_race.measure_footprints(found, 2, IDS, 2)
    assert calls == ["a", "bad", "b", "a", "b", "a", "b"]
    assert [entry["kernel"] for entry in entries] == ["a", "b"]
    assert [len(entry["load_s"]["samples"]) for entry in entries] == [2, 2]
    assert calls.count("bad") == 1


def test_whole_run_records_and_prints_the_same_table(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(racing, "rest", lambda: None)
    kept: dict[str, list[dict[str, Any]]] = {}
    monkeypatch.setattr(onnx_race, "append_records", lambda bench, many: kept.update({bench: many}))
    text = tmp_path / "tg.txt"
    text.write_text("Душанбе пойтахти Тоҷикистон аст. " * 200, encoding="utf-8")
    request = onnx_race.Request(
        onnx=(folders["onnx"],),
        soroq=(folders["out"],),
        peers=("packed", "transformers"),
        texts=(("tg", text),),
        windows=1,
        lengths=Lengths(8, 4, 1),
        threads=(1,),
        repeats=2,
        alone=1,
        source=str(folders["base"]),
    )
    assert onnx_race.measure(request) == 0
    said = capsys.readouterr().out
    names = ["soroq onnx onnx", "soroq c++ out", "transformers soroq out", "transformers bfloat16"]
    assert [line.split(" | ")[0] for line in said.splitlines()[2:]] == [f"| {n}" for n in names]
    speeds, footprints = kept[onnx_race.DECODE], kept[onnx_race.FOOTPRINT]
    assert len(speeds) == 2 * len(footprints) == 8
    assert speeds[0]["run"] == footprints[0]["run"]
    by_name = {entry["kernel"]: entry["quality"]["tg"] for entry in speeds}
    assert by_name["transformers bfloat16"]["kl"] < 1e-3
    assert by_name["soroq onnx onnx"]["kl"] == pytest.approx(
        by_name["transformers soroq out"]["kl"], rel=0.01
    )
    lines = {bench: [json.loads(json.dumps(e)) for e in many] for bench, many in kept.items()}
    monkeypatch.setattr("soroq.bench.peers.onnx_table.read_records", lambda bench: lines[bench])
    assert table(*newest_run(onnx_race.DECODE, onnx_race.FOOTPRINT)) == said


def test_table_leaves_out_what_was_not_measured() -> None:
    entry = {"kernel": "a", "threads": 2, "phase": "decode", "bytes": 2e6, "quality": {}}
    entry |= {"median": 10.04, "p20": 9.0, "p80": 11.0}
    line = table([entry], []).splitlines()[2]
    assert line == "| a | 2 | 2 | – | – | 10.0 (9.0–11.0) | – | – | – | – |"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--peers", "pytorch"], "--peers 'pytorch' is unknown; known: llama.cpp"),
        (["--threads", "two"], "--threads 'two' is not a list of numbers"),
        (["--text", "valid.jsonl"], "--text 'valid.jsonl' is not name=FILE"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], why: str) -> None:
    with pytest.raises(CheckError) as caught:
        onnx_race.main(arguments)
    assert why in str(caught.value)


def test_unknown_status_field_is_zero() -> None:
    assert alone.memory("VmNothing") == 0
