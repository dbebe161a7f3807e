"""From a configuration and data to a checkpoint: folders, model, loop, result."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import OutputError, SchemeError
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.writer import atomic_write, make_folder, require_disk_space, require_empty_dir
from soroq.train.checkpoint import latest_checkpoint
from soroq.train.config import Config
from soroq.train.data import Data
from soroq.train.distributed import World, join_world, shard, whole
from soroq.train.loop import Listen, Trainer
from soroq.train.lora import add_lora_, merged, save_adapter
from soroq.train.metrics import read_metrics
from soroq.train.model import LossModel, build_model, compute_dtype
from soroq.train.result import write_result

JOB = "job.json"
# What may change in the middle of a run: where files are (their contents are compared), and how a
# batch is cut.
FREE = {"source", "start", "corpus", "files", "micro_batch", "activation_checkpointing"}
STATE_BYTES = 12  # a learned number in a checkpoint: itself and AdamW's two


@dataclass(frozen=True)
class Subject:
    """What a run trains, and how its result is made of it.

    kept: the checkpoint whose other tensors and files the result has. finish: what was learned, by
    name → what replaces the checkpoint's tensors, by name in the text-only model; more files; a
    folder to copy.
    """

    model: LossModel
    kept: Checkpoint
    finish: Callable[[Mapping[str, torch.Tensor], dict[str, Any]], "Finished"]


@dataclass(frozen=True)
class Finished:
    tensors: Mapping[str, torch.Tensor]
    files: Mapping[str, bytes] = field(default_factory=dict)
    folder: Path | None = None


Prepare = Callable[[Config, Checkpoint, Data, Path, World], Subject]


def run_training(
    config: Config,
    out: Path,
    data: Data,
    resume: bool,
    listen: Listen,
    files: Mapping[str, bytes] | None = None,
    *,
    prepare: Prepare | None = None,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Train a model on `data` and write it, and `files`, to `out`; see `pretrain`, `sft`, `qat`.

    prepare: what is trained; all weights or adapters if not given. inputs: hashes of what else
    decides the result.
    """
    world = join_world()
    require_empty_dir(out)
    run = out.with_name(out.name + ".partial")
    checkpoint = open_checkpoint(config.model.source)
    job = {
        "source_sha256": checkpoint.sha256(),
        **(inputs or {}),
        "config": config.to_json(),
        "data": dict(data.record),
    }
    if world.leads:
        _begin(run, job, resume)
    world.gather(None)  # the others wait for the folder
    torch.manual_seed(config.train.seed)
    subject = (prepare or weights_or_adapters)(config, checkpoint, data, run, world)
    model = subject.model.to(world.device)
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    if world.size > 1:
        shard(model, world)
    n_learned = sum(p.numel() for _, p in model.learned())
    if world.leads:
        kept = (config.run.keep + 1) * STATE_BYTES * n_learned
        require_disk_space(out, kept + subject.kept.total_bytes)
    trainer = Trainer(config, model, data, run, world)
    trainer.resume()
    trainer.fit(listen)
    learned = {name: whole(value) for name, value in model.learned()}
    if world.leads:
        record = {
            "format": "soroq-train-1",
            **job,
            "learned_parameters": n_learned,
            "losses": [line["loss"] for line in read_metrics(run) if "loss" in line],
            "validation": trainer.validation,
            "rounds": data.packer.rounds(),
        }
        done = subject.finish(learned, record)
        all_files = {**(files or {}), **done.files}
        write_result(out, run, subject.kept, done.tensors, record, all_files, done.folder)
    world.gather(None)


def weights_or_adapters(
    config: Config, checkpoint: Checkpoint, data: Data, run: Path, world: World
) -> Subject:
    """Return a model all of whose weights learn, or adapters beside them."""
    compute = compute_dtype(config.train.compute, world.device)
    if config.model.lora_rank:
        base = build_model(checkpoint, compute)  # frozen: no need of more bits
        lora = add_lora_(base, config.model)

        def merge(learned: Mapping[str, torch.Tensor], record: dict[str, Any]) -> Finished:
            save_adapter(run / "adapter", learned, lora)
            tensors = dict(merged(learned, checkpoint, config.model))
            return Finished(tensors, folder=run / "adapter")

        return Subject(LossModel(base, compute), checkpoint, merge)
    base = build_model(checkpoint, torch.float32)

    def take(learned: Mapping[str, torch.Tensor], record: dict[str, Any]) -> Finished:
        tensors = dict(learned)
        if base.config.tie_word_embeddings:  # a checkpoint may hold the head a second time
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        return Finished(tensors)

    return Subject(LossModel(base, compute), checkpoint, take)


def _begin(run: Path, job: dict[str, Any], resume: bool) -> None:
    """Make the run's folder; raise unless what is in it is this job's and to be gone on with."""
    path = run / JOB
    job = json.loads(json.dumps(job))
    if path.is_file() and latest_checkpoint(run):
        if not resume:
            raise OutputError(
                f"{run} holds an unfinished run; go on with --resume, or delete it to begin anew"
            )
        before = json.loads(path.read_text(encoding="utf-8"))
        if difference := _difference(before, job):
            raise SchemeError(
                f"{run} was begun with another {difference}; resume with that, or delete it"
            )
        return
    shutil.rmtree(run, ignore_errors=True)
    make_folder(run)
    atomic_write(path, json.dumps(job, indent=1, ensure_ascii=False).encode())


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what differs between two jobs and counts for the result; '' if nothing does."""
    names = {"source_sha256": "model", "start_sha256": "qat.start", "data": "corpus or other files"}
    for key, name in names.items():
        if before.get(key) != now.get(key):
            return name
    for table, values in now["config"].items():
        for key, value in values.items():
            old = before["config"].get(table, {}).get(key)
            if table != "run" and key not in FREE and old != value:
                return f"{table}.{key} ({old!r})"
    return ""
