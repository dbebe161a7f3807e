"""Bit layouts: canonical codes to stored words and back, each bit written out.

`pack_rows` is the `pack-quantized` layout of compressed-tensors (read by vLLM, SGLang and
transformers): along K, 32 / bits codes a little-endian int32 word, the first code in the lowest
bits, stored unsigned as code + 2^(bits−1). Zero points are packed the same way along N.

    word[n, j] = Σ_i (codes[n, j·P + i] + 2^(bits−1)) << (bits · i),   P = 32 / bits
"""

import torch


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack signed codes int8 (N, K) into int32 (N, ⌈K / P⌉), P = 32 // bits; the tail is 0."""
    per_word = 32 // bits
    N, K = codes.shape
    pad = -K % per_word
    unsigned = codes.to(torch.int64) + 2 ** (bits - 1)
    if pad:
        unsigned = torch.nn.functional.pad(unsigned, (0, pad))
    shifts = torch.arange(0, 32, bits, device=codes.device)
    words = (unsigned.view(N, -1, per_word) << shifts).sum(-1)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    packed: torch.Tensor = signed.to(torch.int32)
    return packed


def unpack_rows(words: torch.Tensor, bits: int, K: int) -> torch.Tensor:
    """Invert `pack_rows`: int32 (N, ⌈K / P⌉) to signed codes int8 (N, K)."""
    shifts = torch.arange(0, 32, bits, device=words.device)
    unsigned = (words.to(torch.int64)[..., None] >> shifts) & (2**bits - 1)
    signed: torch.Tensor = unsigned.flatten(1)[:, :K] - 2 ** (bits - 1)
    return signed.to(torch.int8)


def pack_columns(zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack zero points int8 (N, K // G) along N into int32 (⌈N / P⌉, K // G)."""
    return pack_rows(zeros.t().contiguous(), bits).t().contiguous()


def unpack_columns(words: torch.Tensor, bits: int, N: int) -> torch.Tensor:
    """Invert `pack_columns`: int32 (⌈N / P⌉, K // G) to int8 (N, K // G)."""
    return unpack_rows(words.t().contiguous(), bits, N).t().contiguous()
