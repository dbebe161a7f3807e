"""int4 words from C++: the same bits as the plain torch packing, and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soroq.core.packing import pack_rows, unpack_rows
from soroq.kernels.cpu import ops

pytestmark = pytest.mark.skipif(not ops.is_built(), reason="soroq._cpu is not built")


@st.composite
def code_matrices(draw: st.DrawFn) -> torch.Tensor:
    """Draw int8 (N, K) of codes −8…7, K also off the word size."""
    N, K = draw(st.integers(1, 5)), draw(st.integers(1, 41))
    flat = draw(st.lists(st.integers(-8, 7), min_size=N * K, max_size=N * K))
    return torch.tensor(flat, dtype=torch.int8).view(N, K)


@given(codes=code_matrices())
def test_words_equal_the_reference_bit_for_bit(codes: torch.Tensor) -> None:
    words = ops.pack_int4(codes)
    assert words.dtype == torch.int32
    expected = pack_rows(torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8), value=-8), 4)
    assert torch.equal(words, expected)  # a code of −8 is stored as 0, what the tail must be


@given(codes=code_matrices())
def test_pack_then_unpack_is_identity(codes: torch.Tensor) -> None:
    assert torch.equal(ops.unpack_int4(ops.pack_int4(codes), codes.shape[1]), codes)


@given(
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
)
def test_any_word_unpacks_as_the_reference_does(words: list[int]) -> None:
    row = torch.tensor([words], dtype=torch.int32)
    K = 8 * len(words)
    assert torch.equal(ops.unpack_int4(row, K), unpack_rows(row, 4, K))
    assert torch.equal(ops.pack_int4(ops.unpack_int4(row, K)), row)


def test_word_has_the_first_code_in_its_lowest_bits() -> None:
    codes = torch.tensor([[-8, -7, -6, -5, -4, -3, -2, 7, 0]], dtype=torch.int8)
    words = ops.pack_int4(codes)
    assert [w % 2**32 for w in words[0].tolist()] == [0xF6543210, 0x00000008]


@pytest.mark.parametrize("code", [-9, 8, 127, -128])
def test_code_out_of_range_is_refused(code: int) -> None:
    codes = torch.zeros(2, 9, dtype=torch.int8)
    codes[1, 8] = code
    with pytest.raises(ValueError, match=r"a code is outside -8\.\.7"):
        ops.pack_int4(codes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"words is \(1, 2\), must be \(1, 1\)"):
        ops.unpack_int4(torch.zeros(1, 2, dtype=torch.int32), 8)
    x, qweight = torch.zeros(1, 32), torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"scales is \(3, 2\), must be \(3, 1\)"):
        ops.matmul_w4(x, qweight, torch.ones(3, 2), None, group_size=32)
    with pytest.raises(ValueError, match="K 32 must be a multiple of 8 and of group_size 24"):
        ops.matmul_w4(x, qweight, torch.ones(3, 1), None, group_size=24)
