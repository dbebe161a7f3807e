"""A quantized checkpoint as one .gguf file, which llama.cpp and what is built on it open.

    soroq convert OUT model.gguf --format gguf

Each matrix is written as `soroq.io.formats.gguf` says: the codes and scales that were solved, not
rounded again. What isn't quantized keeps its numbers: matrices in their own dtype, vectors (norms,
biases) in float32, where Gemma's norms become 1 + w. Llama's q and k rows are put in the order of
llama.cpp's rotary embedding. With `k_quants`, weights with zero points become Q4_K, and embedding
and head, which are rounded for it, Q6_K. The file is written by the `gguf` package, one matrix in
memory.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soroq.core.errors import CheckpointError, OutputError
from soroq.core.qtensor import take_rows
from soroq.export.gguf_metadata import architecture_of, model_metadata, rope_factors, tensor_name
from soroq.export.gguf_tokenizer import tokenizer_metadata
from soroq.io.checkpoint import Checkpoint, open_stored
from soroq.io.formats.gguf import encode, encode_q6_k, kind_of
from soroq.io.formats.gguf_blocks import SUPER, row_bytes
from soroq.io.formats.refusal import FormatError
from soroq.io.gguf import ROPE_FACTORS
from soroq.io.safetensors_file import fsync_directory
from soroq.io.stored import StoredWeights
from soroq.io.writer import require_disk_space
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout

FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K": 14}  # enum llama_ftype, "mostly …"
ROUNDED_ROWS = 8192  # of an embedding at a time
BESIDE_BLOCKS = ("token_embd.weight", "output.weight")
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
Listener = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: llama.cpp's name, ggml type, shape, bytes, and how to get it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], torch.Tensor]


def write_gguf(
    source: str | Path,
    out: Path,
    *,
    k_quants: bool = False,
    listen: Listener = lambda done, total, tensor: None,
) -> None:
    """Write the quantized checkpoint `source` as the new file `out`.

    k_quants: Q4_K and Q6_K where rows fill their blocks of 256. Raises FormatError when GGUF can't
    hold its weights, CheckpointError when llama.cpp can't run the model, OutputError when `out`
    exists or the disk is too small.
    """
    if out.suffix != ".gguf":
        raise OutputError(f"{out}: --format gguf writes one file; give a name that ends in .gguf")
    if out.exists():
        raise OutputError(f"{out} exists; choose another or delete it")
    checkpoint = open_stored(source)
    architecture = architecture_of(checkpoint.config)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    tensors = plan(checkpoint, layout, architecture, k_quants)
    require_disk_space(out, sum(tensor.nbytes for tensor in tensors))
    out.parent.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(checkpoint, layout, architecture, tensors)
    building = out.with_name(f"{out.name}.tmp")
    try:
        _write(building, architecture, metadata, tensors, listen)
        os.replace(building, out)
        fsync_directory(out.parent)
    except OSError as error:
        raise OutputError(f"can't write {out}: {error.strerror or error}") from error
    finally:
        building.unlink(missing_ok=True)


def plan(
    checkpoint: Checkpoint, layout: DecoderLayout, architecture: str, k_quants: bool = False
) -> list[Planned]:
    """Return what each tensor becomes. Raises FormatError with the modules that can't be stored."""
    stored = StoredWeights(checkpoint)
    inside = stored.parts()
    tensors: list[Planned] = []
    refused: dict[str, list[str]] = {}
    for module in sorted(stored.quantized):
        args, activation = stored.arguments(module)
        shape = stored.open(module).shape
        kind = kind_of(args, activation, shape[1], k_quants=k_quants)
        if isinstance(kind, FormatError):
            refused.setdefault(str(kind), []).append(module)
            continue
        name = _name(f"{module}.weight", layout, architecture)
        if name is None:
            continue
        load = partial(_load_blocks, stored, module, _heads(name, layout, architecture), k_quants)
        if k_quants and name in BESIDE_BLOCKS and shape[1] % SUPER == 0:
            kind, load = "Q6_K", partial(_load_rounded, stored, module)
        nbytes = shape[0] * row_bytes(kind, shape[1])
        tensors.append(Planned(name, kind, shape, nbytes, load))
    if refused:
        lines = [
            where[0] + (f" and {len(where) - 1} more" if len(where) > 1 else "") + f": {why}"
            for why, where in refused.items()
        ]
        raise FormatError(f"{checkpoint.path} can't be gguf: {'; '.join(lines)}")
    for name in checkpoint.names():
        theirs = None if name in inside else _name(name, layout, architecture)
        if theirs is None:
            continue
        planned = _plan_dense(checkpoint, name, theirs, layout, architecture)
        if k_quants and theirs in BESIDE_BLOCKS and planned.shape[1] % SUPER == 0:
            load = partial(_load_rounded, stored, name.removesuffix(".weight"))
            nbytes = planned.shape[0] * row_bytes("Q6_K", planned.shape[1])
            planned = Planned(theirs, "Q6_K", planned.shape, nbytes, load)
        tensors.append(planned)
    factors = rope_factors(layout.text_config, layout.head_dim)
    if factors is not None:
        size = (factors.numel(),)
        tensors.append(Planned(ROPE_FACTORS, "F32", size, factors.nbytes, lambda: factors))
    return tensors


def _name(name: str, layout: DecoderLayout, architecture: str) -> str | None:
    """Return llama.cpp's name, None for what lies beside the decoder (an image encoder)."""
    if name.startswith(layout.prefix):
        inner = name.removeprefix(layout.prefix)
    elif name.startswith("lm_head."):
        inner = name
    else:
        return None
    theirs = tensor_name(inner, architecture)
    if theirs is None:
        raise CheckpointError(f"{name}: llama.cpp's {architecture} has no such tensor")
    return theirs


def _plan_dense(
    checkpoint: Checkpoint, name: str, theirs: str, layout: DecoderLayout, architecture: str
) -> Planned:
    info = checkpoint.info(name)
    if info.dtype not in _FLOATS:
        raise FormatError(f"{name}: dtype {info.dtype} can't be written as GGUF")
    heads = _heads(theirs, layout, architecture)
    if len(info.shape) == 1:
        offset = layout.architecture.norm_offset if "norm" in theirs else 0.0
        load = partial(_load_vector, checkpoint, name, offset, heads)
        return Planned(theirs, "F32", info.shape, 4 * info.shape[0], load)
    load = partial(_load_matrix, checkpoint, name, heads)
    return Planned(theirs, _FLOATS[info.dtype], info.shape, info.nbytes, load)


def _load_blocks(
    stored: StoredWeights, module: str, heads: int | None, k_quants: bool
) -> torch.Tensor:
    weight = stored.load_quantized(module)[0]
    return _rotary_order(encode(module, weight, k_quants=k_quants), heads)


def _load_rounded(stored: StoredWeights, module: str) -> torch.Tensor:
    """Return a matrix, quantized or not, in Q6_K blocks; some rows at a time are float32."""
    if module in stored.quantized:
        whole = stored.load_quantized(module)[0]
        spans = (slice(at, at + ROUNDED_ROWS) for at in range(0, whole.shape[0], ROUNDED_ROWS))
        return torch.cat([encode_q6_k(take_rows(whole, span).dequantize()) for span in spans])
    matrix = stored.open(module)
    N = matrix.shape[0]
    starts = range(0, N, ROUNDED_ROWS)
    parts = (matrix.rows(start, min(start + ROUNDED_ROWS, N))[0] for start in starts)
    return torch.cat([encode_q6_k(part) for part in parts])


def _load_vector(
    checkpoint: Checkpoint, name: str, offset: float, heads: int | None
) -> torch.Tensor:
    return _rotary_order(checkpoint.load(name).float() + offset, heads)


def _load_matrix(checkpoint: Checkpoint, name: str, heads: int | None) -> torch.Tensor:
    return _rotary_order(checkpoint.load(name), heads)


def _heads(theirs: str, layout: DecoderLayout, architecture: str) -> int | None:
    """Return how many heads' rows have to be interleaved, None for most tensors."""
    config = layout.text_config
    if architecture != "llama":
        return None
    if ".attn_q." in theirs:
        return int(config["num_attention_heads"])
    if ".attn_k." in theirs:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def _rotary_order(rows: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Interleave the two halves of each head's rows, as llama.cpp turns neighbours."""
    if heads is None:
        return rows
    halves = rows.view(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _metadata(
    checkpoint: Checkpoint, layout: DecoderLayout, architecture: str, tensors: list[Planned]
) -> dict[str, Any]:
    config = layout.text_config
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    kinds = Counter(t.kind for t in tensors if t.name.startswith("blk.") and t.kind in FILE_TYPES)
    metadata = {
        "general.type": "model",
        "general.name": checkpoint.path.name,
        "general.quantization_version": 2,  # GGML_QNT_VERSION
        **model_metadata(config, architecture, layout.head_dim),
    }
    if kinds:
        metadata["general.file_type"] = FILE_TYPES[kinds.most_common(1)[0][0]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.copy_side_files(Path(folder))
        merged = {**checkpoint.config, **config}
        return metadata | tokenizer_metadata(Path(folder), merged, rows)


def _write(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: list[Planned],
    listen: Listener,
) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        # float32 as a placeholder dtype: with bytes, the writer would take a shape in bytes
        writer.add_tensor_info(
            tensor.name, tensor.shape, numpy.dtype(numpy.float32), tensor.nbytes, kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors):
            listen(done, len(tensors), tensor.name)
            values = tensor.load().contiguous()
            writer.write_tensor_data(values.view(torch.uint8).numpy())
    finally:
        for file in writer.fout or []:
            file.flush()
            os.fsync(file.fileno())
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
