"""GPTQ checkpoints as AutoGPTQ laid them out, read today by gptqmodel, transformers and vLLM.

qweight int32 (K/P, N): P = 32 / bits unsigned codes a word along K, the first in the lowest bits;
qzeros int32 (K/G, N/P): zero points packed along N; scales float16 (K/G, N); g_idx int32 (K,): the
group of each column.  W[n, k] = (q[k, n] − z[g_idx[k], n]) · scales[g_idx[k], n].

`gptq` (v1) stores z − 1, `gptq_v2` stores z (gptqmodel's `checkpoint_format`). With desc_act the
groups are not neighbours: QuantizedTensor has no permutation, and kernels that read whole groups
could not use one, so such a matrix is read exactly as groups of one column.
"""

from collections.abc import Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError
from soroq.core.packing import pack_rows, unpack_rows
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.shared import (
    Group,
    as_float16,
    check_groups,
    read_args,
    refuse_beyond_integers,
    take,
    zero_points,
)

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def encode(module: str, quantized: QuantizedTensor, *, v2: bool) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear. Raises FormatError for values that don't fit."""
    args = quantized.args
    zeros = zero_points(module, quantized)
    if not v2:
        if bool((zeros == args.code_min).any()):
            raise FormatError(
                f"{module}: a zero point is 0, and GPTQ v1 stores it less 1; use --format gptq-v2"
            )
        zeros = zeros - 1
    K = quantized.shape[1]
    group = K // quantized.scales.shape[1]
    return {
        f"{module}.qweight": pack_rows(quantized.codes, args.bits).t().contiguous(),
        f"{module}.qzeros": pack_rows(zeros.t().contiguous(), args.bits),
        f"{module}.scales": as_float16(module, quantized.scales).t().contiguous(),
        f"{module}.g_idx": (torch.arange(K) // group).to(torch.int32),
    }


def decode(
    module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs, *, v2: bool
) -> QuantizedTensor:
    """Invert `encode`; an unsorted g_idx gives groups of one column.

    Raises CheckpointError when a tensor is missing or has a shape that doesn't fit the others.
    """
    qweight, scales = take(module, tensors, "qweight", 2), take(module, tensors, "scales", 2)
    qzeros = take(module, tensors, "qzeros", 2)
    per_word = 32 // args.bits
    K, N = qweight.shape[0] * per_word, qweight.shape[1]
    group = args.group_size or K
    groups = check_groups(module, qweight, scales, qzeros, (K, N), args)
    codes = unpack_rows(qweight.t().contiguous(), args.bits, K)
    zeros = unpack_rows(qzeros, args.bits, N).t()
    if not v2:
        if bool((zeros == args.code_max).any()):
            raise CheckpointError(
                f"{module}: a stored zero point is {args.levels - 1}, which in GPTQ v1 readers "
                "take for 0 or for one more; quantize it again as gptq_v2"
            )
        zeros = zeros + 1
    scales = scales.t()
    index = tensors.get(f"{module}.g_idx")
    natural = torch.arange(K) // group
    if index is not None:
        if tuple(index.shape) != (K,) or not 0 <= int(index.min()) <= int(index.max()) < groups:
            raise CheckpointError(f"{module}: g_idx does not name a group for each of {K} columns")
        if not torch.equal(index.long(), natural):
            one = QuantArgs(bits=args.bits, group_size=1, symmetric=args.symmetric)
            columns = index.long()
            picked = None if args.symmetric else zeros[:, columns].contiguous()
            _refuse_shifted(module, zeros, args)
            return QuantizedTensor(codes, scales[:, columns].contiguous(), picked, one)
    if args.symmetric:
        _refuse_shifted(module, zeros, args)
        return QuantizedTensor(codes, scales.contiguous(), None, args)
    return QuantizedTensor(codes, scales.contiguous(), zeros.contiguous(), args)


def _refuse_shifted(module: str, zeros: torch.Tensor, args: QuantArgs) -> None:
    if args.symmetric and bool((zeros != 0).any()):
        raise CheckpointError(
            f"{module}: config.json says sym, but zero points are not all {args.levels // 2}; "
            "was checkpoint_format changed?"
        )


def refuses(args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]) -> str | None:
    """Return why such a weight can't be stored, None if it can."""
    return refuse_beyond_integers("GPTQ", args, activation, shape)


def config(args: QuantArgs, ignore: list[str], *, v2: bool) -> dict[str, Any]:
    """Return `quantization_config`, fields as gptqmodel 7.6 writes them.

    ignore: linears inside blocks that stay as they are.
    """
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
        "bits": args.bits,
        "group_size": -1 if args.group_size is None else args.group_size,
        "sym": args.symmetric,
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in ignore},
    }


def parse(config: Mapping[str, Any]) -> list[Group]:
    """Return the one group of numbers. Raises CheckpointError for what soroq can't represent."""
    changed = [key for key in config.get("dynamic") or {} if not key.startswith("-:")]
    if changed:
        raise CheckpointError(
            f"quantization_config: dynamic {changed[0]!r} changes numbers per module; soroq reads "
            "GPTQ with one set of numbers"
        )
    return [(["Linear"], read_args(config, symmetric=bool(config.get("sym", True))), None)]
