"""TOML to a configuration: types, overrides, and one clear line for whatever is wrong."""

import json
from pathlib import Path

import pytest

from soroq.core.errors import SchemeError
from soroq.train.config import LORA_TARGETS, load_config, make_config

MODEL = '[model]\nsource = "m"\n'


def _file(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_defaults_and_overrides(tmp_path: Path) -> None:
    path = _file(tmp_path, MODEL + "[train]\nsteps = 7\nlearning_rate = 1\n")
    config = load_config(path, ("train.steps=9", "data.shares={tg=0.9,en=0.1}", "data.corpus=c"))
    assert config.train.steps == 9
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    assert config.data.shares == {"tg": 0.9, "en": 0.1}
    assert config.data.corpus == "c"  # a text may stand without quotes
    assert config.model.lora_targets == LORA_TARGETS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL + "[train]\nlerning_rate = 1.0", r"train\.lerning_rate .*'learning_rate'\?"),
        (MODEL + "[trian]\nsteps = 1", "table trian is unknown; did you mean 'train'"),
        (MODEL + "[train]\nqqqq = 1", "train.qqqq is unknown; known: steps, batch"),
        ("[train]\nsteps = 1", "model.source is missing"),
        (MODEL + '[train]\nsteps = "many"', "train.steps is 'many'; int is needed"),
        (MODEL + "[train]\nsteps = true", "train.steps is True; int is needed"),
        (MODEL + "[train]\nsteps = 0", "train.steps is 0; it must be above 0"),
        (MODEL + "[train]\nbatch = 5\nmicro_batch = 2", "5 is no multiple of"),
        (MODEL + "[train]\nwarmup = 0.8\ndecay = 0.4", "together at most 1"),
        (MODEL + '[train]\noptimizer = "sgd"', "'sgd' is unknown; known: adamw, muon"),
        (MODEL + '[train]\ncompute = "float16"', "'float16' is unknown; known: auto"),
        (MODEL + "[data]\nshares = { tg = 0 }", "must be positive"),
        (MODEL + '[data]\nshares = { tg = "x" }', "write { tg = 0.8, en = 0.2 }"),
        (MODEL + "[data]\nseq_len = 4", "at least 8 tokens"),
        (MODEL + "[data]\nvalid_share = 1.0", "a share below 1"),
        (MODEL + "lora_rank = -1", "0 trains all weights"),
        ("model = 1", r"model is no table; write \[model\]"),
        ("[model", "not readable as TOML"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message) as raised:
        load_config(_file(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("override", ["train.steps", "steps=1", "=1", "train.=2"])
def test_an_override_that_is_none_says_how_to_write_one(tmp_path: Path, override: str) -> None:
    with pytest.raises(SchemeError, match=r"write table\.key=value"):
        load_config(_file(tmp_path, MODEL), (override,))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="does not exist"):
        load_config(tmp_path / "none.toml")


def test_the_configurations_that_come_with_soroq_are_valid() -> None:
    folder = Path(__file__).parents[2] / "train" / "configs"
    files = sorted(folder.glob("*.toml"))
    assert files
    for file in files:
        assert load_config(file).train.steps > 0


def test_a_configuration_survives_json() -> None:
    given = {"model": {"source": "m"}, "data": {"files": ["a", "b"], "shares": {"tg": 1.0}}}
    config = make_config(given, "t")
    assert make_config(json.loads(json.dumps(config.to_json())), "t") == config
