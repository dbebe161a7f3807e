"""Gates: what passes, what fails, what the data can't tell, and how often chance is believed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soroq.bench.quality import stats
from soroq.bench.quality.gate import (
    FAIL,
    PASS,
    UNDECIDED,
    Gate,
    Limit,
    judge,
    read_gate,
    refuse_unmeasured,
    verdict_of,
)
from soroq.bench.quality.stats import Interval, mean_interval
from soroq.core.errors import CheckError

AT_MOST = Limit("text", "tg", "delta_nll", 0.05, True)


def _between(low: float, high: float) -> Callable[[float], Interval]:
    return lambda level: Interval((low + high) / 2, low, high, 16, level)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.05, PASS), (0.04, 0.06, UNDECIDED), (0.051, 0.08, FAIL), (-0.2, -0.1, PASS)],
)
def test_the_whole_interval_decides(low: float, high: float, verdict: str) -> None:
    gate = Gate((AT_MOST,))
    findings = judge(gate, {("text", "tg", "delta_nll"): _between(low, high)})
    assert [f.verdict for f in findings] == [verdict]
    assert verdict_of(findings) == verdict


def test_least_limits_are_judged_from_the_other_side() -> None:
    gate = Gate((Limit("task", "*", "recovery", 0.98, False),))
    for low, high, verdict in ((0.985, 1.0, PASS), (0.9, 0.99, UNDECIDED), (0.9, 0.97, FAIL)):
        findings = judge(gate, {("task", "sib200", "recovery"): _between(low, high)})
        assert verdict_of(findings) == verdict


def test_other_scorings_are_limited_only_when_named() -> None:
    measured = {
        ("task", name, "recovery"): _between(0.9, 1.1)
        for name in ("sib", "sib:raw", "lm_eval:mmlu")
    }
    for pattern, n in (("*", 2), ("sib*", 1), ("*:raw", 1), ("sib:raw", 1)):
        gate = Gate((Limit("task", pattern, "recovery", 0.8, False),))
        assert len(judge(gate, measured)) == n, pattern


def test_one_failure_fails_and_one_doubt_is_undecided() -> None:
    gate = Gate((AT_MOST, Limit("text", "en", "delta_nll", 0.05, True)))
    passing, doubtful, failing = _between(0, 0.01), _between(0, 0.1), _between(0.06, 0.07)
    for pair, verdict in (
        ((passing, passing), PASS),
        ((passing, doubtful), UNDECIDED),
        ((doubtful, failing), FAIL),
    ):
        measured = dict(zip([("text", "tg", "delta_nll"), ("text", "en", "delta_nll")], pair))  # noqa: B905
        assert verdict_of(judge(gate, measured)) == verdict
    assert verdict_of([]) == UNDECIDED


def test_not_a_number_fails() -> None:
    nan = float("nan")
    findings = judge(
        Gate((AT_MOST,)), {("text", "tg", "delta_nll"): lambda level: Interval(nan, nan, nan, 4)}
    )
    assert verdict_of(findings) == FAIL


@pytest.mark.parametrize("n_limits", [1, 5])
def test_false_verdicts_are_as_rare_as_promised(
    n_limits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models exactly at every limit: passing or failing them is wrong."""
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    rng = np.random.default_rng(n_limits)
    names = [f"t{i}" for i in range(n_limits)]
    gate = Gate(tuple(Limit("text", name, "delta_nll", 0.05, True) for name in names))
    seen = {PASS: 0, FAIL: 0, UNDECIDED: 0}
    repeats = 800
    for _ in range(repeats):
        measured = {}
        for name in names:
            x = rng.normal(0.05, 0.03, 16)
            measured["text", name, "delta_nll"] = lambda level, x=x: mean_interval(x, level=level)
        seen[verdict_of(judge(gate, measured))] += 1
    # promised: 2.5 % each; three standard errors of 800 repeats are 1.7 %
    assert seen[PASS] / repeats <= 0.042
    assert seen[FAIL] / repeats <= 0.042


def test_the_default_gate_limits_any_text_and_asks_more_of_tajik() -> None:
    measured = {
        ("text", name, metric): _between(0.06, 0.08)
        for name in ("tg", "ru")
        for metric in ("delta_nll", "kl")
    }
    found = {(f.name, f.metric): (f.bound, f.verdict) for f in judge(read_gate(None), measured)}
    assert found == {
        ("tg", "delta_nll"): (0.05, FAIL),
        ("tg", "kl"): (0.10, PASS),
        ("ru", "delta_nll"): (0.10, PASS),
        ("ru", "kl"): (0.15, PASS),
    }


def test_names_that_are_not_measured_are_an_error_before_and_after() -> None:
    gate = Gate((AT_MOST, Limit("task", "sib:raw", "recovery", 0.9, False)))
    with pytest.raises(CheckError, match="--text tg=FILE"):
        refuse_unmeasured(gate, ["en"], ["sib"])
    with pytest.raises(CheckError, match="--task sib=FILE"):
        refuse_unmeasured(gate, ["tg"], [])
    refuse_unmeasured(gate, ["tg"], ["sib"])
    with pytest.raises(CheckError, match="delta_nll of text 'tg', which it doesn't have"):
        judge(gate, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[text.tg]\ndelta = 1", "no metric 'delta'"),
        ("[texts.tg]\nkl = 1", "unknown 'texts'"),
        ("[text.tg]\nkl = 'much'", "is no number"),
        ("[text]\ntg = 1", "no table"),
        ("level = 2.0\n[text.tg]\nkl = 1", "level"),
        ("[text.tg", "not TOML"),
        ("", "sets no limit"),
        ("text = 3", "'text' is 3; limits stand under"),
        ("generation = 3", "no table"),
    ],
)
def test_broken_gates_are_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(CheckError, match=said):
        read_gate(tmp_path / "gate.toml")
    with pytest.raises(CheckError, match="can't be read"):
        read_gate(tmp_path / "no.toml")


def test_yaml_says_what_toml_says(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "gate.toml", tmp_path / "gate.yaml"
    toml.write_text('level = 0.9\n[text.tg]\nkl = 1\n[task."*"]\nrecovery = 0.98\n')
    yaml.write_text('level: 0.9\ntext:\n  tg: {kl: 1}\ntask:\n  "*":\n    recovery: 0.98\n')
    assert read_gate(yaml) == read_gate(toml)
    for text, said in (("a: [", "not YAML"), ("3", "no limit"), ("", "no limit"), ("1: 2", "'1'")):
        yaml.write_text(text)
        with pytest.raises(CheckError, match=said) as error:
            read_gate(yaml)
        assert "\n" not in str(error.value)


def test_limits_on_generated_text_want_text_to_be_generated() -> None:
    gate = Gate((Limit("generation", "*", "empty", 0.1, True),))
    with pytest.raises(CheckError, match="--prompts N"):
        refuse_unmeasured(gate, [], [])
    refuse_unmeasured(gate, [], [], prompts=4)
    refuse_unmeasured(read_gate(None), ["tg"], [])
