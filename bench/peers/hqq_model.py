"""Quantize a model with HQQ: `python hqq_model.py BASE OUT`, in the peers' environment.

Stands alone (that environment needs no soroq). HQQ's zero points are no integers, so that its
result can't be a soroq checkpoint as those of `soroq quantize --backend`: OUT gets the dequantized
weights in bfloat16, and `peer.json` the time and peak memory.
"""

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def quantize(base: Path) -> Any:
    """HQQ's own quantizer on every linear of the blocks, groups of 64, no calibration."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
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


def dense_weights(model: Any, base: Path) -> dict[str, torch.Tensor]:
    """Return name → bfloat16 weight of the model in memory, under the base's names."""
    with safe_open(base / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    state = model.state_dict()
    return {name: state[name].detach().to(torch.bfloat16).contiguous() for name in names}


def check_levels(tensors: dict[str, torch.Tensor], group_size: int = 64) -> None:
    """Stop if a linear holds more than 16 values a row and group: then it is not 4-bit."""
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            for part in tensor[0].view(-1, group_size):
                if len(part.unique()) > 16:
                    raise SystemExit(f"{name} is not 4-bit: the peer left it unquantized in memory")


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    started = time.monotonic()
    tensors = dense_weights(quantize(options.base), options.base)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    check_levels(tensors)
    options.out.mkdir(parents=True)
    save_file(tensors, options.out / "model.safetensors", {"format": "pt"})
    for file in (options.base / "config.json", *options.base.glob("tokenizer*")):
        shutil.copy(file, options.out / file.name)
    facts = {"peer": "hqq", "seconds": seconds, "peak_rss_bytes": peak}
    (options.out / "peer.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
