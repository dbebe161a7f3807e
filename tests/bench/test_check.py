"""The whole check on tiny models: verdicts and exit codes, reports, cards, pages."""

import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from soroq.bench.quality.check import CheckRequest, Report, _generation_measures, check
from soroq.bench.quality.gate import judge, read_gate
from soroq.bench.quality.page import _front, page
from soroq.bench.quality.report import BEGIN, card_section, markdown, write_card
from soroq.bench.quality.tasks.free import health
from soroq.cli import app
from soroq.commands.check import page_of
from soroq.core.errors import CheckError, OutputError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize
from soroq.pipeline.sensitivity import GroupCost, Sensitivity

TEXT = "Душанбе пойтахти Тоҷикистон аст. Дар мактаб хонандагон китоб мехонанд. "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("check")
    base = write_tiny_model(folder / "base", hidden_size=128)
    scheme = get_scheme("int4-rtn", group_size=32)
    quantize(base, folder / "quant", recipe=Recipe(scheme), calibration=None)
    return base, folder / "quant"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    kinds = ["news", "law"]
    rows = [{"text": TEXT * 8 + str(i), "kind": kinds[i % 2]} for i in range(8)]
    items = [
        {"question": f"Чанд? {i}", "choices": ["як", "ду", "се"], "answer": i % 3}
        for i in range(30)
    ]
    free = [{"question": f"Чист? {i}", "reference": "х", "metric": "chrf"} for i in range(4)]
    for name, data in (("tg", rows), ("items", items), ("free", free)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in data))
    return {name: tmp_path / f"{name}.jsonl" for name in ("tg", "items", "free")}


def floor_threads() -> str:
    return "1 thread" if torch.get_num_threads() > 1 else "2 threads"


def _request(models: tuple[Path, Path], files: dict[str, Path], cache: Path, **more: Any) -> Any:
    return CheckRequest(
        str(models[0]),
        str(models[1]),
        texts={"tg": files["tg"]},
        tasks={"items": files["items"], "free": files["free"]},
        seq_len=64,
        max_tokens=4,
        cache=cache,
        **more,
    )


@pytest.fixture
def report(models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path) -> Report:
    found: Report = check(
        _request(models, files, tmp_path / "c", prompts=3, noise_floor=True, gated=False)
    )
    return found


def test_a_report_has_texts_tasks_noise_and_layers(report: Report) -> None:
    (text,) = report.texts
    assert set(text.by_kind) == {"news", "law"}
    assert sum(n for n, *_ in text.by_kind.values()) == text.n_tokens
    assert sum(n for n, *_ in text.by_position.values()) == text.n_tokens
    assert 0 < text.kl.low < text.kl.estimate < text.kl.high
    assert text.kl_p99.estimate <= text.kl_max
    assert {(t.name, t.scoring, t.primary) for t in report.tasks} == {
        ("items", "normalized", True),
        ("items", "raw", False),
        ("free", "chrf", True),
    }
    for task in report.tasks:
        assert task.difference.low <= task.quant - task.base <= task.difference.high
    floor = {noise.how: noise.kl for noise in report.noise}
    assert list(floor) == ["eager attention", floor_threads(), "bfloat16"]
    assert max(floor["eager attention"], floor[floor_threads()]) < 1e-6 < text.kl.estimate
    assert 1e-6 < floor["bfloat16"] < text.kl.estimate
    assert len(report.layers) == 21
    assert report.verdict == ""
    assert report.quant_bytes < report.base_bytes
    assert report.generation is not None
    assert len(report.generation.texts) == 3


def test_the_report_is_json_without_nan(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["schema"] == "soroq-check/1"
    assert document["tasks"][0]["recovery"]["n"] == 30


def test_a_model_against_itself_passes_any_gate(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text(
        "[text.tg]\ndelta_nll = 0.0\nkl = 0.0\nkl_p99 = 0.0\ntop1 = 1.0\nnon_finite = 0\n"
        "[task.free]\nscore_difference = -0.9\n[task.items]\nrecovery = 0.5\n"
    )
    found = check(_request((models[0], models[0]), files, tmp_path / "c", gate=gate))
    assert found.verdict == "pass", [str(f) for f in found.findings]


@pytest.mark.parametrize(
    ("limit", "verdict", "code"),
    [("kl = 5.0", "pass", 0), ("kl = 1e-6", "fail", 1), ("kl = MEAN", "undecided", 3)],
)
def test_exit_codes_say_the_verdict(
    limit: str, verdict: str, code: int, models: tuple[Path, Path], files: dict[str, Path],
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SOROQ_CACHE", str(tmp_path))
    (tmp_path / "gate.toml").write_text(
        "[text.tg]\n" + limit.replace("MEAN", f"{report.texts[0].kl.estimate:.9f}")
    )
    arguments = ["check", *map(str, models), "--text", f"tg={files['tg']}", "--seq-len", "64"]
    with pytest.raises(SystemExit) as end:
        app([*arguments, "--gate", str(tmp_path / "gate.toml")])
    assert end.value.code == code
    assert f"verdict: {verdict}" in capsys.readouterr().out


def test_markdown_and_card_say_what_was_measured(report: Report, tmp_path: Path) -> None:
    text = markdown(report)
    assert f"{report.texts[0].kl.estimate:.3f} [" in text
    assert "law" in text
    (tmp_path / "README.md").write_text("# A model\n\nMade.\n")
    write_card(tmp_path, card_section(report))
    write_card(tmp_path, "again")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# A model")
    assert card.count(BEGIN) == 1
    assert "again" in card
    assert "KL" not in card


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)
        if tag not in ("meta", "path", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle", "rect", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(report: Report) -> None:
    document = report.to_json()
    hostile = json.loads(json.dumps(document))
    hostile["texts"][0]["worst"][0]["context"] = "<script>alert(1)</script>"
    groups = tuple(
        GroupCost((f"model.layers.{i}.<b>",), 10, {"tg": 0.1 * i, "en": 0.02}, {}) for i in range(3)
    )
    html = page([document, hostile], Sensitivity("", "", 1, groups))
    assert "model.layers.2.&lt;b&gt;: en 0.0200, tg 0.2000" in html
    seen = _Seen()
    seen.feed(html)
    assert seen.open == []
    assert seen.loads == []
    assert "http" not in html
    assert "prefers-color-scheme: dark" in html
    for svg in html.split("<svg")[1:]:
        root = ET.fromstring("<svg" + svg.partition("</svg>")[0] + "</svg>")
        for node in root.iter():
            for key in ("x", "y", "cx", "cy"):
                assert -1 <= float(node.attrib.get(key, 0)) <= 1200


def test_parts_of_a_text_have_perplexity_and_agreement(report: Report) -> None:
    (text,) = report.texts
    for parts in (text.by_kind, text.by_position):
        n = sum(part.n_tokens for part in parts.values())
        for name in ("delta_nll", "kl", "top1", "top5"):
            mean = sum(getattr(p, name) * p.n_tokens for p in parts.values()) / n
            assert mean == pytest.approx(getattr(text, name).estimate, abs=1e-6), name
        for side in ("perplexity_base", "perplexity"):
            nats = sum(math.log(getattr(p, side)) * p.n_tokens for p in parts.values()) / n
            assert math.exp(nats) == pytest.approx(getattr(text, side), rel=1e-6)
    # bytes of a kind: tokens · nats a token / ln 2 / bits a byte
    n_bytes = [
        p.n_tokens * math.log(p.perplexity) / math.log(2) / p.bits_per_byte
        for p in text.by_kind.values()
    ]
    whole = text.n_tokens * math.log(text.perplexity) / math.log(2) / text.bits_per_byte
    assert sum(n_bytes) == pytest.approx(whole, rel=1e-6)
    document = report.to_json()
    assert page([document]).count(f"{text.by_kind['law'].top1:.3f}") >= 1
    assert f"{text.by_kind['law'].bits_per_byte:.3f}" in markdown(report)
    # a file's keys are sorted as text, positions are shown as numbers
    shown = page([json.loads(json.dumps(document, sort_keys=True))])
    places = re.findall(r"<td class=n>(\d+)–\d+</td>", shown)
    assert [int(place) for place in places] == [1, 16]
    old = json.loads(json.dumps(document))
    for parts in (old["texts"][0]["by_kind"], old["texts"][0]["by_position"]):
        parts.update({name: part[:3] for name, part in parts.items()})
    assert "law" in page([old])


def test_pages_compare_candidates_of_one_base_on_one_text(report: Report, tmp_path: Path) -> None:
    document = json.loads(json.dumps(report.to_json()))
    files = [tmp_path / name for name in ("a.json", "b.json")]

    def told(change: Any) -> str:
        other = json.loads(json.dumps(document))
        change(other)
        for file, one in zip(files, (document, other), strict=True):
            file.write_text(json.dumps(one))
        with pytest.raises(CheckError) as error:
            page_of(files, tmp_path / "page.html")
        return str(error.value)

    assert "on other windows" in told(lambda d: d["settings"]["sets"].update(tg="x"))
    assert "of one base" in told(lambda d: d["texts"][0].update(perplexity_base=1e3))
    assert "not whole: KeyError('tasks')" in told(lambda d: d.pop("tasks"))
    assert "schema 'soroq-check/9'" in told(lambda d: d.update(schema="soroq-check/9"))
    assert not (tmp_path / "page.html").exists()
    files[1].write_text(json.dumps(document))
    page_of(files, tmp_path / "page.html")
    assert "quality against size" in (tmp_path / "page.html").read_text()


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(400.0, 0.1), (380.0, 0.5), (390.0, 0.6), (440.0, 0.01), (450.0, 0.02)]
    assert _front(points) == [(380.0, 0.5), (400.0, 0.1), (440.0, 0.01)]


def test_shots_that_leave_nothing_are_refused(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckError, match="30 shots leave no item"):
        check(_request(models, files, tmp_path / "c", shots=30))
    assert not (tmp_path / "c").exists()  # nothing was run before


def test_letters_go_to_z_and_no_further(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    for n in (26, 27):
        row = {"question": "?", "choices": [f"{i}." for i in range(n)], "answer": n - 1}
        files["items"].write_text("\n".join(json.dumps(row) for _ in range(2)))
        request = _request(models, files, tmp_path / "c", mode="letter")
        if n == 26:
            (task,) = (t for t in check(request).tasks if t.name == "items")
            assert (task.scoring, task.n) == ("letter", 2)
    with pytest.raises(CheckError, match="has 27 choices, --mode letter has 26"):
        check(request)


def test_a_cache_that_can_not_be_made_is_one_clear_line(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "c").write_text("in the way")
    with pytest.raises(OutputError, match="can't make the folder"):
        check(_request(models, files, tmp_path / "c"))


def test_a_gate_on_what_is_not_given_stops_before_anything_runs(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text("[text.ru]\nkl = 1.0\n")
    with pytest.raises(CheckError, match="--text ru=FILE"):
        check(_request(models, files, tmp_path / "c", gate=gate))
    assert not (tmp_path / "c").exists()


def test_free_answers_of_two_metrics_are_two_results(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"question": f"{i}?", "reference": "х", "metric": m} for i in range(3)
            for m in ("exact", "chrf")]  # fmt: skip
    files["free"].write_text("\n".join(json.dumps(row) for row in rows))
    found = check(_request(models, files, tmp_path / "c"))
    free = [(t.scoring, t.primary, t.n) for t in found.tasks if t.name == "free"]
    assert free == [("chrf", True, 3), ("exact", False, 3)]


TAJIK = "Пагоҳӣ кӯдакон ба мактаб омаданд ва муаллим аз таърихи шаҳр нақл кард. " * 3
RUSSIAN = "Утром дети пришли в школу, и учитель рассказал им, как строили этот город. " * 3


@pytest.mark.parametrize(
    ("quant", "verdict"), [([TAJIK] * 36, "pass"), ([TAJIK] * 24 + [RUSSIAN] * 12, "fail")]
)
def test_the_default_gate_sees_a_switch_to_russian(quant: list[str], verdict: str) -> None:
    measured = _generation_measures(*([health(t) for t in ts] for ts in ([TAJIK] * 36, quant)))
    found = {f.metric: f.verdict for f in judge(read_gate(None), measured)}
    assert found == {
        "empty": "pass",
        "repetition_increase": "pass",
        "cyrillic_drop": "pass",  # Russian is Cyrillic too
        "foreign_increase": verdict,
    }


def test_reports_from_before_a_share_are_still_shown(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json()))
    assert ">foreign<" in page([document])
    for side in ("base", "quant"):
        del document["generation"][side]["foreign"]
    assert ">foreign<" not in page([document])


# One process imports everything once and forks a child for every run. Each child is killed by a
# real SIGKILL at a file that it is about to put in its place (odd points), or just did (even ones).
KILLED = """
import gc, json, os, signal, sys
import torch
torch.set_num_threads(1)
from soroq import cli
import soroq.io.writer as writer
import transformers.models.gemma3.modeling_gemma3
gc.collect()
gc.freeze()  # children needn't look through all of this

def run(arguments, cache, stop):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen, replace = [0], os.replace
    def counted(*names):
        seen[0] += 1
        if seen[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        seen[0] += 1
        if seen[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    writer.os.replace = counted
    os.environ["SOROQ_CACHE"] = cache
    sys.argv = ["soroq", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        print("points", seen[0], flush=True)
        os._exit(end.code or 0)

for arguments, cache, stop in json.load(sys.stdin):
    print("status", run(arguments, cache, stop), flush=True)
"""


def _run_killed(runs: list[tuple[list[str], Path, int]]) -> list[str]:
    """Run `soroq check` several times; stop: the point where it is killed, 0: never."""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=json.dumps([(arguments, str(cache), stop) for arguments, cache, stop in runs]),
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("status", "points"))]


def _told(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text())
    assert document.pop("seconds") > 0
    return document


def test_killed_and_resumed_checks_end_with_the_same_report(
    models: tuple[Path, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    def arguments(name: str) -> list[str]:
        return [
            "check", *map(str, models), "--text", f"tg={files['tg']}", "--seq-len", "64",
            "--task", f"items={files['items']}", "--task", f"free={files['free']}",
            "--max-tokens", "4", "--prompts", "5", "--noise-floor", "--gate", "default",
            "--out", str(tmp_path / f"{name}.json"), "--markdown", str(tmp_path / f"{name}.md"),
        ]  # fmt: skip

    count, status = _run_killed([(arguments("whole"), tmp_path / "whole", 0)])
    points = int(count.split()[1])
    assert status == "status 256"  # exit code 1: the gate fails
    assert points > 40
    # one kill each, spread over the run, before a file is in its place and behind
    stops = [1, points // 4 * 2, points // 2 + 1, points - 2]
    runs: list[tuple[list[str], Path, int]] = []
    for stop in stops:
        runs += [(arguments(f"at-{stop}"), tmp_path / f"at-{stop}", n) for n in (stop, 0)]
    # and one that is killed again and again, after every fifth file
    often = [(arguments("often"), tmp_path / "often", 10)] * (points // 10 + 2)
    lines = _run_killed(runs + often)
    statuses = [line for line in lines if line.startswith("status")]
    assert statuses[: 2 * len(stops)] == ["status 9", "status 256"] * len(stops)
    assert statuses[2 * len(stops) :].count("status 9") >= points // 10 - 1
    assert statuses[-1] == "status 256"
    want = _told(tmp_path / "whole.json")
    for name in (*(f"at-{stop}" for stop in stops), "often"):
        assert _told(tmp_path / f"{name}.json") == want, name
        assert (tmp_path / f"{name}.md").read_text() == (tmp_path / "whole.md").read_text(), name
        assert not list(tmp_path.glob("*.tmp"))
