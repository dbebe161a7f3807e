"""Adapters of low rank beside frozen linears (LoRA, arXiv 2106.09685), by peft.

y = x Wᵀ + (alpha / rank) · x Aᵀ Bᵀ with A (rank, K) random and B (N, rank) zero at first. A run
ends with both: the weights with B A added, and the adapter itself in peft's own format.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soroq.core.errors import SchemeError
from soroq.io.checkpoint import Checkpoint
from soroq.io.writer import atomic_write, make_folder
from soroq.models.registry import find_layout
from soroq.train.config import ModelConfig

NAME = "default"  # what peft calls an adapter
A, B = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"


def add_lora_(model: Any, config: ModelConfig) -> Any:
    """Put adapters beside the linears of `lora_targets`, and freeze all else; return peft's config.

    Adapters are float32 whatever the weights are. Raises SchemeError for an unknown target.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SchemeError("model.lora_rank needs a package: pip install peft") from error
    modules = model.model.layers.named_modules()
    known = {name.split(".")[-1] for name, module in modules if isinstance(module, nn.Linear)}
    for target in config.lora_targets:
        if target not in known:
            near = difflib.get_close_matches(target, sorted(known), 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise SchemeError(f"model.lora_targets: {target!r} is no linear of the model; {hint}")
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.source,
    )
    inject_adapter_in_model(lora, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return lora


def merged(
    learned: Mapping[str, torch.Tensor], checkpoint: Checkpoint, config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that adapters change, float32, by name in the text-only model.

    learned: the adapters' tensors, whole. W + (alpha / rank) · B A.
    """
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    scale = config.lora_alpha / config.lora_rank
    for stored in checkpoint.names():
        name = layout.text_name(stored) or ""
        module = name.removesuffix(".weight")
        if module + A in learned:
            weight = checkpoint.load(stored, dtype=torch.float32)
            yield name, weight.addmm_(learned[module + B], learned[module + A], alpha=scale)


def save_adapter(folder: Path, learned: Mapping[str, torch.Tensor], lora: Any) -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft reads them."""
    from safetensors.torch import save

    make_folder(folder)
    tensors = {
        "base_model.model." + name.replace(f".{NAME}.", "."): tensor.contiguous()
        for name, tensor in learned.items()
    }
    atomic_write(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    lora.save_pretrained(folder)
