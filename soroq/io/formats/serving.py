"""Do vLLM and SGLang open a checkpoint? Their rules, from its `quantization_config` alone.

    >>> objections({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False})
    {'vLLM 0.33': 'it takes GPTQ without zero points only …', 'SGLang 0.5.23': …}

vLLM 0.33.0's classes were asked about every scheme in every format (`bench/peers/vllm_opens.py`;
tests/io/golden/vllm.json holds the answers). SGLang 0.5.23 was read, not run: its GPTQ without
Marlin raises "The non-Marlin GPTQ CUDA kernel has been removed" (layers/quantization/gptq/schemes/
gptq_linear.py), and Marlin takes the same numbers as vLLM's (marlin_utils.py,
MARLIN_SUPPORTED_GROUP_SIZES). An NVIDIA GPU is assumed, and a known architecture.

Both sources also say what becomes of a format they don't know:

- mlx names no quant_method, which both read as "": vLLM then takes the weights as not quantized
  (vllm/config/model.py, ModelConfig._verify_quantization) and finds other shapes, SGLang says
  "Unknown quantization method" (srt/configs/model_config.py, the function of that name).
- awq-gemv: both take bits, group size and zero points of AWQ's configuration and not its `version`
  (vllm/model_executor/layers/quantization/auto_awq.py and srt/layers/quantization/awq/awq.py,
  from_config), and look for the other layout's shapes.
- GGUF left vLLM in 0.24 for the package vllm-gguf-plugin: "gguf" isn't among 0.33.0's
  QuantizationMethods (vllm/model_executor/layers/quantization/__init__.py). SGLang reads it
  (srt/layers/quantization/gguf.py) where GGUF calls the architecture as transformers does
  (srt/model_loader/loader.py, GGUFModelLoader._get_gguf_weights_map), so not Gemma 3.
"""

from collections.abc import Mapping
from typing import Any

from soroq.core.scheme import QuantArgs
from soroq.io.formats.registry import format_of

MARLIN_GROUPS = (32, 64, 128, None)  # None: the whole row
SERVED = ("compressed-tensors", "gptq", "gptq-v2", "awq")
VLLM, SGLANG = SERVERS = ("vLLM 0.33", "SGLang 0.5.23")
GGUF_TYPES = ("llama", "qwen2", "qwen3")  # model types that gguf.MODEL_ARCH_NAMES calls so too
_ELSEWHERE = {
    "mlx": "it doesn't read mlx, mlx-lm does; convert to compressed-tensors or awq",
    "awq-gemv": "it reads AWQ's GEMM layout only; convert to awq",
    "hqq": "nobody asked it; where zero points are integers, convert to compressed-tensors",
}


def objections(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Return for each server why it won't open such a checkpoint, None if it will.

    config: config.json's `quantization_config`. Raises CheckpointError for one soroq can't read.
    """
    if config.get("quant_method") == "soroq":
        return dict.fromkeys(
            SERVERS, "only soroq knows quant_method soroq; convert to compressed-tensors"
        )
    format_ = format_of(dict(config))
    if format_.name not in SERVED:
        return dict.fromkeys(SERVERS, _ELSEWHERE[format_.name])
    found: dict[str, str | None] = dict.fromkeys(SERVERS)
    for _, args, _ in format_.parse(config):
        reason = _objection(format_.name, args)
        if reason is not None:
            return dict.fromkeys(SERVERS, reason)
        if config.get("desc_act") and args.group_size is not None:
            # vLLM, layers/quantization/utils/gptq_utils.py
            found[VLLM] = "it no longer takes desc_act; quantize it again without"
    return found


def gguf_objections(model_type: str) -> dict[str, str | None]:
    """Return for each server why it won't open a GGUF file, None if it will.

    model_type: as transformers calls what is in the file.
    """
    found: dict[str, str | None] = dict.fromkeys(SERVERS)
    found[VLLM] = (
        "it reads GGUF with the package vllm-gguf-plugin only, which wasn't looked at; llama.cpp "
        "opens it"
    )
    if model_type not in GGUF_TYPES:
        found[SGLANG] = f"it doesn't find {model_type} among GGUF's names; llama.cpp opens it"
    return found


def _objection(format_name: str, args: QuantArgs) -> str | None:
    if args.dtype == "float":
        return None
    if format_name.startswith("gptq") and not args.symmetric:
        return (
            "it takes GPTQ without zero points only (sym true); convert to awq or "
            "compressed-tensors"
        )
    if format_name != "awq" and args.group_size not in MARLIN_GROUPS:
        # AWQ has a kernel without that rule in both
        return f"its kernels take groups of 32, 64, 128 or a row, not {args.group_size}"
    return None
