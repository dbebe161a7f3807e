"""Write the golden HQQ checkpoints with hqq 0.2.8.post1 on a CPU.

    python tests/io/golden/make_hqq.py FOLDER

Nothing of soroq's formats is used: soroq only writes the random model that is quantized.
`dense.json` holds hashes of what hqq's own `dequantize` gives in the dtype that it computes in,
weights (N, K) by module.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from transformers import AutoModelForCausalLM

from soroq.models.tiny import write_tiny_model

# name: options of a weight's configuration, the dtype hqq computes and stores scales in. Without
# `optimize` zero points stay the integers that `round_zero` makes of them.
CASES = {
    "hqq": ({"group_size": 32}, torch.float32),
    "hqq-rows": ({"group_size": None}, torch.float16),
    "hqq-whole": ({"group_size": 32, "optimize": False}, torch.bfloat16),
}


def main(folder: Path) -> None:
    base = write_tiny_model(
        Path(tempfile.mkdtemp()) / "base",
        "llama",
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=64,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    for name, (options, dtype) in CASES.items():
        out = Path(tempfile.mkdtemp()) / name
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        config = BaseQuantizeConfig(nbits=4, axis=1)
        config["weight_quant_params"] |= options
        AutoHQQHFModel.quantize_model(model, config, compute_dtype=dtype, device="cpu")
        dense = {
            path: hashlib.sha256(m.dequantize().contiguous().view(torch.uint8).numpy()).hexdigest()
            for path, m in model.named_modules()
            if isinstance(m, HQQLinear)
        }
        AutoHQQHFModel.save_to_safetensors(model, str(out))
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(out / file, target / file)
        (target / "dense.json").write_text(json.dumps(dense, indent=1) + "\n")


main(Path(sys.argv[1]))
