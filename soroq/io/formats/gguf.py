"""A QuantizedTensor as GGUF blocks and back: which block type holds which numbers.

    int4, symmetric → Q4_0, exactly      d = scale
    int8            → Q8_0, exactly      d = scale
    int4, asymmetric → Q4_1              d = scale, m = −scale · (zero + 8) rounded to float16
                     → Q4_K, if asked    d · sc ≈ scale, dmin · mn ≈ scale · (zero + 8), with sc and
                                         mn of 6 bits, fitted to the 256 weights of a block
    a float matrix   → Q6_K, if asked    rounded; for embedding and head

Groups of any multiple of 32 fit: a group's scale is written into each of its blocks. Scales must be
float16 numbers. Rounding m moves all weights of a block together by at most 2^-11 · |m|, 1 / 137 of
a step between two codes; from such a block the zero point comes back exactly. Q4_K keeps the codes
that were solved too (`fit_q4_k`). Blocks whose minimum is no whole number of steps (llama.cpp's own
Q4_1) and the other types have no QuantizedTensor.
"""

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats import gguf_blocks as blocks
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.shared import as_float16, zero_points

READABLE = ("Q4_0", "Q4_1", "Q8_0")
FULL = 63  # largest sc and mn of Q4_K
TOPS = range(FULL, 47, -2)  # what the largest scale of a block may become
Q6_RATIOS = (1.0, 0.97, 0.94, 0.91, 0.88)  # of the full range of 16 weights


def kind_of(
    args: QuantArgs, activation: QuantArgs | None, columns: int, *, k_quants: bool = False
) -> str | FormatError:
    """Return the block type for a weight with so many columns, or why there is none.

    k_quants: Q4_K instead of Q4_1 where the columns fill its blocks of 256.
    """
    if args.dtype == "float":
        return FormatError("GGUF holds integers, not float8")
    if activation is not None:
        return FormatError("GGUF can't say how activations are rounded")
    group = args.group_size or columns
    if group % blocks.BLOCK or columns % blocks.BLOCK:
        return FormatError(
            f"its groups of {group} are not a multiple of GGUF's {blocks.BLOCK}; quantize it with "
            f"--group-size {blocks.BLOCK}"
        )
    if args.bits == 8:
        return "Q8_0"
    if args.symmetric:
        return "Q4_0"
    return "Q4_K" if k_quants and columns % blocks.SUPER == 0 else "Q4_1"


def encode(module: str, quantized: QuantizedTensor, *, k_quants: bool = False) -> torch.Tensor:
    """Return the rows of a weight (N, K) as blocks, uint8 (N, row bytes), by `kind_of`.

    Raises FormatError for a weight without a block type, or scales that are no float16 numbers.
    """
    args = quantized.args
    columns = quantized.shape[1]
    kind = kind_of(args, None, columns, k_quants=k_quants)
    if isinstance(kind, FormatError):
        raise FormatError(f"{module}: {kind}")
    if kind == "Q4_K":
        return blocks.pack_q4_k(quantized.codes + 8, *fit_q4_k(module, quantized))
    repeats = columns // quantized.scales.shape[1] // blocks.BLOCK
    d = as_float16(module, quantized.scales).repeat_interleave(repeats, 1)
    if kind == "Q8_0":
        return blocks.pack_q8_0(quantized.codes, d)
    if kind == "Q4_0":
        return blocks.pack_q4_0(quantized.codes, d)
    steps = zero_points(module, quantized).float().repeat_interleave(repeats, 1) + 8
    return blocks.pack_q4_1(quantized.codes + 8, d, _minimum(d, steps))


def decode(kind: str, raw: torch.Tensor) -> QuantizedTensor | None:
    """Return the weight of rows of blocks uint8 (N, row bytes), groups of 32.

    None where the blocks mean what no QuantizedTensor can.
    """
    if kind == "Q4_0":
        return QuantizedTensor(*blocks.unpack_q4_0(raw), None, _args(4, symmetric=True))
    if kind == "Q8_0":
        return QuantizedTensor(*blocks.unpack_q8_0(raw), None, _args(8, symmetric=True))
    if kind != "Q4_1":
        return None
    codes, d, m = blocks.unpack_q4_1(raw)
    steps = torch.where(d == 0, 0.0, -m.float() / d.float()).round()
    whole = (steps >= 0) & (steps <= 15) & (_minimum(d, steps) == m)
    if not bool(whole.all()):
        return None
    zeros = (steps - 8).to(torch.int8)
    return QuantizedTensor(codes - 8, d, zeros, _args(4, symmetric=False))


def fit_q4_k(
    module: str, quantized: QuantizedTensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return d, dmin float16 (N, K // 256) and sc, mn int8 (N, K // 32) for codes that stay.

    With the codes q of a group given, d · sc and dmin · mn in the places of its scale s and minimum
    m move its weights by q · (d · sc − s) − (dmin · mn − m). d and dmin are tried so that the
    largest scale and minimum of a block become each of TOPS; sc is the nearest to s, mn the nearest
    to the m that goes best with that sc; the pair that moves least, squared, is taken. Raises
    FormatError for scales that Q4_K can't hold: negative, or beyond float16's range as d or dmin.
    """
    repeats = quantized.shape[1] // quantized.scales.shape[1] // blocks.BLOCK
    zeros = zero_points(module, quantized).float().repeat_interleave(repeats, 1) + 8
    q = (quantized.codes.float() + 8).unflatten(1, (-1, blocks.SUPER // blocks.BLOCK, blocks.BLOCK))
    zeros = zeros.unflatten(1, q.shape[1:3])
    # a group of zeros has whatever scale; it must not make its block's steps coarse
    used = (q != zeros[..., None]).any(-1)
    s = quantized.scales.float().repeat_interleave(repeats, 1).unflatten(1, q.shape[1:3]) * used
    m = s * zeros
    mean, square = q.mean(-1), q.square().mean(-1)
    best = torch.full(s.shape[:2], float("inf"))
    found = [
        torch.zeros_like(best),
        torch.zeros_like(best),
        torch.zeros_like(s),
        torch.zeros_like(s),
    ]
    for top in TOPS:
        d, sc = _six_bits(s, top)
        moved = d[..., None] * sc - s
        wanted = m + moved * mean
        for top_of_minima in TOPS:
            dmin, mn = _six_bits(wanted, top_of_minima)
            shift = dmin[..., None] * mn - m
            error = (moved.square() * square - 2 * moved * shift * mean + shift.square()).sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            for place, value in enumerate((d, dmin, sc, mn)):
                chosen = better if value.ndim == 2 else better[..., None]
                found[place] = torch.where(chosen, value, found[place])
    d, dmin, sc, mn = found
    lost = (d == 0) & (s.amax(-1) > 0)
    if bool((s < 0).any() or lost.any()) or not bool(best.isfinite().all()):
        raise FormatError(
            f"{module}: Q4_K can't hold its scales: negative, or beyond float16's range; drop "
            "--k-quants"
        )
    return (
        d.to(torch.float16),
        dmin.to(torch.float16),
        sc.flatten(1).to(torch.int8),
        mn.flatten(1).to(torch.int8),
    )


def _six_bits(values: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step (N, blocks), a float16 number, and values (N, blocks, 8) in it, 0 … 63."""
    step = (values.amax(-1).clamp_min(0) / top).to(torch.float16).float()
    whole = (values / step[..., None]).nan_to_num(0, 0, 0).round().clamp(0, FULL)
    return step, whole


def encode_q6_k(weight: torch.Tensor) -> torch.Tensor:
    """Round a float matrix (N, K), K a multiple of 256, to Q6_K blocks, uint8 (N, row bytes).

    Each 16 weights get the step, of some near a 32nd of their largest, that loses least squared;
    its sign is that of −largest, since codes reach −32 and only 31. Raises FormatError for values
    beyond its range.
    """
    groups = weight.float().unflatten(1, (-1, 16, 16))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = torch.full(groups.shape[:-1], float("inf"))
    steps = torch.zeros_like(best)
    for ratio in Q6_RATIOS:
        step = largest * (ratio / -32)
        error = ((groups / step).nan_to_num(0, 0, 0).round().clamp(-32, 31) * step - groups) ** 2
        total = error.sum(-1)
        steps = torch.where(total < best, step[..., 0], steps)
        best = torch.minimum(total, best)
    d = (steps.abs().amax(-1, keepdim=True) / 127).to(torch.float16).float()
    if not bool(d.isfinite().all()):
        raise FormatError("a matrix has values beyond what Q6_K can hold; drop --k-quants")
    sc = (steps / d).nan_to_num(0, 0, 0).round().clamp(-128, 127)
    step = (d * sc)[..., None]
    codes = (groups / step).nan_to_num(0, 0, 0).round().clamp(-32, 31)
    return blocks.pack_q6_k(
        codes.flatten(1).to(torch.int8),
        d[..., 0].to(torch.float16),
        sc.flatten(1).to(torch.int8),
    )


def _minimum(d: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return (-d.float() * steps).to(torch.float16)


def _args(bits: int, *, symmetric: bool) -> QuantArgs:
    return QuantArgs(bits=bits, group_size=blocks.BLOCK, symmetric=symmetric)
