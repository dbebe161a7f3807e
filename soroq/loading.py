"""soroq.load: open a checkpoint, quantized or not, as a transformers causal model.

    model = soroq.load("gemma3-270m-int4")                # weights stay packed
    model = soroq.load("gemma3-270m-int4", packed=False)  # dequantized, for evaluation
    model = soroq.load("gemma3-270m-int4", device="cuda")  # in tiles, through the Triton kernels

On a CPU generating text is many times as fast with `soroq.decoder`, which runs whole steps in C++.

Only the text decoder of a multimodal checkpoint is built.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soroq.core.errors import CheckpointError
from soroq.core.memory import release_memory
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.checkpoint import Checkpoint, open_stored
from soroq.io.stored import REAL_ZEROS, StoredWeights
from soroq.kernels.panels import is_built, pack
from soroq.models.registry import find_layout
from soroq.models.runner import build_skeleton
from soroq.nn.late import LateEmbedding, LateLinear
from soroq.nn.linear import PackedEmbedding, PackedLinear, RoundedLinear
from soroq.nn.panels import PanelEmbedding, PanelLinear
from soroq.nn.rounded import fuse_rounding
from soroq.nn.tiled import put, tile_model


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    packed: bool = True,
    late: bool = False,
    device: torch.device | str = "cpu",
    precision: str | None = "exact",
) -> Any:
    """Return the causal model in `source`, ready to run on `device`.

    dtype: what is computed in; float32 on a CPU, bfloat16 elsewhere if not given. packed: keep
    quantized weights as they are stored and run them through `soroq.kernels`; otherwise dequantize
    them to `dtype`. late: keep all matrices as they are stored and convert them to `dtype` whenever
    they are used (soroq.nn.late); for evaluation in little memory. On a GPU packed int4 and int8
    weights lie in tiles, and an MLP's and an attention's products are fused where all parts are
    alike (soroq.nn.tiled); norms round for float8 products (soroq.nn.rounded). On a CPU they lie in
    panels (soroq.nn.panels), if soroq._cpu is built, and `precision` says what activations are
    multiplied as: "exact", "int16" or "int8"; None keeps the stored words. Raises CheckpointError
    when tensors are missing or of another shape than config.json says.
    """
    tiled = torch.device(device).type != "cpu"
    if dtype is None:
        dtype = torch.bfloat16 if tiled else torch.float32
    checkpoint = open_stored(source)
    names = set(checkpoint.names())
    layout = find_layout(checkpoint.config, names)
    model = build_skeleton(layout.text_config)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    stored = StoredWeights(checkpoint)
    on_panels = None if tiled or not is_built() else precision
    state: dict[str, torch.Tensor] = {}
    for name in sorted(names.difference(stored.parts())):
        target = layout.text_name(name)
        if target is not None:
            keep = late and len(checkpoint.info(name).shape) == 2
            _refuse_other_shape(name, checkpoint.info(name).shape, shapes.get(target))
            state[target] = checkpoint.load(name, dtype=None if keep else dtype)
    for module in sorted(stored.quantized):
        target = layout.text_name(module)
        if target is None:
            continue
        bias = state.pop(f"{target}.bias", None)
        shape = shapes.get(f"{target}.weight")
        if packed and not late:
            place_packed(
                model, target, stored, module, shape, bias=bias, dtype=dtype, precision=on_panels
            )
            continue
        weight, activation, input_scale = stored.load_quantized(module)
        _refuse_other_shape(module, weight.shape, shape)
        if module + ".weight" == layout.embedding:
            _replace_embedding(model, weight, dtype, late, state)
        elif late:
            kept = LateLinear(weight, bias, activation=activation, input_scale=input_scale)
            put(model, target, kept)
        else:
            _replace(model, target, weight, bias, activation, input_scale, dtype)
    if not any(layout.text_name(module) == "lm_head" for module in stored.quantized):
        _tie_head(state)
    if late:
        _keep_stored(model, state, dtype)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    wanted = [n for n in missing if not _belongs_to_packed(model, n)]
    if wanted or unexpected:
        raise CheckpointError(
            f"{checkpoint.path}: missing {sorted(wanted)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )
    _generation_config(model, checkpoint)
    if tiled and packed:
        tile_model(model, layout.architecture.linear_groups, dtype)
        fuse_rounding(model, layout.architecture.norms, offset=layout.architecture.norm_offset)
    return model.to(device).requires_grad_(False).eval()


def _refuse_other_shape(name: str, shape: Sequence[int], wanted: Sequence[int] | None) -> None:
    if wanted is not None and tuple(shape) != tuple(wanted):
        raise CheckpointError(
            f"{name}: shape {tuple(shape)} does not fit config.json, which says {tuple(wanted)}"
        )


def place_packed(
    model: nn.Module,
    path: str,
    stored: StoredWeights,
    module: str,
    wanted: Sequence[int] | None,
    *,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    precision: str | None,
) -> None:
    """Put a stored weight, packed, in the place of `path`; an embedding becomes the head too.

    precision: what panels multiply activations as; None keeps the stored words. wanted: the shape
    that config.json promises; CheckpointError for another. Panels read slices of rows, so that the
    weight is in memory once.
    """
    matrix = stored.open(module)
    _refuse_other_shape(module, matrix.shape, wanted)
    linear: PanelLinear | PackedLinear
    if precision is not None and matrix.args is not None and matrix.args.dtype == "int":
        linear = PanelLinear(pack(matrix), precision=precision, bias=bias)
    else:
        weight, activation, input_scale = stored.load_quantized(module)
        if weight.has_real_zeros:
            raise CheckpointError(f"{module}: {REAL_ZEROS}")
        linear = PackedLinear(weight, bias=bias, activation=activation, input_scale=input_scale)
    if path.rpartition(".")[2] != "embed_tokens":
        put(model, path, linear)
        return
    scale = _embedding_scale(model.get_submodule(path))
    if isinstance(linear, PanelLinear):
        put(model, path, PanelEmbedding(linear, scale, dtype))
    else:
        put(model, path, PackedEmbedding(linear, scale, dtype))
    if hasattr(model, "lm_head"):
        put(model, "lm_head", linear)


def _replace(
    model: nn.Module,
    target: str,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    activation: QuantArgs | None,
    input_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Put a dequantized weight in the place of `target`."""
    dense = weight.dequantize(dtype)
    if activation is not None:
        put(model, target, RoundedLinear(dense, bias, activation, input_scale))
        return
    new = nn.Linear(dense.shape[1], dense.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(dense, requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    put(model, target, new)


def _keep_stored(model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Take the matrices of linears and the embedding out of `state` and hold them as stored."""
    if not isinstance(model.model.embed_tokens, LateEmbedding):
        embedding = state.pop("model.embed_tokens.weight")
        model.model.embed_tokens = LateEmbedding(
            embedding, _embedding_scale(model.model.embed_tokens), dtype
        )
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            weight, bias = state.pop(f"{path}.weight"), state.pop(f"{path}.bias", None)
            put(model, path, LateLinear(weight, bias))
    model.config.tie_word_embeddings = False  # nothing is left that transformers could tie


def _replace_embedding(
    model: Any,
    weight: QuantizedTensor,
    dtype: torch.dtype,
    late: bool,
    state: dict[str, torch.Tensor],
) -> None:
    """Give the tied embedding and head one quantized tensor, or its dequantized copy."""
    if late:
        scale = _embedding_scale(model.model.embed_tokens)
        model.model.embed_tokens = LateEmbedding(weight, scale, dtype)
        model.lm_head = LateLinear(weight)
    else:
        state["model.embed_tokens.weight"] = weight.dequantize(dtype)


def _embedding_scale(embedding: nn.Module) -> float:
    """Return what embeddings are multiplied by: √hidden for Gemma, else 1."""
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale)


def _tie_head(state: dict[str, torch.Tensor]) -> None:
    if "lm_head.weight" not in state and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]


def _belongs_to_packed(model: nn.Module, name: str) -> bool:
    parent = model.get_submodule(name.rpartition(".")[0])
    tensor = getattr(parent, name.rpartition(".")[2])
    return not tensor.is_meta


def _generation_config(model: Any, checkpoint: Checkpoint) -> None:
    from transformers import GenerationConfig

    directory = Path(checkpoint.path)
    if directory.is_dir() and (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)


def load_tokenizer(source: str | Path) -> Any:
    """Return the tokenizer beside a checkpoint. Raises CheckpointError when there is none."""
    from transformers import AutoTokenizer

    checkpoint = open_stored(source)
    directory = Path(checkpoint.path)
    if directory.is_file():  # a GGUF carries its tokenizer inside
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint.copy_side_files(Path(temporary))
            tokenizer = AutoTokenizer.from_pretrained(temporary, local_files_only=True)
    else:
        tokenizer = read_tokenizer(directory)
    release_memory()
    return tokenizer


def read_tokenizer(directory: Path) -> Any:
    """Return the tokenizer in a directory. Raises CheckpointError when there is none."""
    from transformers import AutoTokenizer

    if not any((directory / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{directory} has no tokenizer.json; copy it from the original model")
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: unreadable tokenizer: {error}") from error
