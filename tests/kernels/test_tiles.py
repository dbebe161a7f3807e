"""The tiles' bits, one by one, and the way back."""

import pytest
import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels.tiles import TiledWeight, tile, untile


def random_weight(
    N: int, K: int, bits: int, group: int | None, symmetric: bool, seed: int = 0
) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    n_groups = K // (group or K)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-half, half, shape, generator=generator).to(torch.int8)

    scales = torch.rand(N, n_groups, generator=generator) * 0.01 + 0.001
    return QuantizedTensor(
        codes(N, K),
        scales.to(torch.bfloat16),
        None if symmetric else codes(N, n_groups),
        QuantArgs(bits=bits, group_size=group, symmetric=symmetric),
    )


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
@pytest.mark.parametrize(
    ("N", "K", "group"),
    [(1, 32, 32), (130, 96, 32), (64, 1152, 128), (70, 4304, None), (257, 320, 64), (3, 512, 256)],
)
def test_round_trip(N: int, K: int, group: int | None, symmetric: bool, bits: int) -> None:
    weight = random_weight(N, K, bits, group, symmetric)
    back = untile(tile(weight))
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scales, weight.scales)
    assert (back.zeros is None) == symmetric
    assert back.zeros is None or torch.equal(back.zeros, weight.zeros)  # type: ignore[arg-type]
    assert (back.args.bits, back.args.group_size) == (bits, None if group == K else group)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_is_where_the_docstring_says(bits: int) -> None:
    weight = random_weight(70, 200, bits, None, bits == 8)
    tiled = tile(weight)
    planes, half = bits // 4, 1 << (bits - 1)
    assert tuple(tiled.tiles.shape) == (2, 2 * planes, 64, 32)
    for row, column in [(0, 0), (0, 31), (5, 33), (63, 127), (64, 128), (69, 199), (17, 70)]:
        a, r = divmod(row, 64)
        b, rest = divmod(column, 128)
        j, c = divmod(rest, 32)
        value = 0
        for p in range(planes):
            word = int(tiled.tiles[a, planes * b + p, r, c]) & 0xFFFF
            value = 16 * value + (word >> (4 * j) & 15)
        assert value - half == int(weight.codes[row, column])
    if tiled.zeros is not None and weight.zeros is not None:
        assert int(tiled.zeros[0, 3]) - half == int(weight.zeros[3, 0])


def test_padding_multiplies_to_nothing() -> None:
    tiled = tile(random_weight(70, 96, 4, 32, False))
    assert tuple(tiled.scales.shape) == (4, 128)
    assert not tiled.scales[:, 70:].any() and not tiled.scales[3].any()
    assert bool((tiled.tiles[1, 0, 6:, 0] & 15 == 8).all())


def test_rows_are_a_part_of_the_weight() -> None:
    weight = random_weight(300, 256, 4, 128, False)
    part = tile(weight).rows(128, 300)
    assert isinstance(part, TiledWeight) and part.tiles.data_ptr() != 0
    assert torch.equal(untile(part).dequantize(), weight.dequantize()[128:])
    with pytest.raises(ValueError, match="block of 128"):
        tile(weight).rows(64, 300)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32, 64"):
        tile(random_weight(8, 96, 4, 48, True))
    eighth = torch.zeros(8, 64, dtype=torch.float8_e4m3fn)
    args = QuantArgs(dtype="float", bits=8, group_size=None)
    with pytest.raises(ValueError, match="int4 and int8"):
        tile(QuantizedTensor(eighth, torch.ones(8, 1), None, args))
