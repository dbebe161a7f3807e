"""What vLLM's own classes said about soroq's checkpoints, against soroq's rules and its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from soroq.core.recipe import Recipe
from soroq.core.schemes import SCHEMES, get_scheme
from soroq.inspection import describe
from soroq.io.formats.registry import FORMATS, format_of
from soroq.io.formats.serving import SERVED, objections
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.convert import convert
from soroq.pipeline.run import quantize

GOLDEN = Path(__file__).parent / "golden"
ANSWERS: list[dict[str, Any]] = json.loads((GOLDEN / "vllm.json").read_text())["answers"]
MODULE = "model.layers.0.self_attn.k_proj"
IDS = [f"{a['case']}-{a['format']}-{a['shape']}" for a in ANSWERS]


@pytest.mark.parametrize("answer", ANSWERS, ids=IDS)
def test_rules_say_what_vllm_said(answer: dict[str, Any]) -> None:
    reason = objections(answer["config"])["vLLM 0.33"]
    assert (reason is None) == ("opens" in answer), (reason, answer.get("refuses"))


@pytest.mark.parametrize("answer", ANSWERS, ids=IDS)
def test_the_configuration_vllm_was_asked_about_is_the_one_written_today(
    answer: dict[str, Any],
) -> None:
    format_ = FORMATS[answer["format"]]
    ((_, weight, activation),) = format_.parse(answer["config"])
    assert format_of(answer["config"]).name == answer["format"]
    again = format_.config({MODULE: (weight, activation)}, [])
    assert json.loads(json.dumps(again)) == answer["config"]


def test_every_scheme_was_asked_about_in_every_format_that_holds_it() -> None:
    asked = {(a["format"], *_numbers(a["config"])) for a in ANSWERS}
    for scheme in SCHEMES.values():
        for name in SERVED:
            format_ = FORMATS[name]
            if format_.refuses(scheme.weight, scheme.activation, (256, 640)) is None:
                config = format_.config({MODULE: (scheme.weight, scheme.activation)}, [])
                assert (name, *_numbers(config)) in asked, (scheme.name, name)


def _numbers(config: dict[str, Any]) -> tuple[Any, Any]:
    ((_, weight, activation),) = format_of(config).parse(config)
    return weight, activation


@pytest.mark.parametrize(
    "config",
    [a["config"] for a in ANSWERS if a["format"] == "compressed-tensors"],
    ids=[i for i in IDS if "compressed" in i],
)
def test_the_published_schema_takes_compressed_tensors(config: dict[str, Any]) -> None:
    read = QuantizationConfig.model_validate(config)
    (group,) = read.config_groups.values()
    ((_, weight, _),) = format_of(config).parse(config)
    assert group.weights.num_bits == weight.bits
    assert group.weights.symmetric == weight.symmetric
    assert group.weights.group_size == weight.group_size


def test_desc_act_is_refused_by_vllm_alone() -> None:
    config = json.loads((GOLDEN / "gptq-desc-act" / "config.json").read_text())
    found = objections(config["quantization_config"])
    assert "desc_act" in str(found["vLLM 0.33"])
    assert found["SGLang 0.5.23"] is None


def test_inspect_says_who_opens_a_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = write_tiny_model(tmp_path / "base", "llama", num_hidden_layers=1)
    scheme = get_scheme("int4-rtn", group_size=32, symmetric=False)
    quantize(base, tmp_path / "out", recipe=Recipe(scheme), calibration=None)
    convert(tmp_path / "out", tmp_path / "gptq", "gptq-v2")
    opens = dict(describe(tmp_path / "out").facts)
    assert opens["vLLM 0.33"] == opens["SGLang 0.5.23"] == "opens it, by its rules"
    assert "convert to awq" in dict(describe(tmp_path / "gptq").facts)["vLLM 0.33"]
    # a GGUF file is no folder that they open, and numbers soroq can't read are still described
    gguf = dict(describe(GOLDEN / "gguf" / "q4_0.gguf").facts)
    assert "vLLM 0.33" not in gguf
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    facts = dict(describe(tmp_path / "out").facts)
    assert facts["format"] == "compressed-tensors, pack-quantized"
    assert "vLLM 0.33" not in facts
