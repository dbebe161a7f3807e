"""The CPU race: who runs when, on which weights, and what is made of the samples."""

from collections.abc import Callable

import pytest
import torch

from soroq.bench.kernels import cpu_race
from soroq.bench.kernels.cpu_contender import copies_for
from soroq.bench.kernels.cpu_race import FEWEST, MOST, Runner, order, race, summarize


class Clock:
    """Time that passes only when a unit runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, ran: list[str], name: str, seconds: float, units: int) -> Runner:
    def unit(number: int) -> Callable[[], None]:
        def run() -> None:
            clock.now += seconds
            ran.append(f"{name}{number}")

        return run

    return Runner([unit(i) for i in range(units)], 2, lambda: torch.zeros(1))


def test_everyone_is_first_once_and_runs_behind_different_others() -> None:
    names = ["a", "b", "c"]
    turns = [order(names, turn) for turn in range(6)]
    assert all(sorted(turn) == names for turn in turns)
    assert {turn[0] for turn in turns} == set(names)
    before_b = {turn[turn.index("b") - 1] for turn in turns if turn[0] != "b"}
    assert before_b == {"a", "c"}


def test_units_go_round_over_all_copies_and_samples_are_of_one_product() -> None:
    clock, ran = Clock(), list[str]()
    runner = make(clock, ran, "a", cpu_race.SAMPLE_S, 3)
    race({"a": runner}, 0.0, clock=clock, rest=lambda: None)
    assert ran == [f"a{i % 3}" for i in range(len(ran))]
    # two products a unit; a unit is as long as a sample
    assert runner.samples == pytest.approx([cpu_race.SAMPLE_S * 1e6 / 2] * FEWEST)


def test_short_units_fill_a_sample_and_long_ones_need_no_warm_up() -> None:
    clock, ran = Clock(), list[str]()
    runners = {
        "s": make(clock, ran, "s", cpu_race.SAMPLE_S / 4, 1),
        "l": make(clock, ran, "l", cpu_race.WARM_S * 2, 1),
    }
    race(runners, 0.0, clock=clock, rest=lambda: None)
    assert ran.count("s0") == 4 * (1 + 2 * FEWEST)
    assert ran.count("l0") == 1 + FEWEST


def test_time_decides_how_many_samples_and_everyone_gets_as_many() -> None:
    clock, ran = Clock(), list[str]()
    runners = {name: make(clock, ran, name, cpu_race.SAMPLE_S, 1) for name in "ab"}
    race(runners, 1e9, clock=clock, rest=lambda: None)
    assert [len(runner.samples) for runner in runners.values()] == [MOST, MOST]


def test_summary_is_the_median_and_the_fifths() -> None:
    summary = summarize([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (summary.p20, summary.median, summary.p80) == (2.0, 3.5, 5.0)
    assert summarize([7.0]).p80 == 7.0


def test_copies_together_are_larger_than_the_caches() -> None:
    for nbytes in (1, 1000, cpu_race.COLD_BYTES - 1, cpu_race.COLD_BYTES, 2 * cpu_race.COLD_BYTES):
        copies = copies_for(nbytes, cpu_race.COLD_BYTES)
        assert copies * nbytes > cpu_race.COLD_BYTES >= (copies - 1) * nbytes
    assert copies_for(10, 0) == 1
