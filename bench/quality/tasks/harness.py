"""Tasks of lm-evaluation-harness, run on both models and paired item by item.

    soroq check BASE QUANT --task lm_eval:belebele_tgk_Cyrl

Needs `pip install lm-eval` and the task's data on this machine; `lm_eval:NAME@DIR` also looks for
task files in DIR. Prompts, few-shot examples and metrics are the harness's own. What the model
answers is kept a few items at a time: a run that was stopped goes on inside its task.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from soroq.bench.quality.scores import Listen, Scorer
from soroq.bench.quality.tasks.choices import write_json
from soroq.core.errors import CheckError

PREFIX = "lm_eval:"
PART = 8  # items in a cached part: what is lost when a run is stopped
REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
# the first of these that a task reports is the one that gates look at
PREFERRED = ("acc_norm", "acc", "exact_match", "em", "chrf", "f1")


@dataclass(frozen=True)
class HarnessScores:
    """Values of one metric, an item each, by subtask and document."""

    metric: str
    values: dict[str, float]


def run_harness(
    scorer: Scorer,
    spec: str,
    *,
    shots: int | None = None,
    limit: int | None = None,
    listen: Listen = lambda done, total, what: None,
) -> HarnessScores:
    """Run the task `spec` ("NAME" or "NAME@DIR") on a model; results are kept in the cache.

    Raises CheckError when lm-eval is missing, or the task or its data can't be found.
    """
    find_task(spec)
    import lm_eval

    key = hashlib.sha256(json.dumps([spec, shots, limit, lm_eval.__version__]).encode())
    file = scorer.item_file(f"lm-eval-{key.hexdigest()[:24]}")
    if not file.exists():
        samples = _evaluate(scorer, spec, shots, limit, listen)
        write_json(file, _pick(samples, spec))
    document = json.loads(file.read_text(encoding="utf-8"))
    return HarnessScores(document["metric"], document["values"])


def find_task(spec: str) -> Any:
    """Return lm-eval's TaskManager that knows the task `spec`. Raises CheckError if none does."""
    if importlib.util.find_spec("lm_eval") is None:
        raise CheckError(f"{PREFIX}{spec} needs lm-evaluation-harness: pip install lm-eval")
    name, _, folder = spec.partition("@")
    if folder and not Path(folder).is_dir():
        raise CheckError(f"{PREFIX}{spec}: {folder!r} is not a directory of tasks")
    manager = _task_manager(folder and str(Path(folder).resolve()))
    if not name or not manager.match_tasks([name]):
        raise CheckError(f"lm-evaluation-harness has no task {name!r}; see `lm-eval ls tasks`")
    return manager


@cache
def _task_manager(folder: str) -> Any:
    """Return lm-eval's TaskManager; it reads thousands of files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder or None)


def _evaluate(
    scorer: Scorer, spec: str, shots: int | None, limit: int | None, listen: Listen
) -> dict[str, list[dict[str, Any]]]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=scorer.model.network,
        tokenizer=scorer.model.tokenizer,
        batch_size=1,
        device="cpu",
        add_bos_token=scorer.model.tokenizer.bos_token_id is not None,
    )
    for kind in REQUESTS:
        answer = getattr(model, kind)
        setattr(model, kind, _kept(answer, kind, scorer, f"{scorer.source} {PREFIX}{spec}", listen))
    try:
        result = lm_eval.simple_evaluate(
            model=model,
            tasks=[spec.partition("@")[0]],
            num_fewshot=shots or None,
            limit=limit,
            task_manager=find_task(spec),
            log_samples=True,
            bootstrap_iters=0,
        )
    except (OSError, ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckError(
            f"{PREFIX}{spec} could not be run: {reason}; its data has to be on this machine"
        ) from error
    samples: dict[str, list[dict[str, Any]]] = result["samples"]
    return samples


def _kept(
    answer: Callable[..., list[Any]], kind: str, scorer: Scorer, what: str, listen: Listen
) -> Callable[..., list[Any]]:
    """Wrap a model's method for one kind of request: PART items at a time, kept in the cache."""
    import lm_eval

    def ask(requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        found: list[Any] = []
        for part in _parts(requests):
            facts = [kind, lm_eval.__version__, [request.args for request in part]]
            key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
            file = scorer.item_file(f"lm-eval-part-{key.hexdigest()[:24]}")
            if not file.exists():
                listen(len(found), len(requests), what)
                torch.manual_seed(
                    int(key.hexdigest()[:8], 16)
                )  # tasks that sample: as if unstopped
                write_json(file, answer(part, disable_tqdm=True))
            rows = json.loads(file.read_text(encoding="utf-8"))
            found += [tuple(row) if isinstance(row, list) else row for row in rows]
        listen(len(requests), len(requests), what)
        return found

    return ask


def _parts(requests: Sequence[Any]) -> Iterator[list[Any]]:
    """Cut requests into parts of PART items; all that is asked of one item stays together."""
    items = [list(own) for _, own in groupby(requests, lambda r: (r.task_name, r.doc_id))]
    for first in range(0, len(items), PART):
        yield [request for own in items[first : first + PART] for request in own]


def _pick(samples: dict[str, list[dict[str, Any]]], spec: str) -> dict[str, Any]:
    """Return the preferred metric's value of every sample."""
    rows = [(task, row) for task, found in sorted(samples.items()) for row in found]
    for metric in PREFERRED:
        if rows and all(isinstance(row.get(metric), int | float) for _, row in rows):
            values = {f"{task}/{row['doc_id']}": float(row[metric]) for task, row in rows}
            return {"metric": metric, "values": values}
    raise CheckError(f"{PREFIX}{spec} reports none of {', '.join(PREFERRED)} for its items")
