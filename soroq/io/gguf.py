"""A GGUF file as a checkpoint: its quantized tensors expanded to bfloat16, names translated.

Facts: the GGUF specification, llama.cpp's tensor names, and how its converter changes weights
(Gemma's RMSNorm weights are stored as 1 + w; Llama's q and k rows are permuted for its rotary
layout). Expansion is done by the `gguf` package.
"""

import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.io.checkpoint import Checkpoint, TensorInfo
from soroq.io.gguf_header import GgufTensor, read_header
from soroq.io.writer import sha256_file

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LLAMA_NORMS = {"ffn_norm": "post_attention_layernorm"}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
ARCHITECTURES = {
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufCheckpoint(Checkpoint):
    """The tensors of one GGUF file under Hugging Face names, as bfloat16."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        self.header = read_header(path)
        self.architecture = str(self.header.metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path}: GGUF architecture {self.architecture!r} is not supported; supported: "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        self._tensors: dict[str, GgufTensor] = {}
        size = path.stat().st_size
        for tensor in self.header.tensors.values():
            sizes = gguf.GGML_QUANT_SIZES
            try:
                kind = gguf.GGMLQuantizationType(tensor.ggml_type)
            except ValueError as error:
                raise CheckpointError(
                    f"{path}: {tensor.name} has unknown ggml type {tensor.ggml_type}"
                ) from error
            block, block_bytes = sizes[kind]
            count = math.prod(tensor.shape)
            if count % block or (tensor.shape and tensor.shape[-1] % block):
                raise CheckpointError(f"{path}: {tensor.name}: {tensor.shape} in blocks of {block}")
            end = self.header.data_start + tensor.offset + count // block * block_bytes
            if end > size:
                raise CheckpointError(
                    f"{path}: truncated: {tensor.name} ends at byte {end}, the file has {size}"
                )
            inner = tensor.name
            if inner != ROPE_FACTORS:
                inner = translate(tensor.name, self.architecture, path)
            self._tensors[inner] = tensor
        factors = self._expand(ROPE_FACTORS, 0, None) if ROPE_FACTORS in self._tensors else None
        self._tensors.pop(ROPE_FACTORS, None)
        self.config = make_config(self.header.metadata, self._tensors, path, factors)

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        shape = self._tensors[name].shape
        return TensorInfo(shape, torch.bfloat16, math.prod(shape) * 2)

    def _load(self, name: str) -> torch.Tensor:
        return self._expand(name, 0, None)

    def _load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        shape = self._tensors[name].shape
        if len(shape) != 2:
            raise CheckpointError(f"{name}: shape {shape} is not a matrix")
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < shape[0]:
            raise CheckpointError(
                f"{name}: rows {int(rows.min())} to {int(rows.max())} asked for, it has {shape[0]}"
            )
        unique, inverse = rows.unique(return_inverse=True)
        return torch.cat([self._expand(name, int(row), 1) for row in unique])[inverse]

    def _kind(self, name: str) -> str:
        """Return the ggml type of a tensor by name."""
        import gguf

        return str(gguf.GGMLQuantizationType(self._tensors[name].ggml_type).name)

    def _read(self, name: str, first: int, count: int | None) -> Any:
        """Return rows [first, first + count) of a tensor (None: all) as they are stored.

        A writable uint8 array (rows, bytes); a tensor without axes is one row.
        """
        import gguf
        import numpy

        tensor = self._tensors[name]
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self._kind(name)]]
        width = tensor.shape[-1] if tensor.shape else 1
        row_bytes = width // block * block_bytes
        n_rows = math.prod(tensor.shape) // max(width, 1) if count is None else count
        with self.path.open("rb") as file:
            file.seek(self.header.data_start + tensor.offset + first * row_bytes)
            raw = bytearray(file.read(n_rows * row_bytes))
        if len(raw) != n_rows * row_bytes:
            raise CheckpointError(f"{self.path}: shrank while it was read")
        return numpy.frombuffer(raw, numpy.uint8).reshape(n_rows, row_bytes)

    def _expand(self, name: str, first: int, count: int | None) -> torch.Tensor:
        """Return rows [first, first + count) of a tensor (None: all) as bfloat16."""
        import gguf
        import numpy

        tensor = self._tensors[name]
        raw = self._read(name, first, count)
        values = gguf.dequantize(raw, gguf.GGMLQuantizationType[self._kind(name)])
        weight = torch.from_numpy(numpy.array(values, dtype=numpy.float32)).view(
            tensor.shape if count is None else (count, tensor.shape[-1])
        )
        if self.architecture == "gemma3" and "norm" in tensor.name:
            weight = weight - 1
        if self.architecture == "llama" and count is None:
            weight = self._undo_rotary_order(tensor.name, weight)
        return weight if name == ROPE_FACTORS else weight.to(torch.bfloat16)

    def _undo_rotary_order(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Put q and k rows back: llama.cpp interleaves the two halves of each head."""
        key = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
        for part, field in key.items():
            if part in name:
                heads = int(self.config[field])
                pairs = weight.view(heads, -1, 2, *weight.shape[1:])
                return pairs.transpose(1, 2).reshape(weight.shape)
        return weight

    def _hash(self) -> str:
        return sha256_file(self.path)

    def copy_side_files(self, out: Path) -> None:
        """Write the tokenizer that the GGUF carries to `out`."""
        from soroq.io.gguf_tokenizer import write_tokenizer

        write_tokenizer(self.header.metadata, out)


def translate(name: str, architecture: str, path: Path) -> str:
    """Return the Hugging Face name of a llama.cpp tensor. Raises CheckpointError for others."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    match = _BLOCK.fullmatch(name)
    norms = GEMMA_NORMS if architecture == "gemma3" else LLAMA_NORMS
    if match and (inner := {**BLOCK_NAMES, **norms}.get(match[2])):
        return f"model.layers.{match[1]}.{inner}.{match[3]}"
    raise CheckpointError(f"{path}: tensor {name!r} is unknown in architecture {architecture!r}")


def make_config(
    metadata: dict[str, Any],
    tensors: dict[str, GgufTensor],
    path: Path,
    rope_factors: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Return the config.json that a GGUF's metadata describes.

    rope_factors (head_dim / 2,): the file's rope_freqs.weight, if it has one. Raises
    CheckpointError when a needed key is missing.
    """
    architecture = str(metadata["general.architecture"])
    model_type, class_name = ARCHITECTURES[architecture]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise CheckpointError(f"{path}: metadata {architecture}.{key} is missing")
        return value

    try:
        heads = int(get("attention.head_count"))
        hidden = int(get("embedding_length"))
        n_blocks = int(get("block_count"))
        config: dict[str, Any] = {
            "architectures": [class_name],
            "model_type": model_type,
            "dtype": "bfloat16",
            # without it transformers warns that the tokenizer might be an old Mistral one
            "transformers_version": version("transformers"),
            "hidden_size": hidden,
            "intermediate_size": int(get("feed_forward_length")),
            "num_hidden_layers": n_blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": int(get("attention.head_count_kv", heads)),
            "head_dim": int(get("attention.key_length", hidden // max(heads, 1))),
            "max_position_embeddings": int(get("context_length")),
            # stored as float32: 1e-06 comes back as 9.99999997e-07
            "rms_norm_eps": float(f"{float(get('attention.layer_norm_rms_epsilon')):.6g}"),
            "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
            "tie_word_embeddings": "lm_head.weight" not in tensors,
        }
        theta = float(get("rope.freq_base", 1e6 if architecture == "gemma3" else 1e4))
        rope = rope_parameters(metadata, architecture, theta, path)
        if rope_factors is not None:
            rope = llama3_rope(rope_factors, theta, config, path)
        if not 0 < n_blocks <= len(tensors):
            raise ValueError(f"block_count {n_blocks} with {len(tensors)} tensors")
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path}: unusable metadata: {error!r}") from error
    for field in ("bos", "eos", "pad"):
        name = "padding" if field == "pad" else field
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int):
            config[f"{field}_token_id"] = token
    if architecture == "gemma3":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            # Gemma 3 27B (62 blocks) divides by hidden / heads, the others by the head size
            "query_pre_attn_scalar": hidden // heads if n_blocks == 62 else config["head_dim"],
            "sliding_window": int(get("attention.sliding_window")),
            "layer_types": [
                "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(n_blocks)
            ],
            "rope_parameters": {
                "full_attention": rope,  # scaling is for the blocks with full attention only
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        }
    else:
        config["rope_parameters"] = rope
    return config


def rope_parameters(
    metadata: dict[str, Any], architecture: str, theta: float, path: Path
) -> dict[str, Any]:
    """Return transformers' rope_parameters for a GGUF's `rope.scaling` keys.

    Raises CheckpointError for a kind of scaling that is not carried over: dropping it would change
    the model without a word.
    """
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.get(prefix + "type", "none")
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"{path}: rotary scaling {kind!r} is not supported; linear and yarn are"
        )
    rope: dict[str, Any] = {
        "rope_theta": theta,
        "rope_type": kind,
        "factor": float(metadata[prefix + "factor"]),
    }
    if kind == "yarn":
        original = metadata[prefix + "original_context_length"]
        rope["original_max_position_embeddings"] = int(original)
    return rope


def llama3_rope(
    factors: torch.Tensor, theta: float, config: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Return the rope_parameters of Llama 3.1's scaling from the factors llama.cpp stores for it.

    The four constants are not in the file: the published ones are tried and the factors computed
    from them must equal those stored, else CheckpointError.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim = int(config["head_dim"])
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    rope = {
        "rope_theta": theta,
        "rope_type": "llama3",
        "factor": round(float(factors.max()), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    asked = LlamaConfig(head_dim=head_dim, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](asked, torch.device("cpu"))
    if factors.shape != plain.shape or not torch.allclose(plain / scaled, factors, rtol=1e-3):
        raise CheckpointError(
            f"{path}: its rope_freqs are not those of Llama 3.1; convert it from the original "
            "Hugging Face checkpoint instead"
        )
    return rope
