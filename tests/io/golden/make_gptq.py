"""Write the golden GPTQ checkpoints with gptqmodel 7.6.0 on a CPU (GPTQMODEL_CPU_WORKERS=2).

    python tests/io/golden/make_gptq.py FOLDER

Needs gptqmodel 7.6.0, optimum 2.3.0 and numpy 2.2.6. Nothing of soroq's formats is used: soroq only
writes the random model that is quantized. Beside each checkpoint lies `dense.safetensors`: its
weights (N, K) as gptqmodel's own torch kernel unpacks them in float16.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization import FORMAT, QuantizeConfig
from safetensors.torch import save_file

from soroq.models.tiny import write_tiny_model

CASES = {
    "gptq": {"format": FORMAT.GPTQ, "sym": True, "desc_act": False},
    "gptq-asym": {"format": FORMAT.GPTQ, "sym": False, "desc_act": False},
    "gptq-v2": {"format": FORMAT.GPTQ_V2, "sym": True, "desc_act": False},
    "gptq-desc-act": {"format": FORMAT.GPTQ, "sym": True, "desc_act": True},
}


def main(folder: Path) -> None:
    base = write_tiny_model(
        Path(tempfile.mkdtemp()) / "base",
        "llama",
        num_hidden_layers=1,
        intermediate_size=64,
        head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    ids = torch.randint(4, 260, (16, 128), generator=torch.Generator().manual_seed(0))
    texts = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    for name, options in CASES.items():
        out = Path(tempfile.mkdtemp()) / name
        model = GPTQModel.load(str(base), QuantizeConfig(bits=4, group_size=32, **options))
        model.quantize(texts, batch_size=1)
        model.save(str(out))
        loaded = GPTQModel.load(str(out), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
        dense = {}
        for path, module in loaded.model.named_modules():
            if hasattr(module, "qweight"):
                dense[path] = module.dequantize_weight().t().contiguous().float()
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "model.safetensors", target / "model.safetensors")
        config = json.loads((out / "config.json").read_text())
        meta = config["quantization_config"].get("meta", {})
        meta.pop("offload_to_disk_path", None)  # a path of the machine it ran on
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(dense, target / "dense.safetensors")
        print(
            name, len(dense), json.loads((out / "config.json").read_text())["quantization_config"]
        )


main(Path(sys.argv[1]))
