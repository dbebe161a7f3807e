"""GGUF's blocks against the `gguf` package, whose dequantization is ggml's own in Python."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats import gguf_blocks as blocks
from soroq.io.formats.gguf import encode, encode_q6_k
from soroq.io.formats.gguf_blocks import row_bytes
from soroq.io.formats.refusal import FormatError
from soroq.methods.rtn import quantize_rtn


def _q4_0(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, d = blocks.unpack_q4_0(raw)
    return d.float().repeat_interleave(32, 1) * codes, blocks.pack_q4_0(codes, d)


def _q4_1(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, d, m = blocks.unpack_q4_1(raw)
    values = d.float().repeat_interleave(32, 1) * codes + m.float().repeat_interleave(32, 1)
    return values, blocks.pack_q4_1(codes, d, m)


def _q8_0(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, d = blocks.unpack_q8_0(raw)
    return d.float().repeat_interleave(32, 1) * codes, blocks.pack_q8_0(codes, d)


def _q4_k(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, d, dmin, sc, mn = blocks.unpack_q4_k(raw)
    scale = (d.float().repeat_interleave(8, 1) * sc).repeat_interleave(32, 1)
    least = (dmin.float().repeat_interleave(8, 1) * mn).repeat_interleave(32, 1)
    return scale * codes - least, blocks.pack_q4_k(codes, d, dmin, sc, mn)


def _q6_k(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, d, sc = blocks.unpack_q6_k(raw)
    scale = (d.float().repeat_interleave(16, 1) * sc).repeat_interleave(16, 1)
    return scale * codes, blocks.pack_q6_k(codes, d, sc)


KINDS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k}
# where the float16 numbers lie in a block
FLOATS = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.integers(1, 3), per_row=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_mean_what_ggml_reads_and_pack_to_themselves(
    kind: str, rows: int, per_row: int, seed: int
) -> None:
    ggml_type = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[ggml_type][1]
    assert size == blocks.BLOCK_BYTES[kind]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, per_row, size), dtype=np.uint8)
    for at in FLOATS[kind]:  # finite numbers, negative ones too
        raw[..., at : at + 2] = (
            random.normal(0, 2, (rows, per_row, 1)).astype(np.float16).view(np.uint8)
        )
    raw = raw.reshape(rows, -1)
    values, again = KINDS[kind](torch.from_numpy(raw))
    assert np.array_equal(values.numpy(), gguf.dequantize(raw, ggml_type))
    assert np.array_equal(again.numpy(), raw)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_what_the_gguf_package_quantized_is_read_and_written_alike(kind: str) -> None:
    weight = np.random.default_rng(1).normal(size=(5, 96)).astype(np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    values, again = KINDS[kind](torch.from_numpy(raw))
    assert np.array_equal(again.numpy(), raw)
    step = np.abs(weight).max() * (2 / 15 if kind != "Q8_0" else 1 / 127)
    assert np.abs(values.numpy() - weight).max() < step


def test_the_first_codes_of_a_q4_0_block_are_the_low_halves_of_its_bytes() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, 0], codes[0, 16], codes[0, 31] = -8, 7, -1
    raw = blocks.pack_q4_0(codes, torch.ones(1, 1, dtype=torch.float16))[0].tolist()
    assert raw == [0x00, 0x3C, 0xF0, *[0x88] * 14, 0x78]


def _solved(group: int, columns: int = 512) -> QuantizedTensor:
    """Codes with scales and zero points of very different sizes side by side."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(24, columns, generator=generator)
    weight *= torch.rand(24, columns // 32, generator=generator).add(0.05).repeat_interleave(32, 1)
    return quantize_rtn(weight, QuantArgs(bits=4, group_size=group, symmetric=False))


@pytest.mark.parametrize("group", [32, 64, 256, None])
def test_a_fit_to_six_bits_keeps_codes_and_moves_little(group: int | None) -> None:
    solved = _solved(group or 512)
    raw = encode("m", solved, k_quants=True)
    assert raw.shape == (24, row_bytes("Q4_K", 512))
    codes, d, dmin, sc, mn = blocks.unpack_q4_k(raw)
    assert torch.equal(codes - 8, solved.codes)
    read = torch.from_numpy(gguf.dequantize(raw.numpy(), gguf.GGMLQuantizationType.Q4_K))
    assert torch.equal(read, _q4_k(raw)[0])
    step = solved.scales.float().repeat_interleave(512 // solved.scales.shape[1], 1)
    moved = float((read - solved.dequantize()).square().sum())
    # rounding to the nearest code moves a twelfth of a squared step on average
    assert moved < 0.03 * float(step.square().sum()) / 12
    if group in (32, 64):  # the largest scale and minimum over 63, without a search
        naive = float((_naive_fit(solved) - solved.dequantize()).square().sum())
        assert moved < 0.5 * naive


def _naive_fit(solved: QuantizedTensor) -> torch.Tensor:
    repeats = 16 // solved.scales.shape[1]
    s = solved.scales.float().repeat_interleave(repeats, 1).view(24, 2, 8)
    assert solved.zeros is not None
    m = s * (solved.zeros.float().repeat_interleave(repeats, 1).view(24, 2, 8) + 8)
    d, dmin = (v.amax(-1, keepdim=True) / 63 for v in (s, m))
    s, m = (s / d).round() * d, (m / dmin).round() * dmin
    codes = solved.codes.float().view(24, 2, 8, 32) + 8
    return (codes * s[..., None] - m[..., None]).view(24, 512)


def test_a_group_of_zeros_does_not_make_its_block_coarse() -> None:
    weight = torch.randn(4, 256) * 1e-3
    weight[:, 32:64] = 0  # rounded to nearest, its scale is 1
    solved = quantize_rtn(weight, QuantArgs(bits=4, group_size=32, symmetric=False))
    read = _q4_k(encode("m", solved, k_quants=True))[0]
    assert torch.equal(read[:, 32:64], torch.zeros(4, 32))
    error = (read - solved.dequantize()).abs().amax(1)
    assert (error < 0.3 * solved.scales[:, 0].float()).all()


def test_a_matrix_of_zeros_is_zero_in_both_k_types() -> None:
    solved = quantize_rtn(torch.zeros(2, 256), QuantArgs(bits=4, group_size=32, symmetric=False))
    assert not _q4_k(encode("m", solved, k_quants=True))[0].any()
    assert not _q6_k(encode_q6_k(torch.zeros(2, 256)))[0].any()


def test_six_bits_a_weight_lose_little() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(5))
    weight[3, :16] *= 30
    raw = encode_q6_k(weight)
    assert raw.shape == (64, row_bytes("Q6_K", 512))
    read = torch.from_numpy(gguf.dequantize(raw.numpy(), gguf.GGMLQuantizationType.Q6_K))
    assert torch.equal(read, _q6_k(raw)[0])
    # a step is about a 32nd of the largest of 16; rounding leaves a half, the ends of a range more
    largest = weight.view(64, -1, 16).abs().amax(-1).repeat_interleave(16, 1)
    relative = (read - weight).abs() / largest
    assert float(relative[4:].max()) < 1.5 / 32
    assert float(relative[4:].square().mean().sqrt()) < 1.1 / 32 / 12**0.5


@pytest.mark.parametrize("scale", [5e6, 1e-7, -0.01], ids=["large", "small", "negative"])
def test_scales_that_q4_k_cant_hold_are_refused(scale: float) -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    codes = torch.randint(-8, 8, (2, 256), dtype=torch.int8)
    scales = torch.full((2, 8), 0.01)
    scales[1] = scale
    solved = QuantizedTensor(codes, scales, torch.zeros(2, 8, dtype=torch.int8), args)
    with pytest.raises(FormatError, match="can't hold its scales"):
        encode("m", solved, k_quants=True)
