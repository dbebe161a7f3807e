"""QuantizedTensor against its definition in float64."""

import pytest
import torch

from soroq.core.qtensor import QuantizedTensor, round_float8, round_int
from soroq.core.scheme import QuantArgs


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, None])
def test_dequantize_equals_the_definition(symmetric: bool, group: int | None) -> None:
    N, K = 7, 192
    G = group or K
    args = QuantArgs(group_size=group, symmetric=symmetric)
    codes = torch.randint(-8, 8, (N, K)).to(torch.int8)
    scales = torch.rand(N, K // G).to(torch.bfloat16) + 0.01
    zeros = None if symmetric else torch.randint(-8, 8, (N, K // G)).to(torch.int8)
    got = QuantizedTensor(codes, scales, zeros, args).dequantize()
    for n in range(N):
        for k in range(K):
            z = 0 if zeros is None else int(zeros[n, k // G])
            want = (int(codes[n, k]) - z) * float(scales[n, k // G])
            assert got[n, k].item() == pytest.approx(want, rel=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="need"):
        QuantizedTensor(
            torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 1), None, QuantArgs(group_size=32)
        )


def test_round_int_picks_the_nearest_code() -> None:
    args = QuantArgs(group_size=32, symmetric=False)
    weight = torch.randn(5, 64)
    scales, zeros = torch.full((5, 2), 0.25), torch.full((5, 2), 3, dtype=torch.int8)
    quantized = round_int(weight, scales, zeros, args)
    values = (torch.arange(-8, 8) - 3) * 0.25
    nearest = values[(weight[..., None] - values).abs().argmin(-1)]
    assert torch.equal(quantized.dequantize(), nearest)


def test_float8_tiles_use_their_own_scale_at_ragged_edges() -> None:
    args = QuantArgs(dtype="float", bits=8, group_size=None, block=(128, 128))
    weight = torch.randn(130, 200)
    scales = torch.tensor([[0.5, 1.0], [2.0, 4.0]])
    got = round_float8(weight, scales, args).dequantize()
    want = (weight[129, 150] / 4.0).to(torch.float8_e4m3fn).float() * 4.0
    assert got[129, 150] == want
    assert got[0, 0] == (weight[0, 0] / 0.5).to(torch.float8_e4m3fn).float() * 0.5
