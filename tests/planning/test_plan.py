"""Plans: bytes equal what checkpoints have, the cache counts windows, bad input is one line."""

import json
from pathlib import Path

import pytest

from soroq import cli
from soroq.bench.measured import RECORDS, measured
from soroq.core.errors import CheckpointError, SoroqError
from soroq.io.checkpoint import open_checkpoint
from soroq.models.tiny import write_tiny_model
from soroq.planning import estimate as planning
from soroq.planning.devices import DEVICES, Device, get_device
from soroq.planning.estimate import FORMATS, Use, estimate
from soroq.planning.shapes import PUBLISHED, find_shape, shape_of


def _soroq(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["soroq", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("architecture", ["gemma3_text", "llama", "qwen3"])
def test_weights_are_those_of_a_checkpoint(architecture: str, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", architecture)
    shape = find_shape(str(base))
    checkpoint = open_checkpoint(base)
    matrices = sum(
        info.nbytes
        for name in checkpoint.names()
        if len((info := checkpoint.info(name)).shape) == 2
    )
    assert shape.weight_bytes(None, None)[0] == matrices


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gemma3-270m", 0.268),
        ("gemma3-1b", 1.0),
        ("gemma3-4b", 3.88),
        ("gemma3-12b", 11.77),
        ("gemma3-27b", 27.0),
    ],
)
def test_published_shapes_have_their_weights(name: str, billions: float) -> None:
    # arXiv 2503.19786, table 1: embedding and other parameters, without the vision tower
    assert PUBLISHED[name].parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_bytes_are_those_that_decoding_was_measured_with() -> None:
    recorded = {}
    for path in RECORDS.glob("cpu-*/cpu-decode.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            recorded[entry["kernel"]] = entry["bytes"]
    by_name = {made.name: made for made in FORMATS}
    for kernel, name in (
        ("soroq gptq-e8", "int4, head int8"),
        ("soroq gptq-e4", "int4, head int4"),
    ):
        made = by_name[name]
        read = PUBLISHED["gemma3-270m"].weight_bytes(made.linears, made.embed)[1]
        assert read == pytest.approx(recorded[kernel], rel=0.025)


def test_measured_shares_are_what_the_records_say() -> None:
    wanted = measured()
    assert {n: (s.value, s.source) for n, s in planning.measured().items()} == {
        name: (entry["value"], entry["source"]) for name, entry in wanted.items()
    }
    assert planning.efficiency("cpu")[0].source == "assumed"  # no machine's datasheet is known


def test_sliding_layers_keep_their_window_only() -> None:
    shape = PUBLISHED["gemma3-1b"]
    assert (shape.layers, shape.sliding_layers) == (26, 22)
    a_token = 2 * 1 * 256 * 2
    assert shape.kv_bytes(100) == 26 * 100 * a_token
    assert shape.kv_bytes(8192) == (22 * 512 + 4 * 8192) * a_token
    assert shape.kv_bytes(8192, bits=8) * 2 == shape.kv_bytes(8192)


def test_speed_and_money_follow_from_bytes() -> None:
    device = Device("d", "cpu", 8, 1.0, 10, 100, 500, "made up")
    made = FORMATS[2]
    shape = PUBLISHED["gemma3-1b"]
    use = Use(1024, 2, 10, 100, 0.1, 5)
    found = estimate(shape, device, made, use)
    reads, kernels = planning.efficiency("cpu")
    read = shape.weight_bytes(made.linears, made.embed)[1] + shape.kv_bytes(1024)
    assert found.tokens_a_second == pytest.approx(2 * 10e9 * reads.value * kernels.value / read)
    yearly = 0.1 * 1000 * 0.1 + 100  # 100 W for 1,000 hours at 0.1 USD, and 500 USD over 5 years
    assert found.usd_a_year == pytest.approx(yearly)
    million = found.tokens_a_second * 3600 * 1000 / 1e6
    assert found.usd_a_million == pytest.approx(yearly / million)
    assert found.kwh_a_million == pytest.approx(100 / million)
    assert found.fits and found.most_users > 100


def test_what_does_not_fit_is_said() -> None:
    found = estimate(PUBLISHED["gemma3-27b"], get_device("rtx3060-12gb"), FORMATS[4], Use())
    assert not found.fits and found.most_users == 0


def test_every_device_names_its_source() -> None:
    for device in DEVICES.values():
        assert device.source and 0 < device.usable <= 1 and device.kind in ("cpu", "gpu")


def test_the_command_prints_json_and_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "gemma3-1b", "--device", "rpi5-8gb", "--memory", "16GB"]
    words += ["--bandwidth", "34GB/s", "--markdown", str(tmp_path / "plan.md")]
    assert _soroq(monkeypatch, *words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [d["name"] for d in document["devices"]] == ["rpi5-8gb", "custom"]
    assert len(document["devices"][0]["formats"]) == len(FORMATS)
    assert "| int4, head int8 |" in (tmp_path / "plan.md").read_text()
    assert _soroq(monkeypatch, *words) == 0
    assert "All are estimates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "none of gemma3-270m"),
        (["gemma3-1b", "--device", "pi"], "unknown device 'pi'; known: rpi5-8gb"),
        (["gemma3-1b", "--memory", "8GB"], "needs --memory and --bandwidth"),
        (["gemma3-1b", "--memory", "8", "--bandwidth", "fast"], "--bandwidth 'fast'"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _soroq(monkeypatch, "plan", *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_configuration_without_a_field_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        shape_of("x", {"hidden_size": 8})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SoroqError, match="is not JSON"):
        find_shape(str(tmp_path / "config.json"))
