"""Schemes: names, options that don't fit, recipes as JSON."""

import pytest

from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe, parse_override, recipe_from_json
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import SCHEMES, get_scheme


def test_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(SchemeError, match="unknown scheme 'int4-akq'; known: .*int4-awq"):
        get_scheme("int4-akq")


def test_group_size_that_does_not_divide_says_what_to_do() -> None:
    args = QuantArgs(group_size=128)
    with pytest.raises(
        SchemeError, match=r"6944 is not divisible by group_size 128; use --group-size 32"
    ):
        args.check_shape("model.layers.3.mlp.down_proj", (640, 6944))
    args.check_shape("model.layers.3.mlp.down_proj", (640, 1152))


@pytest.mark.parametrize("name", ["fp8", "fp8-block"])
def test_float_schemes_refuse_groups_and_zero_points(name: str) -> None:
    with pytest.raises(SchemeError):
        get_scheme(name, group_size=64)
    with pytest.raises(SchemeError):
        get_scheme(name, symmetric=False)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_recipe_survives_json(name: str) -> None:
    recipe = Recipe(
        SCHEMES[name],
        overrides=(("model.layers.0.*", get_scheme("int8-rtn")), ("*.down_proj", None)),
        embed=QuantArgs(bits=8, group_size=32),
        seed=7,
    )
    assert recipe_from_json(recipe.to_json()) == recipe


def test_broken_recipe_json_is_a_scheme_error() -> None:
    for text in ("", "[]", "{}", '{"scheme": 3}', Recipe(SCHEMES["int4"]).to_json()[:-20]):
        with pytest.raises(SchemeError, match="not a recipe"):
            recipe_from_json(text)


def test_first_matching_override_wins() -> None:
    recipe = Recipe(
        SCHEMES["int4"],
        overrides=(parse_override("model.layers.0.*:skip"), parse_override("model.layers.*:int8")),
    )
    assert recipe.scheme_for("model.layers.0.mlp.up_proj") is None
    other = recipe.scheme_for("model.layers.1.mlp.up_proj")
    assert other is not None and other.weight.bits == 8


@pytest.mark.parametrize("text", ["int8", ":int8", "a.*:int5"])
def test_bad_override_is_refused(text: str) -> None:
    with pytest.raises(SchemeError):
        parse_override(text)


def test_bits_per_weight_counts_scales_and_zero_points() -> None:
    assert QuantArgs(group_size=128).bits_per_weight((640, 1024)) == pytest.approx(4 + 16 / 128)
    asymmetric = QuantArgs(group_size=32, symmetric=False)
    assert asymmetric.bits_per_weight((640, 1024)) == pytest.approx(4 + 20 / 32)
    assert QuantArgs(group_size=None).bits_per_weight((640, 1024)) == pytest.approx(4 + 16 / 1024)
