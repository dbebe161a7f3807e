"""GGUF's blocks: codes and scales to the bytes of a row and back, each bit written out.

    raw = pack_q4_0(codes, d)  # (N, K // 32 · 18) uint8
    codes, d = unpack_q4_0(raw)

A row is K / 32 blocks (Q4_0, Q4_1, Q8_0) or K / 256 (Q4_K, Q6_K), one behind the other; numbers of
16 bits are little-endian. Layouts: `block_q4_0` … `block_q6_K` of ggml's ggml-common.h, as its
`dequantize_row_*` reads them:

    Q4_0  d f16, 16 bytes         W = d · (q − 8)
    Q4_1  d f16, m f16, 16 bytes  W = d · q + m
    Q8_0  d f16, 32 bytes         W = d · q, q signed
    Q4_K  d, dmin f16, 12 bytes of 6-bit sc and mn, 128 bytes  W = d · sc · q − dmin · mn
    Q6_K  128 bytes low, 64 bytes high, 16 int8 sc, d f16      W = d · sc · (q − 32)
"""

from collections.abc import Sequence

import torch

BLOCK = 32  # columns that share a scale, also within Q4_K; 16 in Q6_K
SUPER = 256  # columns of a Q4_K or Q6_K block
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34, "Q4_K": 144, "Q6_K": 210}


def row_bytes(kind: str, columns: int) -> int:
    """Return how many bytes a row of so many columns takes in a block type."""
    width = SUPER if kind in ("Q4_K", "Q6_K") else BLOCK
    return columns // width * BLOCK_BYTES[kind]


def pack_q4_0(codes: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Pack codes int8 (N, K) in −8 … 7 and d float16 (N, K // 32) into uint8 (N, K // 32 · 18)."""
    return _join(_bytes(d), _nibbles(codes + 8, BLOCK))


def unpack_q4_0(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert `pack_q4_0`."""
    d, words = _split(raw, (2, 16))
    return (_unnibble(words, BLOCK) - 8).to(torch.int8), _float16(d)


def pack_q4_1(codes: torch.Tensor, d: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Pack codes int8 (N, K) in 0 … 15, d and m float16 (N, K // 32)."""
    return _join(_bytes(d), _bytes(m), _nibbles(codes, BLOCK))


def unpack_q4_1(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Invert `pack_q4_1`: codes, d, m."""
    d, m, words = _split(raw, (2, 2, 16))
    return _unnibble(words, BLOCK).to(torch.int8), _float16(d), _float16(m)


def pack_q8_0(codes: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Pack codes int8 (N, K) and d float16 (N, K // 32)."""
    return _join(_bytes(d), codes.contiguous().view(torch.uint8).unflatten(1, (-1, BLOCK)))


def unpack_q8_0(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert `pack_q8_0`."""
    d, words = _split(raw, (2, 32))
    return words.contiguous().view(torch.int8).flatten(1), _float16(d)


def pack_q4_k(
    codes: torch.Tensor, d: torch.Tensor, dmin: torch.Tensor, sc: torch.Tensor, mn: torch.Tensor
) -> torch.Tensor:
    """Pack codes int8 (N, K) in 0 … 15, d and dmin float16 (N, K // 256), sc and mn 0 … 63.

    sc and mn int8 (N, K // 32). Of the eight 6-bit pairs of a block the first four lie in the low
    bits of bytes 0 … 3 (sc) and 4 … 7 (mn); of the last four, the low 4 bits share bytes 8 … 11
    (mn in the high half) and the high 2 bits fill up bytes 0 … 7. Codes: of 64 neighbours, the
    first 32 are the low halves of 32 bytes.
    """
    s = sc.to(torch.uint8).unflatten(1, (-1, 8))
    m = mn.to(torch.uint8).unflatten(1, (-1, 8))
    scales = torch.cat(
        [
            s[..., :4] | (s[..., 4:] >> 4 << 6),
            m[..., :4] | (m[..., 4:] >> 4 << 6),
            (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4),
        ],
        -1,
    )
    words = _nibbles(codes, 2 * BLOCK).flatten(1).unflatten(1, (-1, SUPER // 2))
    return _join(_bytes(d), _bytes(dmin), scales, words)


def unpack_q4_k(
    raw: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Invert `pack_q4_k`: codes, d, dmin, sc, mn."""
    d, dmin, scales, words = _split(raw, (2, 2, 12, 128))
    low, high, mixed = scales.split(4, -1)
    sc = torch.cat([low & 63, (mixed & 15) | (low >> 6 << 4)], -1).flatten(1)
    mn = torch.cat([high & 63, (mixed >> 4) | (high >> 6 << 4)], -1).flatten(1)
    codes = _unnibble(words.flatten(1).unflatten(1, (-1, BLOCK)), 2 * BLOCK)
    return (
        codes.to(torch.int8),
        _float16(d),
        _float16(dmin),
        sc.to(torch.int8),
        mn.to(torch.int8),
    )


def pack_q6_k(codes: torch.Tensor, d: torch.Tensor, sc: torch.Tensor) -> torch.Tensor:
    """Pack codes int8 (N, K) in −32 … 31, d float16 (N, K // 256), sc int8 (N, K // 16).

    Of 128 neighbours in four quarters of 32, low bits: the first two quarters are the low halves of
    64 bytes, the last two the high halves; high bits: two bits of each quarter in 32 bytes.
    """
    q = (codes + 32).to(torch.uint8).unflatten(1, (-1, 2, 4, BLOCK))
    low = (q[..., :2, :] & 15) | ((q[..., 2:, :] & 15) << 4)
    high = q >> 4
    tops = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    scales = sc.contiguous().view(torch.uint8).unflatten(1, (-1, 16))
    return _join(low.flatten(2), tops.flatten(2), scales, _bytes(d))


def unpack_q6_k(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Invert `pack_q6_k`: codes, d, sc."""
    low, tops, scales, d = _split(raw, (128, 64, 16, 2))
    low = low.unflatten(2, (2, 2, BLOCK))
    tops = tops.unflatten(2, (2, 1, BLOCK))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    q = torch.cat([low & 15, low >> 4], 3) | ((tops >> shifts) & 3) << 4
    codes = (q.flatten(1).to(torch.int16) - 32).to(torch.int8)
    return codes, _float16(d), scales.contiguous().view(torch.int8).flatten(1)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Return float16 (N, blocks) as uint8 (N, blocks, 2)."""
    raw: torch.Tensor = values.contiguous().view(torch.uint8).unflatten(1, (-1, 2))
    return raw


def _float16(raw: torch.Tensor) -> torch.Tensor:
    return raw.contiguous().view(torch.float16).flatten(1)


def _nibbles(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Return codes 0 … 15 (N, K) as uint8 (N, K // width, width // 2).

    Of `width` neighbours, the first half are the low halves of the bytes.
    """
    low, high = codes.to(torch.uint8).unflatten(1, (-1, 2, width // 2)).unbind(2)
    return torch.bitwise_or(low, high << 4)


def _unnibble(words: torch.Tensor, width: int) -> torch.Tensor:
    """Invert `_nibbles`: uint8 (N, K // width, width // 2) to int16 (N, K)."""
    codes: torch.Tensor = torch.stack([words & 15, words >> 4], 2).flatten(1).to(torch.int16)
    return codes


def _join(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, -1).flatten(1)


def _split(raw: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
    """Return the parts of each block: uint8 (N, blocks, size)."""
    parts: Sequence[torch.Tensor] = raw.unflatten(1, (-1, sum(sizes))).split(list(sizes), -1)
    return parts
