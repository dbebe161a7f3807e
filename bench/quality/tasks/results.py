"""Tasks of a check: run them on a model, compare two models' answers, say what gates may limit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soroq.bench.quality.gate import Measure
from soroq.bench.quality.scores import Listen, Scorer
from soroq.bench.quality.stats import (
    Interval,
    PairedCounts,
    bounded_mean_interval,
    difference_interval,
    holm,
    mcnemar,
    recovery_interval,
    smallest_visible_difference,
    smallest_visible_mean,
)
from soroq.bench.quality.tasks.choices import ChoiceScores, score_choices
from soroq.bench.quality.tasks.free import score_free
from soroq.bench.quality.tasks.harness import HarnessScores, run_harness
from soroq.bench.quality.tasks.items import Item
from soroq.bench.quality.tasks.prompts import LETTERS, split_shots
from soroq.core.errors import CheckError

Measures = dict[tuple[str, str, str], Measure]


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run: worked examples, at most so many items, "text" or "letter", seed."""

    shots: int = 0
    items: int | None = None
    mode: str = "text"
    max_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class TaskResult:
    """One task under one way of scoring: "normalized", "raw", "letter", "exact", "number", "chrf".

    primary: the scoring that gates look at. p_value: McNemar's exact test (choices), adjusted for
    the number of tasks in p_adjusted (Holm); nan for free answers.
    """

    name: str
    scoring: str
    primary: bool
    n: int
    base: float
    quant: float
    difference: Interval
    recovery: Interval
    p_value: float
    p_adjusted: float
    smallest_visible: float


# task → scores of its choice items, and metric → scores of its free items
Answers = dict[str, tuple[list[ChoiceScores], dict[str, list[float]]]]


def refuse_unrunnable(tasks: Mapping[str, list[Item]], options: TaskOptions) -> None:
    """Raise CheckError for tasks that the options leave nothing of, before anything runs."""
    for name, items in tasks.items():
        if options.shots >= len(items):
            raise CheckError(f"task {name!r}: {options.shots} shots leave no item to score")
        most = max(items, key=lambda item: len(item.choices))
        if options.mode == "letter" and len(most.choices) > len(LETTERS):
            raise CheckError(
                f"task {name!r}: item {most.id!r} has {len(most.choices)} choices, --mode letter "
                f"has {len(LETTERS)} letters; use --mode text"
            )


def run_tasks(
    scorer: Scorer, tasks: Mapping[str, list[Item]], options: TaskOptions, listen: Listen
) -> Answers:
    """Run every task's items on one model."""
    found: Answers = {}
    for name, items in tasks.items():
        examples, rest = split_shots(items, options.shots, options.seed)
        if options.items is not None and len(rest) > options.items:
            rest = [rest[i * len(rest) // options.items] for i in range(options.items)]
        choices = [item for item in rest if item.choices]
        scores = score_choices(
            scorer, choices, examples=examples, mode=options.mode, name=name, listen=listen
        )
        free = {
            metric: score_free(
                scorer,
                [item for item in rest if not item.choices and item.metric == metric],
                examples=examples,
                max_tokens=options.max_tokens,
                name=name,
                listen=listen,
            )
            for metric in sorted({item.metric for item in rest if not item.choices})
        }
        found[name] = (scores, free)
    return found


def task_results(
    base: Answers, quant: Answers, level: float, mode: str
) -> tuple[list[TaskResult], Measures]:
    results: list[TaskResult] = []
    measured: Measures = {}
    for name, (choices, free) in base.items():
        other_choices, other_free = quant[name]
        if choices:
            scorings: dict[str, Callable[[ChoiceScores], bool]] = {"raw": lambda s: s.right}
            if mode == "letter":
                scorings = {"letter": lambda s: s.right}
            else:
                scorings = {"normalized": lambda s: s.right_normalized} | scorings
            for rank, (scoring, right) in enumerate(scorings.items()):
                counts = PairedCounts.of(
                    [right(s) for s in choices], [right(s) for s in other_choices]
                )
                results.append(_choice_result(name, scoring, rank == 0, counts, level))
                label = name if rank == 0 else f"{name}:{scoring}"
                measured |= _choice_measures(label, counts)
        for rank, metric in enumerate(free):
            b, q = np.array(free[metric]), np.array(other_free[metric])
            primary = not choices and rank == 0
            results.append(_free_result(name, metric, primary, b, q, level))
            measured |= _free_measures(name if primary else f"{name}:{metric}", b, q)
    return results, measured


def adjust(results: list[TaskResult]) -> list[TaskResult]:
    """Adjust the p-values of the scorings that count for being many."""
    tested = [i for i, r in enumerate(results) if r.primary and not math.isnan(r.p_value)]
    adjusted = dict(zip(tested, holm([results[i].p_value for i in tested]), strict=True))
    return [replace(r, p_adjusted=adjusted.get(i, math.nan)) for i, r in enumerate(results)]


def run_harness_tasks(
    scorer: Scorer, specs: Sequence[str], options: TaskOptions, listen: Listen
) -> dict[str, HarnessScores]:
    return {
        spec.partition("@")[0]: run_harness(
            scorer, spec, shots=options.shots, limit=options.items, listen=listen
        )
        for spec in specs
    }


def harness_results(
    base: Mapping[str, HarnessScores], quant: Mapping[str, HarnessScores], level: float
) -> tuple[list[TaskResult], Measures]:
    results: list[TaskResult] = []
    measured: Measures = {}
    for name, scores in base.items():
        order = sorted(scores.values)
        b, q = (np.array([s.values[key] for key in order]) for s in (scores, quant[name]))
        if set(np.unique(np.concatenate([b, q]))) <= {0.0, 1.0}:
            counts = PairedCounts.of(b > 0, (q > 0).tolist())
            results.append(_choice_result(name, scores.metric, True, counts, level))
            measured |= _choice_measures(name, counts)
        else:
            results.append(_free_result(name, scores.metric, True, b, q, level))
            measured |= _free_measures(name, b, q)
    return results, measured


def _choice_measures(label: str, counts: PairedCounts) -> Measures:
    return {
        ("task", label, "recovery"): at_level(recovery_interval, counts),
        ("task", label, "accuracy_difference"): at_level(difference_interval, counts),
    }


def _free_measures(label: str, base: Any, quant: Any) -> Measures:
    return {
        ("task", label, "score_difference"): at_level(bounded_mean_interval, quant - base),
        ("task", label, "recovery"): lambda level: _share(base, quant, level),
    }


def at_level(interval: Callable[..., Interval], data: Any) -> Measure:
    return lambda level: interval(data, level=level)


def _choice_result(
    name: str, scoring: str, primary: bool, counts: PairedCounts, level: float
) -> TaskResult:
    return TaskResult(
        name=name,
        scoring=scoring,
        primary=primary,
        n=counts.n,
        base=counts.accuracy_base,
        quant=counts.accuracy,
        difference=difference_interval(counts, level=level),
        recovery=recovery_interval(counts, level=level),
        p_value=mcnemar(counts),
        p_adjusted=math.nan,
        smallest_visible=smallest_visible_difference(counts, level=level),
    )


def _free_result(
    name: str, metric: str, primary: bool, base: Any, quant: Any, level: float
) -> TaskResult:
    return TaskResult(
        name=name,
        scoring=metric,
        primary=primary,
        n=len(base),
        base=float(base.mean()),
        quant=float(quant.mean()),
        difference=bounded_mean_interval(quant - base, level=level),
        recovery=_share(base, quant, level),
        p_value=math.nan,
        p_adjusted=math.nan,
        smallest_visible=smallest_visible_mean(quant - base, level=level),
    )


def _share(base: Any, quant: Any, level: float) -> Interval:
    """Return mean(quant) / mean(base), by Fieller's argument: the interval of quant − r · base."""
    mean = float(base.mean())
    if mean <= 0:
        return Interval(math.nan, 0.0, math.inf, len(base), level)
    ratio = float(quant.mean()) / mean
    # the mean of quant − ratio · base is 0; its spread, by the base's mean, is that of the ratio
    around = bounded_mean_interval(quant - ratio * base, level=level)
    return Interval(ratio, ratio + around.low / mean, ratio + around.high / mean, len(base), level)
