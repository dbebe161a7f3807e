"""soroq's words in each tool's own, and what is refused."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from soroq.backends.tools import TOOLS, translate
from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import SCHEMES, get_scheme

LINEARS = [f"model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("up", "down")]
ROOT = Path(__file__).resolve().parents[2]


def _recipe(name: str, **changes: Any) -> Recipe:
    options = {k: changes.pop(k) for k in ("group_size", "symmetric") if k in changes}
    return Recipe(get_scheme(name, **options), n_samples=16, seq_len=64, **changes)


def test_gptqmodel_gets_numbers_damping_and_what_to_leave() -> None:
    recipe = _recipe(
        "int4-gptq",
        group_size=None,
        symmetric=True,
        damp_ratio=0.05,
        overrides=(("*layers.1.mlp.up_proj", None),),
    )
    job = translate("gptqmodel", recipe, LINEARS)
    assert (job.what, job.calibrated) == ("GPTQ", True)
    assert job.arguments == {
        "bits": 4,
        "group_size": -1,
        "sym": True,
        "desc_act": False,
        "act_group_aware": False,
        "damp_percent": 0.05,
        "format": "gptq_v2",
        "dynamic": {r"-:^model\.layers\.1\.mlp\.up_proj$": {}},
    }


def test_autoround_gets_numbers_and_a_layout_that_holds_them() -> None:
    skip = (("*layers.0*", None),)
    job = translate("autoround", _recipe("int4", group_size=64, overrides=skip), LINEARS)
    assert (
        job.arguments["ignore_layers"] == "model.layers.0.mlp.down_proj,model.layers.0.mlp.up_proj"
    )
    assert (job.arguments["group_size"], job.arguments["sym"]) == (64, False)
    assert job.arguments["format"] == "auto_awq"
    symmetric = translate("autoround", _recipe("int4", symmetric=True), LINEARS)
    assert (symmetric.arguments["sym"], symmetric.arguments["format"]) == (True, "auto_gptq")


@pytest.mark.parametrize(
    ("scheme", "modifier", "weights", "activation", "calibrated"),
    [
        ("int4", "GPTQModifier", "group", None, True),
        ("int4-awq", "AWQModifier", "group", None, True),
        ("int4-rtn", "QuantizationModifier", "group", None, False),
        ("int8-rtn", "QuantizationModifier", "group", None, False),
        ("fp8", "QuantizationModifier", "channel", ("token", True), False),
        ("fp8-static", "QuantizationModifier", "channel", ("tensor", False), True),
        ("fp8-block", "QuantizationModifier", "block", ("group", True), False),
    ],
)
def test_llmcompressor_gets_a_modifier_and_a_group(
    scheme: str,
    modifier: str,
    weights: str,
    activation: tuple[str, bool] | None,
    calibrated: bool,
) -> None:
    job = translate("llmcompressor", _recipe(scheme), LINEARS)
    assert (job.arguments["modifier"], job.calibrated) == (modifier, calibrated)
    assert job.arguments["ignore"] == ["lm_head"]
    group = job.arguments["config_groups"]["group_0"]
    numbers = SCHEMES[scheme].weight
    assert group["weights"]["strategy"] == weights
    assert (group["weights"]["num_bits"], group["weights"]["type"]) == (numbers.bits, numbers.dtype)
    assert group["weights"]["symmetric"] == numbers.symmetric
    assert group["weights"].get("group_size") == numbers.group_size
    assert group["weights"].get("block_structure") == (
        list(numbers.block) if numbers.block else None
    )
    given = group["input_activations"]
    assert (given and (given["strategy"], given["dynamic"])) == activation


REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "fold": ("gptqmodel", "int4-awq", {}, "gptqmodel has no int4-awq; .* runs int4, int4-gptq"),
    "fold-then-gptq": ("llmcompressor", "int4-awq-gptq", {}, "llmcompressor has no int4-awq-gptq"),
    "rounding": ("autoround", "int4-rtn", {}, "autoround has no int4-rtn; .* runs int4$"),
    "unknown-tool": ("hqq", "int4", {}, "unknown --backend 'hqq'; known: autoround, gptqmodel"),
    "embed": ("gptqmodel", "int4", {"embed": QuantArgs(bits=8)}, "linears only; drop --embed"),
    "mixed": (
        "gptqmodel",
        "int4",
        {"overrides": (parse_override("*up_proj:int8"),)},
        r"--override '\*up_proj:int8-rtn': a backend gets one scheme",
    ),
    "nothing-left": ("gptqmodel", "int4", {"overrides": (("*", None),)}, "leaves no module"),
    "awq-with-skips": (
        "llmcompressor",
        "int4-awq",
        {"overrides": (("*up_proj", None),)},
        r"divides by zero when linears are left out \(model.layers.0.mlp.up_proj\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_tool_cannot_do_is_refused_with_the_reason(case: str) -> None:
    tool, scheme, changes, message = REFUSED[case]
    with pytest.raises(SchemeError, match=message) as error:
        translate(tool, _recipe(scheme, **changes), LINEARS)
    assert "\n" not in str(error.value)


def test_every_word_a_tool_is_said_to_know_is_translated() -> None:
    for tool in TOOLS.values():
        for scheme in tool.schemes:
            job = translate(tool.name, _recipe(scheme), LINEARS)
            assert job.what == tool.schemes[scheme] and dataclasses.asdict(job)["arguments"]


def test_the_extra_and_the_peers_file_name_the_versions_of_the_tools() -> None:
    wanted = {requirement for tool in TOOLS.values() for requirement in tool.requirements}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]["backends"]) == wanted
    assert wanted <= set((ROOT / "bench/peers/requirements.txt").read_text().split())
