"""From a configuration and data to a checkpoint: folders, model, loop, result."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import OutputError, SchemeError
from soroq.io.checkpoint import open_checkpoint
from soroq.io.writer import atomic_write, make_folder, require_disk_space, require_empty_dir
from soroq.train.checkpoint import latest_checkpoint
from soroq.train.config import Config
from soroq.train.data import Data
from soroq.train.distributed import join_world, shard, whole
from soroq.train.loop import Listen, Trainer
from soroq.train.lora import add_lora_, merged, save_adapter
from soroq.train.metrics import read_metrics
from soroq.train.model import LossModel, build_model, compute_dtype
from soroq.train.result import write_result

JOB = "job.json"
# What may change in the middle of a run: where files are (their contents are compared), and how a
# batch is cut.
FREE = {"source", "corpus", "files", "micro_batch", "activation_checkpointing"}
STATE_BYTES = 12  # a learned number in a checkpoint: itself and AdamW's two


def run_training(
    config: Config,
    out: Path,
    data: Data,
    resume: bool,
    listen: Listen,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Train a model on `data` and write it, and `files`, to `out`; see `pretrain` and `sft`."""
    world = join_world()
    require_empty_dir(out)
    run = out.with_name(out.name + ".partial")
    checkpoint = open_checkpoint(config.model.source)
    job = {
        "source_sha256": checkpoint.sha256(),
        "config": config.to_json(),
        "data": dict(data.record),
    }
    if world.leads:
        _begin(run, job, resume)
    world.gather(None)  # the others wait for the folder
    torch.manual_seed(config.train.seed)
    compute, lora = compute_dtype(config.train.compute, world.device), None
    if config.model.lora_rank:
        base = build_model(checkpoint, compute)  # frozen: no need of more bits
        lora = add_lora_(base, config.model)
    else:
        base = build_model(checkpoint, torch.float32)
    model = LossModel(base, compute).to(world.device)
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    if world.size > 1:
        shard(model, world)
    n_learned = sum(p.numel() for _, p in model.learned())
    if world.leads:
        kept = (config.run.keep + 1) * STATE_BYTES * n_learned
        require_disk_space(out, kept + checkpoint.total_bytes)
    trainer = Trainer(config, model, data, run, world)
    trainer.resume()
    trainer.fit(listen)
    learned = {name: whole(value) for name, value in model.learned()}
    if world.leads:
        trained, adapter = learned, None
        if lora is not None:
            trained, adapter = dict(merged(learned, checkpoint, config.model)), run / "adapter"
            save_adapter(adapter, learned, lora)
        elif model.config.tie_word_embeddings:  # a checkpoint may hold the head a second time
            trained = learned | {"lm_head.weight": learned["model.embed_tokens.weight"]}
        record = {
            "format": "soroq-train-1",
            **job,
            "learned_parameters": n_learned,
            "losses": [line["loss"] for line in read_metrics(run) if "loss" in line],
            "validation": trainer.validation,
            "rounds": data.packer.rounds(),
        }
        write_result(out, run, checkpoint, trained, record, files or {}, adapter)
    world.gather(None)


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
    for key in ("source_sha256", "data"):
        if before[key] != now[key]:
            return "model" if key == "source_sha256" else "corpus or other files"
    for table, values in now["config"].items():
        for key, value in values.items():
            old = before["config"].get(table, {}).get(key)
            if table != "run" and key not in FREE and old != value:
                return f"{table}.{key} ({old!r})"
    return ""
