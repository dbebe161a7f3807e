"""GGUF's blocks against the `gguf` package, whose dequantization is ggml's own in Python."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soroq.io.formats import gguf_blocks as blocks


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
