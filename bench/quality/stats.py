"""How sure can one be: intervals for paired differences, tests, power, and what a limit decides.

    delta = nll_quant_per_window - nll_base_per_window
    mean_interval(delta)                     # Interval(estimate, low, high)
    difference_interval(PairedCounts.of(base_right, quant_right))

Everything compares the two models on the same units (windows, items), so that what makes a unit
hard cancels. Means of continuous values get the studentized bootstrap (Efron & Tibshirani 1993,
ch. 12.5), which keeps its promise with a dozen windows where the percentile bootstrap is too sure.
Shares of right answers get score intervals (Tango 1998 for the difference, Nam & Blackwelder 2002
for the ratio): a bootstrap of 100 items without one changed answer says [0, 0], these don't.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
FEW = 8
UPWARD = 16
POWER = 0.8
Floats = NDArray[np.float64]
Score = Callable[[float], float]


@dataclass(frozen=True)
class Interval:
    """An estimate and a two-sided confidence interval; n units (windows or items) stand behind."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PairedCounts:
    """How many items both models got right, only one of them, or neither."""

    both: int
    only_quant: int
    only_base: int
    neither: int

    @staticmethod
    def of(base: Sequence[bool] | NDArray[np.bool_], quant: Sequence[bool]) -> "PairedCounts":
        """Count pairs of right (True) and wrong answers to the same items."""
        b, q = np.asarray(base, dtype=bool), np.asarray(quant, dtype=bool)
        if b.shape != q.shape:
            raise ValueError(f"{b.shape} answers beside {q.shape}")
        return PairedCounts(
            int((b & q).sum()), int((~b & q).sum()), int((b & ~q).sum()), int((~b & ~q).sum())
        )

    @property
    def n(self) -> int:
        return self.both + self.only_quant + self.only_base + self.neither

    @property
    def accuracy_base(self) -> float:
        return (self.both + self.only_base) / self.n

    @property
    def accuracy(self) -> float:
        return (self.both + self.only_quant) / self.n


def mean_interval(
    values: Sequence[float] | Floats, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of one value per unit with its studentized bootstrap interval.

    Fewer than FEW units have too few different resamples: they get Student's t interval. All
    values equal gives a point; one unit alone can't tell: [−inf, inf].
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    mean = float(x.mean())
    if np.ptp(x) == 0 and (n > 1 or mean == 0):
        return Interval(mean, mean, mean, n, level)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n, level)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if n < FEW:
        reach = student_quantile((1 + level) / 2, n - 1) * error
        return Interval(mean, mean - reach, mean + reach, n, level)
    rng = np.random.default_rng(seed)
    drawn = x[rng.integers(0, n, (RESAMPLES, n))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    usable = errors > 1e-9 * error
    t = (drawn.mean(axis=1)[usable] - mean) / errors[usable]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error, n, level)


def student_quantile(p: float, freedom: int) -> float:
    """Return the p-quantile (p > 1/2) of Student's t with whole degrees of freedom."""

    def inside(t: float) -> float:
        """P(|T| < t), Abramowitz & Stegun 26.7.3 and 26.7.4."""
        angle = math.atan(t / math.sqrt(freedom))
        cosine, sine = math.cos(angle), math.sin(angle)
        odd = freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(1 if odd else 0, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def bounded_mean_interval(
    values: Sequence[float] | Floats, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of one value in [−1, 1] a unit, most of them alike, with its interval.

    Eight answers of which none changed don't say that none would: while fewer than FEW units differ
    from the commonest value, the interval reaches at least as far as Wilson's does for a share of
    which nothing was seen, each unseen change counted as 1.
    """
    x = np.asarray(values, dtype=np.float64)
    found = mean_interval(x, level=level, seed=seed)
    _, counts = np.unique(x, return_counts=True)
    if len(x) - counts.max() >= FEW:
        return found
    reach = share_interval(0, len(x), level=level).high
    low, high = min(found.low, found.estimate - reach), max(found.high, found.estimate + reach)
    return Interval(found.estimate, low, high, found.n, level)


def quantile_interval(
    groups: Sequence[Floats], q: float, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the q-quantile of all values; the interval comes from resampling whole groups.

    Resampled quantiles of a few groups lie too close together (of three groups the percentile
    interval missed a high quantile from below 3 times in 10), so their spread is widened to that of
    a sample and reaches as far as Student's t says, on the logarithms where all are positive. When
    a high quantile comes out low, its spread does too (in simulation the upper end fell short 6 to
    11 times in 100 where 2.5 were promised), so upwards its level is UPWARD times as strict.
    """
    rng = np.random.default_rng(seed)
    estimate = float(np.quantile(np.concatenate(groups), q))
    n = len(groups)
    if n < 3:
        return Interval(estimate, -math.inf, math.inf, n, level)
    drawn = np.array(
        [
            np.quantile(np.concatenate([groups[i] for i in rng.integers(0, n, n)]), q)
            for _ in range(RESAMPLES // 4)
        ]
    )
    down, up = (
        student_quantile(1 - (1 - level) / 2 / strict, n - 1) * math.sqrt(n / (n - 1))
        for strict in (1, UPWARD)
    )
    if estimate > 0 and drawn.min() > 0:
        spread = float(np.log(drawn).std(ddof=1))
        low, high = estimate * math.exp(-down * spread), estimate * math.exp(up * spread)
        return Interval(estimate, low, high, n, level)
    spread = float(drawn.std(ddof=1))
    return Interval(estimate, estimate - down * spread, estimate + up * spread, n, level)


def share_interval(k: int, n: int, *, level: float = 0.95) -> Interval:
    """Return k / n with Wilson's score interval."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return Interval(k / n, max(middle - half, 0.0), min(middle + half, 1.0), n, level)


def difference_interval(counts: PairedCounts, *, level: float = 0.95) -> Interval:
    """Return accuracy of the quantized model − that of the base (Tango 1998, score interval)."""
    n, b, c = counts.n, counts.only_quant, counts.only_base

    def score(delta: float) -> float:
        linear = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
        p_base = (root - linear) / (4 * n)
        variance = n * (2 * p_base + delta * (1 - delta))
        return _ratio(b - c - n * delta, variance)

    estimate = (b - c) / n
    return _invert(score, estimate, (-1.0, 1.0), n, level)


def recovery_interval(counts: PairedCounts, *, level: float = 0.95) -> Interval:
    """Return accuracy of the quantized model / that of the base (Nam & Blackwelder 2002).

    The estimate is nan when the base got nothing right.
    """
    n = counts.n
    p10, p01 = counts.only_quant / n, counts.only_base / n
    p1, p0 = counts.accuracy, counts.accuracy_base
    if p0 == 0:
        return Interval(math.nan, 0.0, math.inf, n, level)

    def score(ratio: float) -> float:
        root = math.sqrt((p1 - ratio**2 * p0) ** 2 + 4 * ratio**2 * p10 * p01)
        q10 = (-p1 + ratio**2 * (p0 + 2 * p10) + root) / (2 * ratio * (ratio + 1))
        q01 = ratio * q10 - (ratio - 1) * (1 - counts.neither / n)
        return _ratio(math.sqrt(n) * (p1 - ratio * p0), ratio * (q10 + q01))

    return _invert(score, p1 / p0, (1e-6, 1e6), n, level)


def _ratio(distance: float, variance: float) -> float:
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _invert(
    score: Score, estimate: float, span: tuple[float, float], n: int, level: float
) -> Interval:
    """Return where a falling score statistic crosses ± z, by bisection around the estimate."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    ends = []
    for inner, outer, wanted in ((estimate, span[0], z), (estimate, span[1], -z)):
        near = min(max(inner, span[0]), span[1])
        far = outer
        for _ in range(200):
            middle = (near + far) / 2
            if abs(score(middle)) < abs(wanted):
                near = middle
            else:
                far = middle
        ends.append((near + far) / 2)
    return Interval(estimate, ends[0], ends[1], n, level)


def mcnemar(counts: PairedCounts) -> float:
    """Return the exact two-sided p-value of McNemar's test: do the models differ at all?"""
    n = counts.only_quant + counts.only_base
    k = min(counts.only_quant, counts.only_base)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being many (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_visible_mean(values: Sequence[float] | Floats, *, level: float = 0.95) -> float:
    """Return the smallest true mean that units as noisy and as many would show 4 times in 5."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 3:
        return math.inf
    return _reach(level) * float(x.std(ddof=1)) / math.sqrt(len(x))


def smallest_visible_difference(counts: PairedCounts, *, level: float = 0.95) -> float:
    """Return the smallest true accuracy difference that as many items would show 4 times in 5.

    The share of items on which the models differ is taken from the data, plus one item.
    """
    share = (counts.only_quant + counts.only_base + 1) / (counts.n + 1)
    return _reach(level) * math.sqrt(share / counts.n)


def _reach(level: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(POWER)
