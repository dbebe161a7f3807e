"""Training steps beside TRL's SFTTrainer: tokens a second and peak memory, model and batch alike.

    python -m soroq.bench.train_peers                                       # Gemma 3 270M
    python -m soroq.bench.train_peers --model DIR --compute float32 --seq-len 512 --batch 4

Both train all weights with AdamW at one rate on the same sequences of Tajik, all of whose tokens
are learned, a batch the same in every step; both keep float32 weights and compute in `--compute`.
Each run is a process of its own, in turns; the first step of each is left out. Both must come to
the same losses, or nothing is recorded. Sequences are full: packing is not measured.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from soroq.bench.record import append_record
from soroq.core.memory import keep_memory

CONTENDERS = ("soroq", "trl")
RATE = 1e-5
SAME_LOSS = 0.02  # relative: bfloat16 products in another order, over a few steps


def sequences(model: str, seq_len: int, batch: int) -> list[list[int]]:
    """Return `batch` sequences of the built-in Tajik text, BOS first."""
    from soroq.calib.sources import builtin_documents
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    ids: list[int] = []
    for document in builtin_documents("tg", "calib"):
        ids += tokenizer(document.plain, add_special_tokens=False)["input_ids"]
    n = seq_len - 1
    return [[tokenizer.bos_token_id, *ids[i * n : (i + 1) * n]] for i in range(batch)]


def run_soroq(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return each step's seconds and loss."""
    import torch

    from soroq.io.checkpoint import open_checkpoint
    from soroq.train.config import make_config
    from soroq.train.data import Data
    from soroq.train.distributed import join_world
    from soroq.train.loop import Trainer
    from soroq.train.metrics import read_metrics
    from soroq.train.model import LossModel, build_model, compute_dtype
    from soroq.train.packing import Packer, Stream

    config = make_config(
        {
            "model": {"source": options.model},
            "data": {"seq_len": options.seq_len},
            "train": {
                "steps": options.steps,
                "batch": options.batch,
                "micro_batch": options.micro_batch,
                "learning_rate": RATE,
                "warmup": 0.0,
                "decay": 0.0,
                "weight_decay": 0.0,
                "compute": options.compute,
            },
            "run": {"checkpoint_every": 10**6, "peak_tflop_s": 1.0, "tensorboard": False},
        },
        "bench",
    )
    rows = sequences(options.model, options.seq_len, options.batch)
    documents = [torch.tensor(row, dtype=torch.int32) for row in rows]
    data = Data(Packer({"tg": Stream(documents, options.seq_len, 0)}, {"tg": 1.0}), {}, {})
    world = join_world()
    base = build_model(open_checkpoint(options.model), torch.float32)
    model = LossModel(base, compute_dtype(options.compute, world.device)).to(world.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, model, data, Path(folder), world)
        trainer.fit(lambda *_: None)
        lines = read_metrics(Path(folder))
    tokens = options.seq_len * options.batch
    return [tokens / line["tokens_s"] for line in lines if "loss" in line], [
        line["loss"] for line in lines if "loss" in line
    ]


def run_trl(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return each step's seconds and loss."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    from soroq.io.checkpoint import open_checkpoint
    from soroq.loading import load_tokenizer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []
            self._begun = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._begun)

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            if "loss" in (logs := kwargs["logs"]):
                self.losses.append(logs["loss"])

    model = AutoModelForCausalLM.from_pretrained(
        open_checkpoint(options.model).path, dtype=torch.float32, attn_implementation="sdpa"
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.batch // options.micro_batch,
            max_length=options.seq_len,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta2=0.95,
            bf16=options.compute == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = sequences(options.model, options.seq_len, options.batch)
        SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
            processing_class=load_tokenizer(options.model),
            callbacks=[clock],
        ).train()
    return clock.seconds, clock.losses


def peak_bytes() -> int:
    """Return the most memory this process had: the GPU's if it used one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str] | None = None) -> int:
    """Race both in turns and append a record; 1 if their losses differ."""
    options = _parse(arguments)
    if options.worker:
        if options.worker == "soroq":
            keep_memory()  # as `soroq train` does
        seconds, losses = {"soroq": run_soroq, "trl": run_trl}[options.worker](options)
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes()}))
        return 0
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
        for name in order:
            runs[name].append(_measure(name, arguments or sys.argv[1:]))
    tokens = options.seq_len * options.batch
    results = {
        name: {
            "tokens_s": statistics.median(
                tokens / second for run in given for second in run["seconds"][1:]
            ),
            "peak_bytes": max(run["peak_bytes"] for run in given),
            "seconds": [run["seconds"] for run in given],
            "losses": given[0]["losses"],
        }
        for name, given in runs.items()
    }
    pairs = list(zip(results["soroq"]["losses"], results["trl"]["losses"], strict=True))
    worst = max(abs(a - b) / b for a, b in pairs)
    for name, values in results.items():
        print(
            f"{name:6} {values['tokens_s']:8.1f} tokens/s  "
            f"{values['peak_bytes'] / 1e9:5.2f} GB  losses "
            + " ".join(f"{loss:.3f}" for loss in values["losses"])
        )
    if worst > SAME_LOSS:
        print(f"losses differ by {worst:.1%}: not the same work, nothing recorded")
        return 1
    if options.record:
        import trl

        facts = {k: v for k, v in vars(options).items() if k not in ("worker", "record")}
        facts["model"] = Path(facts["model"]).name
        path = append_record(
            "train-peers", facts | {"results": results, "trl": trl.__version__, "tokens": tokens}
        )
        print(f"recorded in {path}")
    return 0


def _measure(name: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "soroq.bench.train_peers", *arguments, "--worker", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compute", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--record", action="store_true", help="append to bench/records")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
