"""Run one peer: `python run_peer.py PEER BASE CALIBRATION OUT`, in the peers' environment.

Stands alone (the peers' environment has no soroq): reads token ids from a soroq calibration file,
quantizes with the peer's own recommended calls, writes dequantized bfloat16 weights (FP8: the
peer's own file) to OUT and the time and peak memory to OUT/peer.json.
"""

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it starts more than two cores can feed

import torch
from safetensors import safe_open


def read_ids(path: Path) -> torch.Tensor:
    """Return token ids int64 (n, seq_len) of a soroq calibration file."""
    with safe_open(path, framework="pt") as file:
        ids: torch.Tensor = file.get_tensor("ids").long()
    return ids


def load_base(base: Path) -> Any:
    """Load in float32: the same values, and 7 times as fast on CPUs without bfloat16 units."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def llmcompressor(base: Path, ids: torch.Tensor, method: str) -> Any:
    """llm-compressor's oneshot with the scheme its documentation gives for the method."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.pipelines import cache

    if hasattr(cache.IntermediatesCache, "pin_memory"):  # needs CUDA, is called without it
        cache.IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    recipe: Any
    if method == "gptq":
        recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    elif method == "awq":
        from llmcompressor.modifiers.awq import AWQModifier

        recipe = [
            AWQModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["lm_head"]),
            QuantizationModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["lm_head"]),
        ]
    else:
        recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])
    model = load_base(base)
    if method == "fp8":
        oneshot(model=model, recipe=recipe)
    else:
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=recipe,
            max_seq_length=ids.shape[1],
            num_calibration_samples=ids.shape[0],
        )
    if method == "awq":
        round_weights(model)
    return model


def round_weights(model: Any) -> None:
    """Round the weights of a model that llm-compressor's QuantizationModifier left in memory.

    It rounds in forward and when it saves; the weights themselves stay as they were folded.
    """
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            rounded = fake_quantize(
                module.weight, module.weight_scale, module.weight_zero_point, scheme.weights
            )
            module.weight.data.copy_(rounded)


def check_levels(tensors: dict[str, torch.Tensor], group_size: int = 64) -> None:
    """Stop if a linear holds more than 16 values a row and group: then it is not 4-bit."""
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            for part in tensor[0].view(-1, group_size):
                if len(part.unique()) > 16:
                    raise SystemExit(f"{name} is not 4-bit: the peer left it unquantized in memory")


def gptqmodel(base: Path, ids: torch.Tensor) -> Any:
    """GPTQModel's GPTQ, symmetric, groups of 128, as its README does it."""
    from gptqmodel import GPTQModel, QuantizeConfig

    # kept in memory: what it offloads to disk can't be read back from the finished object
    config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=False)
    model = GPTQModel.load(str(base), config, device="cpu", dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    model.quantize(rows, batch_size=1)
    return model.model  # the transformers model inside, with packed linears


def autoround(base: Path, ids: torch.Tensor) -> Any:
    """AutoRound's W4A16 with its default of 200 steps a block."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    model = load_base(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rounder = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        iters=200,
        nsamples=ids.shape[0],
        seqlen=ids.shape[1],
        batch_size=4,
        dataset=[
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids
        ],
        device_map="cpu",
        amp=False,  # its default computes in bfloat16, 7 times as slow here
    )
    model, _ = rounder.quantize()
    return model


def hqq(base: Path, ids: torch.Tensor) -> Any:
    """HQQ's own quantizer on every linear of the blocks, groups of 64, no calibration."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = load_base(base)
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                weight = child.weight
                quantized = HQQLinear(child, config, compute_dtype=torch.float32, device="cpu")
                dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                dense.weight = torch.nn.Parameter(quantized.dequantize(), requires_grad=False)
                setattr(module, name, dense)
    return model


PEERS: dict[str, Callable[[Path, torch.Tensor], Any]] = {
    "llmcompressor-gptq": lambda base, ids: llmcompressor(base, ids, "gptq"),
    "llmcompressor-awq": lambda base, ids: llmcompressor(base, ids, "awq"),
    "llmcompressor-fp8": lambda base, ids: llmcompressor(base, ids, "fp8"),
    "gptqmodel": gptqmodel,
    "autoround": autoround,
    "hqq": hqq,
}


def dense_weights(model: Any, base: Path) -> dict[str, torch.Tensor]:
    """Return name → bfloat16 weight of what a peer left in memory, under the base's names.

    llm-compressor and AutoRound leave fake-quantized dense weights behind; GPTQModel leaves packed
    linears, which are multiplied with the identity.
    """
    with safe_open(base / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    state = dict(model.state_dict())
    for name, original in tensors.items():
        if name in state and state[name].shape == original.shape:
            tensors[name] = state[name].detach().to(torch.bfloat16).contiguous()
        elif name.endswith("_proj.weight"):
            module = model.get_submodule(name.removesuffix(".weight"))
            if hasattr(module, "qzero_format") and module.qzero_format() == 1:
                # packed for the file, where zero points are one less than what the kernels take
                from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

                convert_gptq_v1_to_v2_format_module(module, bits=4, pack_dtype=torch.int32)
            with torch.no_grad():
                columns = module(torch.eye(original.shape[1]))
            tensors[name] = columns.t().to(torch.bfloat16).contiguous()
        else:
            raise SystemExit(f"{name} is not in the peer's model")
    return tensors


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--windows", type=int, help="use only so many windows, evenly spaced")
    options = parser.parse_args()
    ids = read_ids(options.calibration)
    if options.windows is not None:
        ids = ids[torch.linspace(0, len(ids) - 1, options.windows).round().long()]
    torch.manual_seed(0)
    started = time.monotonic()
    model = PEERS[options.peer](options.base, ids)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    options.out.mkdir(parents=True)
    if options.peer.endswith("fp8"):  # stored as float8, so that readers round activations too
        model.save_pretrained(options.out, save_compressed=True)
    else:
        tensors = dense_weights(model, options.base)
        check_levels(tensors)
        save_file(tensors, options.out / "model.safetensors", {"format": "pt"})
        shutil.copy(options.base / "config.json", options.out / "config.json")
    for file in options.base.glob("tokenizer*"):
        shutil.copy(file, options.out / file.name)
    facts = {"peer": options.peer, "seconds": seconds, "peak_rss_bytes": peak, "n": len(ids)}
    (options.out / "peer.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
