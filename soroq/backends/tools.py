"""TOOLS: which other quantizers can be run, and what soroq's words mean to each.

    job = translate("llmcompressor", recipe, modules)
    job.what                    # "GPTQ"
    job.arguments               # what the tool is given, and what the manifest records

What a tool can't do is refused with the reason, never dropped. `int4` and `fp8` are the best that
a tool has, as they are the best that soroq has.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs

AUTOROUND_STEPS = 200  # its own default, and what its documentation compares with


@dataclass(frozen=True)
class Job:
    """One run of a tool. what: the method in words. calibrated: it looks at text."""

    tool: str
    what: str
    arguments: dict[str, Any]
    calibrated: bool


@dataclass(frozen=True)
class Tool:
    """One quantizer. requirements: as tested, for pip. schemes: what each of soroq's runs here."""

    name: str
    module: str
    requirements: tuple[str, ...]
    schemes: dict[str, str]
    arguments: Callable[[Recipe, list[str]], dict[str, Any]]


def _llmcompressor(recipe: Recipe, skipped: list[str]) -> dict[str, Any]:
    scheme = recipe.scheme
    method = LLMCOMPRESSOR[scheme.name]
    if method == "AWQ" and skipped:
        raise SchemeError(
            f"llmcompressor's AWQ (0.14) divides by zero when linears are left out ({skipped[0]}); "
            "drop --skip, or take --scheme int4-gptq"
        )
    modifiers = {"GPTQ": "GPTQModifier", "AWQ": "AWQModifier"}
    activation = scheme.activation
    group = {
        "targets": ["Linear"],
        "weights": _compressed_args(scheme.weight, "channel"),
        "input_activations": (
            _compressed_args(activation, "token" if activation.dynamic else "tensor")
            if activation
            else None
        ),
    }
    return {
        "modifier": modifiers.get(method, "QuantizationModifier"),
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *skipped],
        "dampening_frac": recipe.damp_ratio,
    }


def _compressed_args(args: QuantArgs, whole: str) -> dict[str, Any]:
    """Return numbers as compressed-tensors names them; `whole`: the strategy without groups."""
    strategy = "block" if args.block else "group" if args.group_size else whole
    given: dict[str, Any] = {
        "num_bits": args.bits,
        "type": args.dtype,
        "symmetric": args.symmetric,
        "strategy": strategy,
        "dynamic": args.dynamic,
    }
    if args.block:
        given["block_structure"] = list(args.block)
    elif args.group_size:
        given["group_size"] = args.group_size
    return given


def _gptqmodel(recipe: Recipe, skipped: list[str]) -> dict[str, Any]:
    weight = recipe.scheme.weight
    return {
        "bits": weight.bits,
        "group_size": -1 if weight.group_size is None else weight.group_size,
        "sym": weight.symmetric,
        "desc_act": False,
        "act_group_aware": weight.group_size is not None,  # its default, which a row can't have
        "damp_percent": recipe.damp_ratio,
        "format": "gptq_v2",  # v1 can't hold a zero point of 0
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in skipped},
    }


def _autoround(recipe: Recipe, skipped: list[str]) -> dict[str, Any]:
    weight = recipe.scheme.weight
    return {
        "scheme": "W4A16",
        "bits": weight.bits,
        "group_size": -1 if weight.group_size is None else weight.group_size,
        "sym": weight.symmetric,
        "iters": AUTOROUND_STEPS,
        "batch_size": min(4, recipe.n_samples),
        "ignore_layers": ",".join(skipped),
        # GPTQ's v1, which it writes, can't hold a zero point of 0
        "format": "auto_gptq" if weight.symmetric else "auto_awq",
    }


LLMCOMPRESSOR = {
    "int4": "GPTQ",
    "int4-gptq": "GPTQ",
    "int4-awq": "AWQ",
    "int4-rtn": "rounding",
    "int8-rtn": "rounding",
    "fp8": "rounding",
    "fp8-rtn": "rounding",
    "fp8-static": "rounding with measured activations",
    "fp8-block": "rounding",
}
CALIBRATED = ("GPTQ", "AWQ", "AutoRound", LLMCOMPRESSOR["fp8-static"])

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "llmcompressor",
            "llmcompressor",
            ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0"),
            LLMCOMPRESSOR,
            _llmcompressor,
        ),
        Tool(
            "gptqmodel",
            "gptqmodel",
            ("gptqmodel==7.6.0", "optimum==2.3.0"),
            {"int4": "GPTQ", "int4-gptq": "GPTQ"},
            _gptqmodel,
        ),
        Tool(
            "autoround",
            "auto_round",
            ("auto-round==0.15.1",),
            {"int4": "AutoRound"},
            _autoround,
        ),
    )
}


def get_tool(name: str) -> Tool:
    """Return a tool by its name. Raises SchemeError for an unknown one."""
    if name not in TOOLS:
        raise SchemeError(f"unknown --backend {name!r}; known: {', '.join(sorted(TOOLS))}")
    return TOOLS[name]


def translate(name: str, recipe: Recipe, modules: Collection[str]) -> Job:
    """Return what a tool is to be given for a recipe on a model with these linears.

    Raises SchemeError, with the reason, for what the tool can't do or isn't told about.
    """
    tool = get_tool(name)
    if recipe.scheme.name not in tool.schemes:
        raise SchemeError(
            f"{name} has no {recipe.scheme.name}; --backend {name} runs "
            f"{', '.join(sorted(tool.schemes))}"
        )
    if recipe.embed is not None:
        raise SchemeError(f"{name} is given the linears only; drop --embed")
    for pattern, scheme in recipe.overrides:
        if scheme is not None:
            raise SchemeError(
                f"--override '{pattern}:{scheme.name}': a backend gets one scheme for all; use "
                "--skip to leave modules alone"
            )
    skipped = sorted(module for module in modules if recipe.scheme_for(module) is None)
    if len(skipped) == len(modules):
        raise SchemeError("--skip leaves no module to quantize")
    what = tool.schemes[recipe.scheme.name]
    return Job(name, what, tool.arguments(recipe, skipped), what in CALIBRATED)
