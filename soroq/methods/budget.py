"""Choose one option for each unit so that the whole fits a budget: a multiple-choice knapsack.

Costs add up (each unit's loss alone is small, and small losses of different layers hardly
interact), so the best mix for a given exchange rate of bytes against loss is found unit by unit.
The upgrades on each unit's convex hull are taken in the order of loss saved a byte (Kellerer,
Pferschy & Pisinger, Knapsack Problems, 2004, ch. 11.2); what is left is given to the best upgrades
that still fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from soroq.core.errors import SchemeError


@dataclass(frozen=True)
class Option:
    """One way to store a unit: its bytes, and what it costs (any additive loss).

    losses: parts of the cost that a limit is set on, one a language; () is the cost itself.
    """

    name: str
    n_bytes: int
    cost: float
    losses: tuple[float, ...] = ()


def hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull, by rising bytes and falling cost."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.n_bytes, o.cost)):
        if kept and option.cost >= kept[-1].cost:
            continue
        while len(kept) >= 2 and _gain(kept[-2], option) >= _gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def _gain(a: Option, b: Option) -> float:
    """Return the cost saved a byte by going from a to b."""
    return (a.cost - b.cost) / max(b.n_bytes - a.n_bytes, 1)


def choose_within(units: Sequence[Sequence[Option]], max_bytes: int) -> list[Option]:
    """Return one option a unit with at most max_bytes in all and nearly the least cost.

    Raises SchemeError when even the smallest options don't fit.
    """
    hulls = [hull(options) for options in units]
    places = [0] * len(hulls)
    used = sum(h[0].n_bytes for h in hulls)
    if used > max_bytes:
        raise SchemeError(
            f"the budget of {max_bytes / 1e6:.1f} MB is too small: the smallest formats take "
            f"{used / 1e6:.1f} MB"
        )
    steps = sorted(
        (
            (_gain(h[i], h[i + 1]), unit, i + 1)
            for unit, h in enumerate(hulls)
            for i in range(len(h) - 1)
        ),
        key=lambda step: -step[0],
    )
    for _, unit, place in steps:
        if places[unit] != place - 1:
            continue  # an earlier upgrade of this unit did not fit
        more = hulls[unit][place].n_bytes - hulls[unit][place - 1].n_bytes
        if used + more <= max_bytes:
            places[unit] = place
            used += more
    chosen = [h[place] for h, place in zip(hulls, places, strict=True)]
    return _fill(units, chosen, max_bytes)


def _fill(units: Sequence[Sequence[Option]], chosen: list[Option], max_bytes: int) -> list[Option]:
    """Use up what is left: the best single change that fits, again and again."""
    used = sum(option.n_bytes for option in chosen)
    while True:
        best: tuple[float, int, Option] | None = None
        for unit, options in enumerate(units):
            for option in options:
                saved = chosen[unit].cost - option.cost
                fits = used - chosen[unit].n_bytes + option.n_bytes <= max_bytes
                if fits and saved > 0 and (best is None or saved > best[0]):
                    best = (saved, unit, option)
        if best is None:
            return chosen
        _, unit, option = best
        used += option.n_bytes - chosen[unit].n_bytes
        chosen[unit] = option


def choose_below(units: Sequence[Sequence[Option]], max_loss: float) -> list[Option]:
    """Return one option a unit with nearly the fewest bytes of which no loss sums above max_loss.

    Raises SchemeError when even the largest options lose more.
    """
    low = sum(min(o.n_bytes for o in options) for options in units)
    high = sum(max(o.n_bytes for o in options) for options in units)
    least = worst_loss(choose_within(units, high))
    if least > max_loss:
        raise SchemeError(
            f"a loss of {max_loss:g} can't be reached: the largest formats are expected to lose "
            f"{least:.4f}"
        )
    while low < high:
        middle = (low + high) // 2
        if worst_loss(choose_within(units, middle)) <= max_loss:
            high = middle
        else:
            low = middle + 1
    return choose_within(units, high)


def worst_loss(chosen: Sequence[Option]) -> float:
    """Return the largest of the summed losses."""
    columns = zip(*(option.losses or (option.cost,) for option in chosen), strict=True)
    return max(float(sum(column)) for column in columns)
