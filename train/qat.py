"""Quantization-aware training: win back what quantization lost, at equal bits; `soroq train qat`.

From a quantized checkpoint, its original and a corpus to a checkpoint of the same format, scheme
and size, whose codes, scales and norms were trained together towards the original's next-token
distribution (see `student` and `fake_quant`).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import SchemeError
from soroq.io.checkpoint import Checkpoint, open_stored
from soroq.io.stored import StoredWeights
from soroq.manifest import MANIFEST, read_manifest
from soroq.models.registry import find_layout
from soroq.pipeline.card import model_card
from soroq.pipeline.order import ordered_like
from soroq.train.config import Config
from soroq.train.data import Data, read_pretraining_data
from soroq.train.distributed import World
from soroq.train.fake_quant import rounded
from soroq.train.loop import Listen
from soroq.train.model import build_model, compute_dtype
from soroq.train.packing import Packed
from soroq.train.run import Finished, Subject, run_training
from soroq.train.student import Student, build_student, candidate_tokens

LOOKAHEAD = 1 << 20  # tokens of the run whose vocabulary is looked at; beyond, all of it counts


def qat(config: Config, out: Path, tokenizer: Any, *, resume: bool, listen: Listen) -> None:
    """Train `config.qat.start` as `config` says and write a checkpoint of its format to `out`.

    Validation is the divergence from the original, nats a token, in each language. Otherwise as
    `soroq.train.pretrain.pretrain`.
    """
    if not config.qat.start:
        raise SchemeError("qat.start is missing: the quantized checkpoint to train")
    if config.model.lora_rank:
        raise SchemeError("model.lora_rank: qat trains codes, not adapters; set it to 0")
    start = open_stored(config.qat.start)

    def prepare(
        config: Config, original: Checkpoint, data: Data, run: Path, world: World
    ) -> Subject:
        return _subject(config, start, original, data, world)

    run_training(
        config,
        out,
        read_pretraining_data(config, tokenizer),
        resume,
        listen,
        prepare=prepare,
        inputs={"start_sha256": start.sha256()},
    )


def _subject(
    config: Config, start: Checkpoint, original: Checkpoint, data: Data, world: World
) -> Subject:
    compute = compute_dtype(config.train.compute, world.device)
    layout = find_layout(original.config, set(original.names()))
    original = ordered_like(original, layout, read_manifest(start.path))
    model = build_student(start, original)
    teacher = build_model(original, compute).eval().requires_grad_(False).to(world.device)
    sequences = lookahead(config, data)
    if sequences is None:
        candidates = torch.arange(teacher.lm_head.weight.shape[0])
    else:
        candidates = candidate_tokens(teacher, sequences, compute, world.device)
    student = Student(model, teacher, candidates, compute, config.qat)

    def finish(learned: Mapping[str, torch.Tensor], record: dict[str, Any]) -> Finished:
        return _finish(start, learned, record)

    return Subject(student, start, finish)


def lookahead(config: Config, data: Data) -> list[Packed] | None:
    """Return the sequences that the run will see, and those it validates on; None if too many."""
    n = config.train.steps * config.train.batch
    if n * config.data.seq_len > LOOKAHEAD:
        return None
    before = data.packer.state()
    sequences = [data.packer.next() for _ in range(n)]
    data.packer.restore(before)
    return sequences + [packed for part in data.validation.values() for packed in part]


def _finish(
    start: Checkpoint, learned: Mapping[str, torch.Tensor], record: dict[str, Any]
) -> Finished:
    """Return the tensors in the start's format; add to record how many codes changed."""
    layout = find_layout(start.config, set(start.names()))
    stored = StoredWeights(start)
    tensors = {n: t for n, t in learned.items() if not n.endswith((".latent", ".delta"))}
    codes = changed = 0
    for module in sorted(stored.quantized):
        target = layout.text_name(module)
        if target is None or f"{target}.latent" not in learned:
            continue
        before, _, _ = stored.load_quantized(module)
        weight, different = rounded(learned[f"{target}.latent"], learned[f"{target}.delta"], before)
        tensors |= stored.format.encode(target, weight)
        codes, changed = codes + math.prod(weight.shape), changed + different
    record["codes"], record["codes_changed"] = codes, changed
    steps = sorted(record["validation"], key=int)
    trained = {
        "start_sha256": record["start_sha256"],
        "config": record["config"],
        "data": record["data"],
        "codes": codes,
        "codes_changed": changed,
        "kl_before": record["validation"][steps[0]],
        "kl_after": record["validation"][steps[-1]],
    }
    manifest = read_manifest(start.path)
    if manifest is None:
        return Finished(tensors)
    manifest = dataclasses.replace(manifest, trained=trained)
    files = {
        MANIFEST: manifest.to_json().encode(),
        "README.md": model_card(manifest).encode(),
    }
    return Finished(tensors, files)
