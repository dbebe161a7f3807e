"""Matrices that stay as stored: the same values slice by slice, and no float copy of the whole."""

from pathlib import Path

import pytest
import torch

from soroq.core.qtensor import QuantizedTensor, take_rows
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.loading import load
from soroq.methods.fp8 import quantize_fp8
from soroq.methods.rtn import quantize_rtn
from soroq.models.tiny import write_tiny_model
from soroq.nn import late
from soroq.nn.late import LateEmbedding, LateLinear
from soroq.pipeline.run import quantize

FORMATS = {
    "int4": QuantArgs(group_size=32),
    "int4-zeros": QuantArgs(group_size=32, symmetric=False),
    "int8-row": QuantArgs(bits=8, group_size=None),
    "fp8": QuantArgs(dtype="float", bits=8, group_size=None),
    "fp8-block": QuantArgs(dtype="float", bits=8, group_size=None, block=(16, 32)),
}


def _stored(weight: torch.Tensor, args: QuantArgs) -> QuantizedTensor:
    return quantize_fp8(weight, args) if args.dtype == "float" else quantize_rtn(weight, args)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_slices_of_rows_are_rows_of_the_whole(name: str) -> None:
    whole = _stored(torch.randn(50, 64), FORMATS[name])
    for rows in (slice(16, 48), slice(32, 50), slice(None)):
        assert torch.equal(take_rows(whole, rows).dequantize(), whole.dequantize()[rows])
    if name.startswith("int"):
        ids = torch.tensor([3, 49, 3])
        assert torch.equal(take_rows(whole, ids).dequantize(), whole.dequantize()[ids])


def test_rows_that_cut_a_block_are_refused() -> None:
    whole = _stored(torch.randn(50, 64), FORMATS["fp8-block"])
    for rows in (slice(8, 24), torch.tensor([0])):
        with pytest.raises(ValueError, match="block of 16 rows"):
            take_rows(whole, rows)


@pytest.mark.parametrize("name", ["bfloat16", *sorted(FORMATS)])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 50)], ids=["plain", "bias"])
def test_a_product_in_slices_is_the_product(
    name: str, bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(50, 64).bfloat16()
    stored = weight if name == "bfloat16" else _stored(weight, FORMATS[name])
    dense = stored.dequantize() if isinstance(stored, QuantizedTensor) else weight.float()
    x = torch.randn(3, 2, 64)
    want = torch.nn.functional.linear(
        x.double(), dense.double(), None if bias is None else bias.double()
    )
    seen: list[int] = []
    whole = torch.nn.functional.linear

    def spy(x: torch.Tensor, w: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(len(w))
        return whole(x, w, *rest)

    monkeypatch.setattr(late, "SLICE", 20 * 64)
    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    got = LateLinear(stored, bias)(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert seen == ([32, 18] if name == "fp8-block" else [20, 20, 10])


def test_an_embedding_gathers_quantized_rows() -> None:
    stored = _stored(torch.randn(50, 64), FORMATS["int4-zeros"])
    ids = torch.tensor([[3, 49], [0, 3]])
    got = LateEmbedding(stored, 8.0, torch.float32)(ids)
    assert torch.equal(got, stored.dequantize()[ids] * 8.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_embedding_and_head_stay_quantized(bits: int, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", hidden_size=128)
    recipe = Recipe(
        get_scheme("int4-rtn", group_size=32), embed=QuantArgs(bits=bits, group_size=32)
    )
    quantize(base, tmp_path / "out", recipe=recipe, calibration=None)
    ids = torch.randint(4, 260, (2, 24))
    dense, held = (load(tmp_path / "out", packed=False, late=way) for way in (False, True))
    with torch.no_grad():
        torch.testing.assert_close(held(ids).logits, dense(ids).logits, rtol=1e-5, atol=1e-5)
    assert isinstance(held.model.embed_tokens.stored, QuantizedTensor)
    assert held.lm_head.stored is held.model.embed_tokens.stored
    assert not any(p.ndim == 2 for p in held.parameters())


def test_tying_again_changes_nothing(tmp_path: Path) -> None:
    """As lm-evaluation-harness does with every model it is given."""
    model = load(write_tiny_model(tmp_path / "base"), late=True)
    ids = torch.randint(4, 260, (1, 8))
    with torch.no_grad():
        before = model(ids).logits
        model.tie_weights()
        assert torch.equal(model(ids).logits, before)
