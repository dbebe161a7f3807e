"""Models whose weights lie in tiles say what the same models say packed."""

from pathlib import Path

import pytest
import torch

from soroq.core.qtensor import interleave_rows, stack_rows
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.loading import load
from soroq.methods.rtn import quantize_rtn
from soroq.models.registry import ARCHITECTURES
from soroq.models.tiny import write_tiny_model
from soroq.nn.tiled import StackedPart, TiledEmbedding, TiledGeGLU, TiledLinear, tile_model
from soroq.pipeline.run import quantize

IDS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(0))


def _groups(model_type: str) -> tuple[tuple[str, ...], ...]:
    return ARCHITECTURES[model_type].linear_groups


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2"])
@pytest.mark.parametrize("name", ["int4-rtn", "int8-rtn"])
def test_tiles_change_nothing(model_type: str, name: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base", model_type)
    embed = QuantArgs(bits=8, group_size=32) if model_type == "gemma3_text" else None
    recipe = Recipe(get_scheme(name, group_size=32), embed=embed)
    quantize(tmp_path / "base", tmp_path / "out", recipe=recipe, calibration=None)
    with torch.no_grad():
        packed = load(tmp_path / "out", precision=None)(IDS).logits
        model = load(tmp_path / "out", precision=None)
        tile_model(model, _groups(model_type), torch.float32)
        torch.testing.assert_close(model(IDS).logits, packed, rtol=1e-4, atol=1e-4)
    kinds = [type(module) for module in model.modules()]
    gemma = model_type == "gemma3_text"
    assert kinds.count(TiledGeGLU) == (3 if gemma else 0)
    assert kinds.count(StackedPart) == (9 if gemma else 15)  # q, k, v, and gate, up without a GELU
    assert kinds.count(TiledEmbedding) == int(gemma)
    assert "PackedLinear" not in {kind.__name__ for kind in kinds}
    assert len({id(p) for p in model.state_dict().values()}) >= 3 * 4 * 2


def test_a_stack_multiplies_once_and_forgets() -> None:
    weights = [quantize_rtn(torch.randn(n, 64), QuantArgs(group_size=32)) for n in (32, 16, 16)]
    from soroq.nn.tiled import TiledStack

    stack = TiledStack(weights, [None, torch.ones(16), None])
    parts = stack.parts()
    x = torch.randn(2, 3, 64)
    for part, weight, bias in zip(parts, weights, (0.0, 1.0, 0.0), strict=True):
        want = x @ weight.dequantize().t() + bias
        torch.testing.assert_close(part(x), want, rtol=1e-4, atol=1e-5)
    assert stack._x is None and stack._y is None
    other = torch.randn(2, 3, 64)
    parts[0](x)
    torch.testing.assert_close(parts[1](other), other @ weights[1].dequantize().t() + 1)


def test_rows_of_unlike_weights_are_not_mixed() -> None:
    four = quantize_rtn(torch.randn(8, 64), QuantArgs(group_size=32))
    eight = quantize_rtn(torch.randn(8, 64), QuantArgs(bits=8, group_size=32))
    with pytest.raises(ValueError, match="can't be one matrix"):
        stack_rows([four, eight])
    with pytest.raises(ValueError, match="can't alternate"):
        interleave_rows(four, quantize_rtn(torch.randn(4, 64), QuantArgs(group_size=32)))
    mixed = interleave_rows(four, four).dequantize()
    assert torch.equal(mixed[0::2], four.dequantize()) and torch.equal(mixed[1::2], mixed[0::2])


def test_a_tiled_linear_moves_and_casts_like_any_module() -> None:
    weight = quantize_rtn(torch.randn(40, 96), QuantArgs(group_size=32, symmetric=False))
    linear = TiledLinear(weight, dtype=torch.float16)
    assert linear.scales.dtype == torch.float16 and linear.tiles.dtype == torch.int16
    assert set(linear.state_dict()) == {"tiles", "scales", "zeros"}
    assert linear.to(torch.bfloat16).weight.scales.dtype == torch.bfloat16
