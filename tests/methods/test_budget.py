"""The knapsack against brute force on small instances."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.core.errors import SchemeError
from soroq.methods.budget import Option, choose_below, choose_within, hull

Units = list[list[Option]]


@st.composite
def _units(draw: st.DrawFn) -> Units:
    units = []
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 4))
        sizes = draw(st.lists(st.integers(1, 50), min_size=n, max_size=n))
        costs = draw(st.lists(st.floats(0, 10), min_size=n, max_size=n))
        units.append(
            [Option(str(i), b, c) for i, (b, c) in enumerate(zip(sizes, costs, strict=True))]
        )
    return units


@given(_units(), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_chosen_mixes_fit_and_are_nearly_the_best(units: Units, slack: int) -> None:
    budget = sum(min(o.n_bytes for o in options) for options in units) + slack
    chosen = choose_within(units, budget)
    assert all(option in options for option, options in zip(chosen, units, strict=True))
    assert sum(o.n_bytes for o in chosen) <= budget
    best = min(
        sum(o.cost for o in combination)
        for combination in itertools.product(*units)
        if sum(o.n_bytes for o in combination) <= budget
    )
    # the relaxation's bound: worse than the best by less than one upgrade
    largest = max(max(o.cost for o in options) - min(o.cost for o in options) for options in units)
    assert sum(o.cost for o in chosen) <= best + largest + 1e-9


@given(_units(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_loss_limits_are_kept(units: Units, share: float) -> None:
    least = sum(min(o.cost for o in options) for options in units)
    most = sum(max(o.cost for o in options) for options in units)
    limit = least + share * (most - least) + 1e-9
    assert sum(o.cost for o in choose_below(units, limit)) <= limit


def test_hull_drops_what_a_mixture_beats() -> None:
    a, b, c, d = Option("a", 1, 10), Option("b", 2, 9.5), Option("c", 3, 2), Option("d", 4, 3)
    assert hull([d, c, b, a]) == [a, c]


def test_impossible_budgets_say_what_is_possible() -> None:
    units = [[Option("a", 2_000_000, 1.0)]]
    with pytest.raises(SchemeError, match=r"too small: the smallest formats take 2\.0 MB"):
        choose_within(units, 1_000_000)
    with pytest.raises(SchemeError, match="can't be reached"):
        choose_below(units, 0.5)
