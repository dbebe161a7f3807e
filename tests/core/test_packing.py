"""Bit layouts against the format's definition, written as plain Python loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.core.packing import pack_columns, pack_rows, unpack_columns, unpack_rows


def _word_by_hand(codes: list[int], bits: int) -> int:
    word = 0
    for i, code in enumerate(codes):
        word |= (code + 2 ** (bits - 1)) << (bits * i)
    return word - 2**32 if word >= 2**31 else word


@pytest.mark.parametrize("bits", [4, 8])
def test_pack_rows_puts_the_first_code_in_the_lowest_bits(bits: int) -> None:
    per_word = 32 // bits
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 2 * per_word)).to(torch.int8)
    packed = pack_rows(codes, bits)
    for n in range(3):
        for j in range(2):
            part = codes[n, j * per_word : (j + 1) * per_word].tolist()
            assert packed[n, j].item() == _word_by_hand(part, bits)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))
def test_pack_then_unpack_is_identity(bits: int, N: int, K: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (N, K), generator=generator).to(torch.int8)
    assert torch.equal(unpack_rows(pack_rows(codes, bits), bits, K), codes)
    assert torch.equal(unpack_columns(pack_columns(codes, bits), bits, N), codes)


@pytest.mark.parametrize("K", [8, 12, 20])
def test_packed_weights_equal_those_of_compressed_tensors(K: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-8, 8, (5, K)).to(torch.int8)
    assert torch.equal(pack_rows(codes, 4), helpers.pack_to_int32(codes, 4))
    assert torch.equal(pack_columns(codes, 4), helpers.pack_to_int32(codes, 4, packed_dim=0))
