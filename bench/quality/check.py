"""The checker: two models on the same texts and items, numbers with intervals, and a verdict.

    from soroq.bench.quality.check import CheckRequest, check
    report = check(CheckRequest(base="gemma3-270m", quant="gemma3-270m-int4"))
    print(report.verdict)

The base runs first and is then let go: only one model is in memory. Everything a model says is
cached, so a second candidate costs one run, and a stopped check goes on.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soroq.bench.quality.compare import TextResult, compare_text, kl_by_window
from soroq.bench.quality.gate import (
    Finding,
    Measure,
    judge,
    read_gate,
    refuse_unmeasured,
    verdict_of,
)
from soroq.bench.quality.model import (
    Source,
    find_source,
    refuse_long_windows,
    refuse_other_tokenizer,
    refuse_other_vocabulary,
)
from soroq.bench.quality.scores import Listen, Scorer
from soroq.bench.quality.sets import (
    EvalSet,
    Passage,
    make_set,
    read_passages,
    refuse_other_language,
)
from soroq.bench.quality.stats import (
    Floats,
    Interval,
    bounded_mean_interval,
    mean_interval,
    quantile_interval,
    share_interval,
)
from soroq.bench.quality.tables import BaseTable, rows_of
from soroq.bench.quality.tasks.choices import MODES
from soroq.bench.quality.tasks.free import Health, generate_all, health, mean_health
from soroq.bench.quality.tasks.harness import find_task
from soroq.bench.quality.tasks.items import read_items
from soroq.bench.quality.tasks.results import (
    Measures,
    TaskOptions,
    TaskResult,
    adjust,
    at_level,
    harness_results,
    refuse_unrunnable,
    run_harness_tasks,
    run_tasks,
    task_results,
)
from soroq.calib.sources import builtin_documents
from soroq.core.errors import CheckError
from soroq.manifest import read_manifest

SCHEMA = "soroq-check/1"
LANGUAGES = ("tg", "en")
PROMPT_WORDS = 12  # words of a passage that generation goes on from
HEALTH_TOKENS = 64
NOISE_WINDOWS = 2  # bfloat16 is slow on CPUs without units for it


@dataclass(frozen=True)
class CheckRequest:
    """What to check. texts and tasks: name → file; no text at all means the built-in ones.

    harness: names of lm-evaluation-harness tasks. windows: at most so many a text; items: at most
    so many a task; prompts: texts that generation is tried on (0: not tried); noise_floor: also
    run the base in other ways (attention, dtype, threads) on NOISE_WINDOWS windows a text.
    """

    base: str
    quant: str
    texts: Mapping[str, Path] | None = None
    tasks: Mapping[str, Path] | None = None
    windows: int | None = 16
    seq_len: int = 512
    stride: int | None = None
    items: int | None = None
    harness: tuple[str, ...] = ()
    shots: int = 0
    mode: str = "text"
    max_tokens: int = 64
    prompts: int = 0
    gate: Path | None = None
    gated: bool = False
    noise_floor: bool = False
    seed: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class Generation:
    """How freely generated text holds up, and the texts of the quantized model."""

    base: Health
    quant: Health
    prompts: list[str]
    texts: list[str]


@dataclass(frozen=True)
class NoiseFloor:
    """The base against itself, computed another way: what chance looks like.

    how: "eager attention", "bfloat16", or another number of threads.
    """

    name: str
    how: str
    delta_nll: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Report:
    """Everything a check found. verdict: "pass", "fail", "undecided" or "" without a gate.

    layers: what soroq.json says of the quantized model's linears, if it has one.
    """

    base: str
    quant: str
    base_bytes: int
    quant_bytes: int
    texts: list[TextResult]
    tasks: list[TaskResult]
    generation: Generation | None
    noise: list[NoiseFloor]
    findings: list[Finding]
    verdict: str
    layers: list[dict[str, Any]]
    settings: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types; docs/check.md describes the fields."""
        document: dict[str, Any] = _finite({"schema": SCHEMA} | asdict(self))
        return document


def check(request: CheckRequest, listen: Listen = lambda done, total, what: None) -> Report:
    """Run both models and compare them. Raises CheckError for whatever doesn't fit."""
    started = time.monotonic()
    if request.mode not in MODES:
        raise CheckError(f"--mode {request.mode!r} is not one of {', '.join(MODES)}")
    gate = read_gate(request.gate) if request.gated or request.gate else None
    level = gate.level if gate else 0.95
    passages = _passages(request)
    if gate:
        names = [*(request.tasks or {}), *(spec.partition("@")[0] for spec in request.harness)]
        refuse_unmeasured(gate, passages, names, request.prompts)
    sources = find_source(request.base), find_source(request.quant)
    _refuse_torch_only(request, *sources)
    refuse_other_vocabulary(*sources)
    refuse_long_windows(sources, request.seq_len)
    tokenizer = sources[0].tokenizer()
    refuse_other_tokenizer(tokenizer, sources[1].tokenizer(), request.base, request.quant)
    sets = [
        make_set(
            name,
            text,
            tokenizer,
            seq_len=request.seq_len,
            stride=request.stride,
            limit=request.windows,
        )
        for name, text in passages.items()
    ]
    tasks = {name: read_items(path) for name, path in (request.tasks or {}).items()}
    prompts = _prompts(request.prompts)
    options = TaskOptions(
        request.shots, request.items, request.mode, request.max_tokens, request.seed
    )
    refuse_unrunnable(tasks, options)
    for spec in request.harness:
        find_task(spec)
    base = Scorer(request.base, cache=request.cache, listen=listen)
    tables = [base.base_table(one) for one in sets]
    base_answers = run_tasks(base, tasks, options, listen)
    base_harness = run_harness_tasks(base, request.harness, options, listen)
    base_texts = generate_all(base, prompts, HEALTH_TOKENS, name="generation", listen=listen)
    base.close()
    noise = _noise(base, sets, tables, request, listen) if request.noise_floor else []
    quant = Scorer(request.quant, cache=request.cache, listen=listen)
    quant_tables = [quant.quant_table(one, base, t) for one, t in zip(sets, tables, strict=True)]
    texts = [
        compare_text(one, table, other, tokenizer, level=level)
        for one, table, other in zip(sets, tables, quant_tables, strict=True)
    ]
    answers = run_tasks(quant, tasks, options, listen)
    quant_harness = run_harness_tasks(quant, request.harness, options, listen)
    quant_texts = generate_all(quant, prompts, HEALTH_TOKENS, name="generation", listen=listen)
    quant.close()
    results, measured = task_results(base_answers, answers, level, request.mode)
    more, more_measured = harness_results(base_harness, quant_harness, level)
    results = adjust(results + more)
    measured |= more_measured
    generation = None
    if prompts:
        before, after = [health(text) for text in base_texts], [health(t) for t in quant_texts]
        generation = Generation(mean_health(before), mean_health(after), prompts, quant_texts)
        measured |= _generation_measures(before, after)
    for text, one, table in zip(texts, sets, quant_tables, strict=True):
        measured |= _text_measures(text, kl_by_window(one, table))
    findings = judge(gate, measured) if gate else []
    return Report(
        base=request.base,
        quant=request.quant,
        base_bytes=sources[0].total_bytes,
        quant_bytes=sources[1].total_bytes,
        texts=texts,
        tasks=results,
        generation=generation,
        noise=noise,
        findings=findings,
        verdict=verdict_of(findings) if gate else "",
        layers=_layers(sources[1].path),
        settings=_settings(request, base, quant, sets, level)
        | sources[0].versions
        | sources[1].versions,
        seconds=time.monotonic() - started,
    )


def _refuse_torch_only(request: CheckRequest, base: Source, quant: Source) -> None:
    """Raise CheckError for what only torch models can do, before anything runs."""
    if request.noise_floor and not base.is_torch:
        raise CheckError(f"--noise-floor: {base.name} has no other attention to be run under")
    for source in (base, quant):
        if request.harness and not source.is_torch:
            raise CheckError(
                f"lm_eval:{request.harness[0]}: lm-evaluation-harness runs torch models only, and "
                f"{source.name} is none; tasks of one's own (--task name=FILE) run on both"
            )


def _passages(request: CheckRequest) -> dict[str, list[Passage]]:
    if request.texts:
        given = {name: read_passages(path) for name, path in request.texts.items()}
        for name, passages in given.items():
            refuse_other_language(name, passages)
        return given
    return {
        language: [(d.plain, d.kind) for d in builtin_documents(language, "check")]
        for language in LANGUAGES
    }


def _prompts(n: int) -> list[str]:
    """Return the first words of n built-in Tajik passages that nothing was calibrated on."""
    if n == 0:
        return []
    passages = [d.plain.split() for d in builtin_documents("tg", "check")]
    long = [words for words in passages if len(words) > 2 * PROMPT_WORDS]
    picks = [long[i * len(long) // min(n, len(long))] for i in range(min(n, len(long)))]
    return [" ".join(words[:PROMPT_WORDS]) for words in picks]


def _noise(
    base: Scorer,
    sets: Sequence[EvalSet],
    tables: Sequence[BaseTable],
    request: CheckRequest,
    listen: Listen,
) -> list[NoiseFloor]:
    threads = 1 if torch.get_num_threads() > 1 else 2
    ways: dict[str, dict[str, Any]] = {
        "eager attention": {"attention": "eager"},
        f"{threads} thread{'s' if threads > 1 else ''}": {"threads": threads},
        "bfloat16": {"dtype": torch.bfloat16},
    }
    found = []
    for how, settings in ways.items():
        other = Scorer(request.base, cache=request.cache, listen=listen, **settings)
        for one, table in zip(sets, tables, strict=True):
            few = one.first(NOISE_WINDOWS)
            own = rows_of(table, slice(0, few.scored.numel()))
            again, scored = other.quant_table(few, base, own), few.scored.flatten()
            found.append(
                NoiseFloor(
                    one.name,
                    how,
                    float((again.nll - own.nll)[scored].mean()),
                    float(again.kl[scored].mean()),
                    float(again.top1[scored].float().mean()),
                )
            )
        other.close()
    return found


def _text_measures(text: TextResult, kl: list[Floats]) -> Measures:
    """Return what gates can limit of a text, at the level asked for."""
    base, quant = np.array(text.window_nll_base), np.array(text.window_nll)
    broken = float(text.non_finite)
    nan = Interval(math.nan, math.nan, math.nan, text.n_windows)

    def at(values: Sequence[float]) -> Measure:
        return lambda level: nan if broken else mean_interval(np.array(values), level=level)

    found: dict[str, Measure] = {
        "delta_nll": at((quant - base).tolist()),
        "kl": at(text.window_kl),
        "kl_p99": lambda level: nan if broken else quantile_interval(kl, 0.99, level=level),
        "top1": at(text.window_top1),
        "top5": at(text.window_top5),
        "non_finite": lambda level: Interval(broken, broken, broken, text.n_tokens, level),
    }
    return {("text", text.name, metric): measure for metric, measure in found.items()}


def _generation_measures(base: Sequence[Health], quant: Sequence[Health]) -> Measures:
    """Return what gates can limit of generated text; increases and drops are paired by prompt."""
    more = np.array([q.repetition - b.repetition for b, q in zip(base, quant, strict=True)])
    switched = np.array([q.foreign - b.foreign for b, q in zip(base, quant, strict=True)])
    less = np.array([b.cyrillic - q.cyrillic for b, q in zip(base, quant, strict=True)])
    empty = sum(q.empty for q in quant)
    found: dict[str, Measure] = {
        "repetition_increase": at_level(bounded_mean_interval, more),
        "cyrillic_drop": at_level(bounded_mean_interval, less),
        "foreign_increase": at_level(bounded_mean_interval, switched),
        "empty": lambda level: share_interval(round(empty), len(quant), level=level),
    }
    return {("generation", "generation", name): measure for name, measure in found.items()}


def _layers(source: str) -> list[dict[str, Any]]:
    manifest = read_manifest(Path(source)) if Path(source).is_dir() else None
    if manifest is None:
        return []
    wanted = ("module", "scheme", "error", "error_rtn")
    return [{key: layer[key] for key in wanted} for layer in manifest.layers]


def _settings(
    request: CheckRequest, base: Scorer, quant: Scorer, sets: Sequence[EvalSet], level: float
) -> dict[str, Any]:
    import transformers

    import soroq

    return {
        "soroq": soroq.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "base_key": base.key,
        "quant_key": quant.key,
        "sets": {one.name: one.sha256 for one in sets},
        "seq_len": request.seq_len,
        "stride": request.stride,
        "shots": request.shots,
        "mode": request.mode,
        "seed": request.seed,
        "level": level,
    }


def _finite(value: Any) -> Any:
    """Return a JSON value: NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
