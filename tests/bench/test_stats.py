"""Intervals keep their promise: coverage and false passes by simulation, known values by hand."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from soroq.bench.quality import stats
from soroq.bench.quality.stats import (
    PairedCounts,
    bounded_mean_interval,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    quantile_interval,
    recovery_interval,
    share_interval,
    smallest_visible_difference,
    smallest_visible_mean,
    student_quantile,
)

stats.RESAMPLES = 1000  # enough for coverage, and four times as fast
REPEATS = 1000
COVERED = (0.93, 0.97)  # of REPEATS, for intervals of 95 %: three standard errors are 0.021


@pytest.mark.parametrize("n", [4, 8, 16, 64])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_mean_intervals_cover_what_they_promise(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    covered = 0
    for repeat in range(REPEATS):
        if kind == "normal":
            x = rng.normal(0.05, 0.03, n)
        else:  # a window's mean of a few hundred log-normal tokens
            x = rng.gamma(8.0, 0.05 / 8.0, n)
        interval = mean_interval(x, seed=repeat)
        covered += interval.low <= 0.05 <= interval.high
    assert COVERED[0] <= covered / REPEATS <= COVERED[1]


def _draw(
    rng: np.random.Generator, n: int, base: float, worse: float, better: float
) -> PairedCounts:
    shares = [base - worse, better, worse, 1 - base - better]
    return PairedCounts(*(int(k) for k in rng.multinomial(n, shares)))


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize(("worse", "better"), [(0.05, 0.03), (0.10, 0.08), (0.2, 0.1)])
def test_accuracy_intervals_cover_what_they_promise(n: int, worse: float, better: float) -> None:
    rng = np.random.default_rng(n)
    base = 0.6
    differences = ratios = 0
    for _ in range(REPEATS):
        counts = _draw(rng, n, base, worse, better)
        d, r = difference_interval(counts), recovery_interval(counts)
        differences += d.low <= better - worse <= d.high
        ratios += r.low <= (base + better - worse) / base <= r.high
    assert COVERED[0] <= differences / REPEATS <= COVERED[1]
    assert COVERED[0] <= ratios / REPEATS <= COVERED[1]


def test_no_changed_answer_is_not_certainty() -> None:
    counts = PairedCounts(60, 0, 0, 40)
    interval = difference_interval(counts)
    assert interval.estimate == 0
    # 0 of 100: the score interval's end is z² / (n + z²)
    assert interval.low == pytest.approx(-(1.96**2) / (100 + 1.96**2), rel=1e-3)
    ratio = recovery_interval(counts)
    assert ratio.estimate == 1
    assert 0.9 < ratio.low < 1 < ratio.high < 1.1


def test_tango_interval_of_the_published_example() -> None:
    # Tango 1998: 43 pairs agree and one does not, 95 % interval (−0.118, 0.060)
    interval = difference_interval(PairedCounts(43, 0, 1, 0))
    assert interval.estimate == pytest.approx(-1 / 44)
    assert interval.low == pytest.approx(-0.118, abs=0.002)
    assert interval.high == pytest.approx(0.060, abs=0.002)


def test_student_quantiles_are_those_of_the_tables() -> None:
    for freedom, quantile in ((1, 12.706), (2, 4.303), (3, 3.182), (6, 2.447), (7, 2.365)):
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-3)
    assert student_quantile(0.9999, 3) == pytest.approx(22.204, abs=1e-2)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar(PairedCounts(10, 1, 5, 4)) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(PairedCounts(10, 3, 3, 4)) == 1.0
    assert mcnemar(PairedCounts(10, 0, 0, 4)) == 1.0


def test_holm_adjusts_in_order_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_equal_values_are_a_point_and_one_value_tells_nothing() -> None:
    zero = mean_interval(np.zeros(5))
    assert (zero.estimate, zero.low, zero.high) == (0, 0, 0)
    alone = mean_interval([0.3])
    assert (alone.low, alone.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("n", "q", "tokens"), [(3, 0.9, 100), (8, 0.9, 100), (24, 0.9, 100), (8, 0.99, 511)]
)
def test_quantile_intervals_hold_the_quantile(n: int, q: float, tokens: int) -> None:
    """Windows differ: tokens of a log-normal divergence, each window with a factor of its own."""
    truth = _lognormal_quantile(q, 1.0, 0.4)
    rng = np.random.default_rng(0)
    covered = above = 0
    for repeat in range(200):
        groups = [rng.lognormal(rng.normal(0, 0.4), 1.0, tokens) for _ in range(n)]
        interval = quantile_interval(groups, q, seed=repeat)
        covered += interval.low <= truth <= interval.high
        above += interval.high < truth
    told = f"covered {covered}, ended below {above} of 200"
    assert covered / 200 >= 0.93, told
    # what a limit would let pass; 0.3 by percentiles of three groups
    assert above / 200 <= 0.035, told


def _lognormal_quantile(q: float, tokens: float, windows: float) -> float:
    return math.exp(NormalDist(0, math.hypot(tokens, windows)).inv_cdf(q))


@pytest.mark.parametrize("n", [4, 8, 16, 64], ids=lambda n: f"{n}-prompts")
def test_rare_changes_are_not_let_pass_unseen(n: int) -> None:
    """One answer in five falls apart: a limit of that much must be kept 39 times in 40."""
    rng = np.random.default_rng(n)
    passed = 0
    for repeat in range(REPEATS):
        changes = (rng.random(n) < 0.2).astype(float)
        passed += bounded_mean_interval(changes, seed=repeat).high < 0.2
    assert passed / REPEATS <= 0.06


def test_a_bounded_mean_of_values_that_all_differ_is_as_sure_as_the_bootstrap() -> None:
    x = np.random.default_rng(0).normal(0.02, 0.05, 40)
    assert bounded_mean_interval(x) == mean_interval(x)
    few = bounded_mean_interval(np.zeros(8))
    assert few.estimate == 0 and few.high == -few.low == pytest.approx(0.324, abs=1e-3)


def test_power_says_what_would_be_seen() -> None:
    rng = np.random.default_rng(0)
    scale = 0.03
    visible = smallest_visible_mean(rng.normal(0, scale, 16))
    seen = 0
    for repeat in range(REPEATS):
        interval = mean_interval(rng.normal(2.8 * scale / 4, scale, 16), seed=repeat)
        seen += interval.low > 0
    assert 0.65 < seen / REPEATS < 0.85  # 16 windows: the interval is a little wider than normal
    assert visible == pytest.approx(2.8 * scale / 4, rel=0.5)
    assert smallest_visible_difference(PairedCounts(500, 50, 49, 401)) == pytest.approx(
        0.028, abs=0.001
    )


def test_shares_have_wilson_intervals() -> None:
    none = share_interval(0, 16)
    assert (none.estimate, none.low) == (0, 0)
    assert none.high == pytest.approx(1.96**2 / (16 + 1.96**2), rel=1e-3)
    half = share_interval(50, 100)
    assert half.low == pytest.approx(0.404, abs=1e-3)  # Wilson's for 50 of 100: 0.404 to 0.596
    assert half.high == pytest.approx(0.596, abs=1e-3)
