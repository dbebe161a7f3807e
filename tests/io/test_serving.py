"""What vLLM's own classes said about soroq's checkpoints, against soroq's rules and its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import SCHEMES, get_scheme
from soroq.inspection import describe
from soroq.io.formats.registry import FORMATS, format_of
from soroq.io.formats.serving import (
    GGUF_TYPES,
    SERVED,
    SERVERS,
    SGLANG,
    VLLM,
    gguf_objections,
    objections,
)
from soroq.io.gguf import ARCHITECTURES
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.convert import convert
from soroq.pipeline.run import quantize

GOLDEN = Path(__file__).parent / "golden"
ANSWERS: list[dict[str, Any]] = json.loads((GOLDEN / "vllm.json").read_text())["answers"]
MODULE = "model.layers.0.self_attn.k_proj"
IDS = [f"{a['case']}-{a['format']}-{a['shape']}" for a in ANSWERS]


@pytest.mark.parametrize("answer", ANSWERS, ids=IDS)
def test_rules_say_what_vllm_said(answer: dict[str, Any]) -> None:
    reason = objections(answer["config"])[VLLM]
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
    assert "desc_act" in str(found[VLLM])
    assert found[SGLANG] is None


def test_inspect_says_who_opens_a_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = write_tiny_model(tmp_path / "base", "llama", num_hidden_layers=1)
    scheme = get_scheme("int4-rtn", group_size=32, symmetric=False)
    quantize(base, tmp_path / "out", recipe=Recipe(scheme), calibration=None)
    convert(tmp_path / "out", tmp_path / "gptq", "gptq-v2")
    opens = dict(describe(tmp_path / "out").facts)
    assert opens[VLLM] == opens[SGLANG] == "opens it, by its rules"
    assert "convert to awq" in dict(describe(tmp_path / "gptq").facts)[VLLM]
    # numbers soroq can't read are still described
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    facts = dict(describe(tmp_path / "out").facts)
    assert facts["format"] == "compressed-tensors, pack-quantized"
    assert VLLM not in facts


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(SERVED)))
def test_formats_that_neither_server_reads_say_where_to_go(name: str) -> None:
    numbers = {MODULE: (QuantArgs(bits=4, group_size=64, symmetric=False), None)}
    for server, reason in objections(FORMATS[name].config(numbers, [])).items():
        assert reason is not None, server
        (target,) = {n for n in SERVED if f"convert to {n}" in reason}
        opens = objections(FORMATS[target].config(numbers, []))
        assert opens == dict.fromkeys(SERVERS)


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(SERVED)))
def test_inspect_says_that_neither_server_opens_it(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = write_tiny_model(tmp_path / "base", "llama", num_hidden_layers=1)
    scheme = get_scheme("int4-rtn", group_size=32, symmetric=False)
    quantize(base, tmp_path / "out", recipe=Recipe(scheme), calibration=None)
    convert(tmp_path / "out", tmp_path / name, name)
    facts = dict(describe(tmp_path / name).facts)
    for server in SERVERS:
        assert "convert to" in facts[server]


def test_inspect_of_a_gguf_file_tells_llama_from_gemma() -> None:
    facts = dict(describe(GOLDEN / "gguf" / "q4_0.gguf").facts)
    assert facts["architecture"] == "gemma3_text"
    assert "gemma3_text" in facts[SGLANG]
    assert "vllm-gguf-plugin" in facts[VLLM]
    found = gguf_objections("llama")
    assert found[SGLANG] is None
    assert "vllm-gguf-plugin" in str(found[VLLM])


def test_gguf_names_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    known = set(gguf.MODEL_ARCH_NAMES.values())
    written = {model_type for model_type, _ in ARCHITECTURES.values()}
    assert {t for t in written if t in known} == set(GGUF_TYPES)
