"""Gates: limits on what quantization may cost, and a verdict that data can bear.

    # soroq-gate.toml
    [text.tg]
    delta_nll = 0.05          # at most so many nats a token
    [task.sib200]
    recovery = 0.98           # at least this share of the base's accuracy
    [generation]
    cyrillic_drop = 0.1       # letters that leave the script, more than the base's

A limit passes if the whole confidence interval is on its right side, fails if the whole interval is
on the wrong side, and is undecided otherwise. The gate passes if every limit does: that asks
more of many limits, not less, so no correction is needed and a model that breaks any limit passes
with a probability of at most (1 − level) / 2. It fails as soon as one limit does; so that chance
doesn't add up over many limits, failing takes intervals of Bonferroni's level.
"""

import fnmatch
import math
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.bench.quality.stats import Interval
from soroq.core.errors import CheckError

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
EXIT_CODES = {PASS: 0, FAIL: 1, UNDECIDED: 3}

# Metric → whether the limit is the most (True) or the least (False) that is allowed.
TEXT_METRICS = {
    "delta_nll": True,
    "kl": True,
    "kl_p99": True,
    "top1": False,
    "top5": False,
    "non_finite": True,
}
TASK_METRICS = {"recovery": False, "accuracy_difference": False, "score_difference": False}
GENERATION_METRICS = {
    "repetition_increase": True,
    "cyrillic_drop": True,
    "foreign_increase": True,
    "empty": True,
}
SECTIONS = {"text": TEXT_METRICS, "task": TASK_METRICS}

DEFAULT_GATE = """\
# What soroq allows when no gate is given: nats a token, shares of the base model's accuracy.
level = 0.95
[text."*"]
non_finite = 0
delta_nll = 0.10
kl = 0.15
[text.tg]
delta_nll = 0.05
kl = 0.10
[task."*"]
recovery = 0.95
[generation]
empty = 0.25
repetition_increase = 0.2
cyrillic_drop = 0.1
foreign_increase = 0.1
"""


@dataclass(frozen=True)
class Limit:
    """One line of a gate: section "text", "task" or "generation", a name pattern and a bound."""

    section: str
    pattern: str
    metric: str
    bound: float
    at_most: bool

    @property
    def wild(self) -> bool:
        """Whether it limits whatever there is, and not one thing by its name."""
        return self.section == "generation" or any(c in self.pattern for c in "*?[")


@dataclass(frozen=True)
class Gate:
    """Limits and the level of their intervals.

    lenient: a limit on what isn't measured is let be (the default gate), else it is an error.
    """

    limits: tuple[Limit, ...]
    level: float = 0.95
    lenient: bool = False


@dataclass(frozen=True)
class Finding:
    """What became of one limit on one text or task."""

    name: str
    metric: str
    bound: float
    at_most: bool
    interval: Interval
    verdict: str

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{self.name} {self.metric} {self.interval} {sign} {self.bound:g}: {self.verdict}"


def read_gate(path: Path | None) -> Gate:
    """Parse a gate, TOML or (.yaml, .yml) YAML; None is the default one.

    Raises CheckError for what it doesn't know.
    """
    text, name = DEFAULT_GATE, "the default gate"
    if path is not None:
        name = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckError(f"gate {name!r} can't be read: {error}") from error
    document = _parse(text, name)
    level = document.pop("level", 0.95)
    if not isinstance(level, float) or not 0.5 < level < 1:
        raise CheckError(f"{name}: level {level!r} is not between 0.5 and 1")
    limits: list[Limit] = []
    generation = document.pop("generation", {})
    limits += _limits(name, "generation", "*", generation, GENERATION_METRICS)
    for section, metrics in SECTIONS.items():
        named = document.pop(section, {})
        if not isinstance(named, dict):
            raise CheckError(
                f"{name}: {section!r} is {named!r}; limits stand under [{section}.NAME]"
            )
        for pattern, table in named.items():
            limits += _limits(name, section, str(pattern), table, metrics)
    if document:
        known = ", ".join(["level", "generation", *SECTIONS])
        raise CheckError(f"{name}: unknown {sorted(map(str, document))[0]!r}; known: {known}")
    if not limits:
        raise CheckError(f"{name} sets no limit")
    return Gate(tuple(limits), level, lenient=path is None)


def _parse(text: str, name: str) -> dict[str, Any]:
    if not name.endswith((".yaml", ".yml")):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CheckError(f"{name}: not TOML: {error}") from error
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise CheckError(f"{name} sets no limit")
    return document


def _limits(
    name: str, section: str, pattern: str, table: Any, metrics: Mapping[str, bool]
) -> list[Limit]:
    if not isinstance(table, dict):
        raise CheckError(f"{name}: [{section}.{pattern}] is no table of limits")
    found = []
    for metric, bound in table.items():
        if metric not in metrics:
            raise CheckError(
                f"{name}: [{section}] has no metric {metric!r}; known: {', '.join(metrics)}"
            )
        if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
            raise CheckError(f"{name}: {section}.{pattern}.{metric} = {bound!r} is no number")
        found.append(Limit(section, pattern, metric, float(bound), metrics[metric]))
    return found


def refuse_unmeasured(
    gate: Gate, texts: Collection[str], tasks: Collection[str], prompts: int = 0
) -> None:
    """Raise CheckError when the gate limits what isn't going to be run.

    That is a text or a task by its name, or generated text.
    """
    for limit in () if gate.lenient else gate.limits:
        if limit.section == "generation" and not prompts:
            raise CheckError(
                f"the gate limits generation ({limit.metric}), which is not measured; let the "
                "models write with --prompts N"
            )
        given = {"text": texts, "task": tasks}.get(limit.section, ())
        name = limit.pattern
        if limit.section == "task" and not _is_primary(name):
            name = name.rpartition(":")[0]
        if not limit.wild and name not in given:
            raise CheckError(
                f"the gate limits {limit.section} {limit.pattern!r} ({limit.metric}), which is not "
                f"measured; give it with --{limit.section} {name}=FILE"
            )


# level → interval: a measured quantity that can say itself at any level
Measure = Callable[[float], Interval]


def judge(gate: Gate, measured: Mapping[tuple[str, str, str], Measure]) -> list[Finding]:
    """Compare every limit with what it names: (section, name, metric) → measure.

    A task's other scorings ("sib200:raw") are limited only by patterns that have the colon. A limit
    on a name goes before a pattern's limit on the same metric. Raises CheckError when a named limit
    meets nothing, unless the gate is lenient.
    """
    named = {(limit.section, limit.pattern, limit.metric) for limit in gate.limits}
    pairs: list[tuple[Limit, str, Measure]] = []
    for limit in gate.limits:
        matching = [
            (limit, name, measure)
            for (section, name, metric), measure in measured.items()
            if section == limit.section
            and metric == limit.metric
            and fnmatch.fnmatchcase(name, limit.pattern)
            and (":" in limit.pattern or section != "task" or _is_primary(name))
            and (name == limit.pattern or (section, name, metric) not in named)
        ]
        if not matching and not limit.wild and not gate.lenient:
            raise CheckError(
                f"the gate limits the {limit.metric} of {limit.section} {limit.pattern!r}, which "
                "it doesn't have; gates on choices take recovery and accuracy_difference, on free "
                "answers recovery and score_difference"
            )
        pairs += matching
    strict = 1 - (1 - gate.level) / max(len(pairs), 1)
    return [_finding(limit, name, measure, gate.level, strict) for limit, name, measure in pairs]


def _is_primary(task: str) -> bool:
    """Whether a task's name is without a scoring: "sib200", not "sib200:raw"."""
    return ":" not in task.removeprefix("lm_eval:")


def _finding(limit: Limit, name: str, measure: Measure, level: float, strict: float) -> Finding:
    interval, wide = measure(level), measure(strict)
    verdict = UNDECIDED
    if limit.at_most:
        if interval.high <= limit.bound:
            verdict = PASS
        elif wide.low > limit.bound or math.isnan(interval.estimate):
            verdict = FAIL
    else:
        if interval.low >= limit.bound:
            verdict = PASS
        elif wide.high < limit.bound or math.isnan(interval.estimate):
            verdict = FAIL
    label = name if limit.section != "generation" else "generation"
    return Finding(label, limit.metric, limit.bound, limit.at_most, interval, verdict)


def verdict_of(findings: list[Finding]) -> str:
    """Return "fail" if any limit fails, "pass" if all pass, else "undecided"."""
    verdicts = {finding.verdict for finding in findings}
    if FAIL in verdicts:
        return FAIL
    return UNDECIDED if UNDECIDED in verdicts or not findings else PASS
