"""Float8 models whose norms round for the linears say what the same models say without that."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.kernels import dispatch
from soroq.loading import load
from soroq.methods.fp8 import quantize_fp8
from soroq.models.registry import ARCHITECTURES
from soroq.models.tiny import write_tiny_model
from soroq.nn.graphs import GraphDecoder
from soroq.nn.linear import PackedLinear
from soroq.nn.rounded import RoundedGLU, RoundedNorm, fuse_rounding
from soroq.nn.tiled import StackedPart, put
from soroq.pipeline.run import quantize

IDS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(0))
BLOCKS = QuantArgs(dtype="float", bits=8, group_size=None, block=(128, 128))
GROUPS = QuantArgs(dtype="float", bits=8, group_size=128, dynamic=True)


def _load(directory: Path, model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tiny model in float8, rows and tokens, as a GPU would get it but for its norms."""
    # k and v of 128 rows: a block's
    write_tiny_model(directory / "base", model_type, num_key_value_heads=4, hidden_size=192)
    recipe = Recipe(get_scheme("fp8-rtn"))
    quantize(directory / "base", directory / "out", recipe=recipe, calibration=None)
    return load(directory / "out", precision=None, dtype=dtype)


def _fuse(model: Any, model_type: str) -> Any:
    known = ARCHITECTURES[model_type]
    fused = copy.deepcopy(model)
    fuse_rounding(fused, known.norms, offset=known.norm_offset)
    return fused


def _count(model: Any, kind: type) -> int:
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize("rounding", ["token", "calibrated", "block"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2", "qwen3"])
def test_fusing_changes_nothing(model_type: str, rounding: str, tmp_path: Path) -> None:
    model = _load(tmp_path, model_type)
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedLinear) and rounding == "calibrated":
            module.input_scale = torch.tensor([0.02 if "down" in path else 0.01])
        if isinstance(module, PackedLinear) and rounding == "block":
            weight = quantize_fp8(module.quantized().dequantize(), BLOCKS)
            put(model, path, PackedLinear(weight, bias=module.bias, activation=GROUPS))
    fused = _fuse(model, model_type)
    assert (_count(fused, RoundedNorm), _count(fused, RoundedGLU)) == (6, 3)
    assert (_count(fused, StackedPart), _count(fused, PackedLinear)) == (9, 3)  # o_proj rounds
    with torch.no_grad():
        torch.testing.assert_close(fused(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    norms = [module for module in fused.modules() if isinstance(module, RoundedNorm)]
    assert all(norm._made is None for norm in norms)  # nothing of a prompt stays in memory


def test_in_bfloat16_too(tmp_path: Path) -> None:
    model = _load(tmp_path, "gemma3_text", torch.bfloat16)
    fused = _fuse(model, "gemma3_text")
    with torch.no_grad():
        torch.testing.assert_close(fused(IDS).logits, model(IDS).logits, rtol=0, atol=0.05)


def test_decoding_in_place_goes_through_fused_norms(tmp_path: Path) -> None:
    model = _load(tmp_path, "gemma3_text")
    want = model.generate(IDS[:, :5], max_new_tokens=20, do_sample=False, eos_token_id=None)
    decoder = GraphDecoder(_fuse(model, "gemma3_text"), max_length=32, batch=2)
    assert torch.equal(decoder.generate(IDS[:, :5], max_new_tokens=20), want[:, 5:])


def test_what_does_not_round_alike_stays_as_it_is(tmp_path: Path) -> None:
    model = _load(tmp_path, "gemma3_text")
    first, second, third = model.model.layers
    first.self_attn.k_proj.input_scale = torch.tensor([0.01])  # q's and v's are a token's
    second.mlp.down_proj.activation = None
    third.mlp.gate_proj.activation = None
    fused = _fuse(model, "gemma3_text")
    kinds = [
        [type(m) for m in (b.input_layernorm, b.pre_feedforward_layernorm, b.mlp)]
        for b in fused.model.layers
    ]
    norm, mlp = type(first.input_layernorm), type(first.mlp)
    assert kinds == [
        [norm, RoundedNorm, RoundedGLU],
        [RoundedNorm, RoundedNorm, mlp],
        [RoundedNorm, norm, mlp],
    ]
    with torch.no_grad():
        torch.testing.assert_close(fused(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


def test_blocks_of_two_linears_are_not_mixed() -> None:
    block = torch.nn.Module()
    block.norm = torch.nn.RMSNorm(128, eps=1e-6)
    for name, rows in (("a", 64), ("b", 128)):
        weight = quantize_fp8(torch.randn(rows, 128), BLOCKS)
        setattr(block, name, PackedLinear(weight, activation=GROUPS))
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.layers = torch.nn.ModuleList([block])
    fuse_rounding(model, [("norm", ("a", "b"))], offset=0)
    assert isinstance(block.norm, torch.nn.RMSNorm)
    fuse_rounding(model, [("norm", ("b", "a"))], offset=0)  # the last one may end within a block
    assert isinstance(block.norm, RoundedNorm)


def test_something_between_norm_and_linear_is_noticed(tmp_path: Path) -> None:
    block = _fuse(_load(tmp_path, "llama"), "llama").model.layers[0]
    codes = block.input_layernorm(torch.randn(1, 3, 192))
    block.self_attn.q_proj(codes)
    with pytest.raises(RuntimeError, match="not its norm's last output"):
        block.self_attn.q_proj(codes.clone())


def test_a_producer_without_its_other_half_is_refused() -> None:
    x = torch.zeros(2, 32)
    for producer, other in (("norm", None), ("geglu", torch.zeros(32)), ("plain", x), ("relu", x)):
        with pytest.raises(ValueError, match="round_rows"):
            dispatch.round_rows(x, producer=producer, other=other)
