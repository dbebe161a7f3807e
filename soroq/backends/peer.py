"""Run one other quantizer: `PYTHON peer.py JOB.json`, by the Python of an environment that has it.

Stands alone, since that environment need not have soroq. The job names the tool, the original, a
soroq calibration file, the arguments (see `soroq.backends.tools`) and where the tool is to save its
own checkpoint. Beside it comes `peer.json`, last: versions, seconds, peak memory.
"""

import importlib.metadata
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

VERSIONS = (
    "torch",
    "transformers",
    "llmcompressor",
    "compressed-tensors",
    "gptqmodel",
    "auto-round",
    "optimum",
)


def read_ids(path: str) -> torch.Tensor:
    """Return token ids int64 (n, seq_len) of a soroq calibration file."""
    with safe_open(path, framework="pt") as file:
        ids: torch.Tensor = file.get_tensor("ids").long()
    return ids


def load_base(base: str) -> Any:
    """Load in float32: the same values, and 7 times as fast on CPUs without bfloat16 units."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def run_llmcompressor(job: dict[str, Any], ids: torch.Tensor | None) -> None:
    """llm-compressor's oneshot; it saves compressed-tensors."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.pipelines import cache

    if not torch.cuda.is_available() and hasattr(cache.IntermediatesCache, "pin_memory"):
        # needs CUDA, is called without it
        cache.IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    given = job["arguments"]
    numbers = {"config_groups": given["config_groups"], "ignore": given["ignore"]}
    recipe: list[Any]
    if given["modifier"] == "GPTQModifier":
        recipe = [GPTQModifier(**numbers, dampening_frac=given["dampening_frac"])]
    elif given["modifier"] == "AWQModifier":
        from llmcompressor.modifiers.awq import AWQModifier

        # the first one folds, the second one rounds
        recipe = [AWQModifier(**numbers), QuantizationModifier(**numbers)]
    else:
        recipe = [QuantizationModifier(**numbers)]
    model = load_base(job["base"])
    if ids is None:
        oneshot(model=model, recipe=recipe)
    else:
        rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=recipe,
            max_seq_length=ids.shape[1],
            num_calibration_samples=ids.shape[0],
        )
    model.save_pretrained(job["result"], save_compressed=True)


def run_gptqmodel(job: dict[str, Any], ids: torch.Tensor | None) -> None:
    """GPTQModel's GPTQ; it saves its own layout."""
    # read at import; it starts more than two cores can feed, and breaks with one
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoConfig

    assert ids is not None
    config = QuantizeConfig(**job["arguments"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(job["base"], config, device=device, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    model.quantize(rows, batch_size=1)
    # 7.6 writes rope_type beside Gemma 3's nested rope_parameters; transformers 5 then refuses
    rope = AutoConfig.from_pretrained(job["base"]).rope_parameters
    model.model.config.rope_parameters = rope
    model.save(job["result"])


def run_autoround(job: dict[str, Any], ids: torch.Tensor | None) -> None:
    """AutoRound; it saves in the layout that `format` names."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    given = dict(job["arguments"])
    layout = given.pop("format")
    calibration: dict[str, Any] = {}
    if ids is not None:
        rows = [{"input_ids": r[None], "attention_mask": torch.ones_like(r[None])} for r in ids]
        calibration = {"nsamples": ids.shape[0], "seqlen": ids.shape[1], "dataset": rows}
    rounder = AutoRound(
        load_base(job["base"]),
        AutoTokenizer.from_pretrained(job["base"]),
        seed=job["seed"],
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        amp=torch.cuda.is_available(),  # its default computes in bfloat16, 7 times as slow on a CPU
        **calibration,
        **given,
    )
    rounder.quantize_and_save(job["result"], format=layout, inplace=True)
    for config in list(Path(job["result"]).glob("*/config.json")):  # it makes a folder inside
        for file in config.parent.iterdir():
            file.rename(Path(job["result"], file.name))
        config.parent.rmdir()


TOOLS: dict[str, Callable[[dict[str, Any], torch.Tensor | None], None]] = {
    "llmcompressor": run_llmcompressor,
    "gptqmodel": run_gptqmodel,
    "autoround": run_autoround,
}


def installed() -> dict[str, str]:
    """Return the versions of what took part, as far as it is installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def stop_with_parent() -> None:
    """Kill this process and its workers soon after the one that started it has gone.

    Only in a process group of its own: a killed soroq can't stop its tool any more, and the tool
    would go on writing where a resumed run writes.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    if os.getpgid(0) == os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def main(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    ids = read_ids(job["calibration"]) if job["calibration"] else None
    torch.manual_seed(job["seed"])
    started = time.monotonic()
    TOOLS[job["tool"]](job, ids)
    facts = {
        "tool": job["tool"],
        "versions": installed(),
        "seconds": time.monotonic() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    Path(job["result"], "peer.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    stop_with_parent()
    main(Path(sys.argv[1]))
