"""HQQ checkpoints, as hqq's own `save_to_safetensors` and transformers' HqqConfig store them.

A linear's groups lie one a row: q uint8 (N · K / G, G), group g of row n at n · K / G + g. Four
bits are packed two rows a byte, the first half of the rows in the upper nibbles (`pack_4bit_u8`);
8 bits are stored as they are. scale and zero (N · K / G, 1) are floating, zero points any numbers:

    W = (q − zero) · scale

All of a module's settings lie beside it as tensors: integers int32, truth values uint8, text one
uint8 a letter (hqq 0.2.8, core/quantize.py `HQQLinear.state_dict`, core/utils.py
`encode_safetensor_type`). hqq's `optimize` moves zero points off the integers. Where one of a
matrix is none, soroq holds them all in float64, in which z − 2^(bits−1) is exact, and kernels and
formats that have integer zero points refuse the matrix.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from soroq.core.errors import CheckpointError, SchemeError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.shared import Group

MARK = "W_q"
TRUE = ("channel_wise", "encoded_state_dict", "optimize", "stores_quant_config")
FALSE = ("offload_meta", "quant_scale", "quant_zero", "view_as_float")
NUMBERS = ("axis", "group_size", "nbits")
TEXTS = ("compute_dtype", "packing", "unpack_view_dtype")
PARTS = (MARK, "scale", "zero", "shape", *NUMBERS, *TEXTS, *TRUE, *FALSE, "round_zero")
PACKING = {4: "4bit_u8", 8: "8bit_u8"}


def encode(module: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear, all that hqq 0.2.8 wants to find.

    Raises FormatError for zero points that are no floating numbers behind the shift.
    """
    args = quantized.args
    N, K = quantized.shape
    group, half = args.group_size or K, 2 ** (args.bits - 1)
    rows = (quantized.codes.view(-1, group).to(torch.int16) + half).to(torch.uint8)
    if args.bits == 4:
        upper, lower = rows.chunk(2)
        rows = (upper << 4) | lower
    scales, exact = quantized.scales, torch.full(quantized.scales.shape, float(half)).double()
    if quantized.zeros is not None:
        exact = exact + quantized.zeros.double()
    if not torch.equal(exact.to(scales.dtype).double(), exact):
        scales = scales.float()
    zeros = exact.to(scales.dtype)
    if not torch.equal(zeros.double(), exact):
        raise FormatError(f"{module}: zero points are no float32 numbers")
    stored = {
        MARK: rows,
        "scale": scales.reshape(-1, 1),
        "zero": zeros.reshape(-1, 1),
        "shape": torch.tensor([N, K]),
        "compute_dtype": _letters(str(scales.dtype)),
        "packing": _letters(PACKING[args.bits]),
        "unpack_view_dtype": _letters(str(torch.uint8)),
    }
    numbers = {"axis": 1, "group_size": group, "nbits": args.bits}
    stored |= {name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()}
    stored |= {name: torch.tensor(1, dtype=torch.uint8) for name in TRUE}
    stored |= {name: torch.tensor(0, dtype=torch.uint8) for name in FALSE}
    stored["round_zero"] = torch.tensor(args.bits == 4, dtype=torch.uint8)  # hqq's default
    return {f"{module}.{name}": stored[name].contiguous() for name in PARTS}


def decode(module: str, tensors: Mapping[str, torch.Tensor], args: QuantArgs) -> QuantizedTensor:
    """Invert `encode`: zero points int8 where all are integers of the codes' range, else float64.

    Raises CheckpointError for parts that are missing or don't fit, and for what soroq doesn't read.
    """
    need = (MARK, "scale", "zero", "shape", *NUMBERS)
    missing = [part for part in need if f"{module}.{part}" not in tensors]
    if missing:
        raise CheckpointError(
            f"{module}.{missing[0]} is missing, the module's other parts are there"
        )
    stored = {part: tensors[f"{module}.{part}"] for part in need}
    for part in ("view_as_float", "quant_scale", "quant_zero"):
        flag = tensors.get(f"{module}.{part}")
        if flag is not None and bool(flag.any()):
            raise CheckpointError(f"{module}: HQQ with {part} is not readable; save it without")
    numbers = read_numbers(module, lambda name: tensors[name])
    N, K = read_shape(module, lambda name: tensors[name])
    group, half = args.group_size or K, 2 ** (args.bits - 1)
    if numbers != (args.bits, group):
        raise CheckpointError(
            f"{module}: {numbers[0]} bits in groups of {numbers[1]}, not {args.bits} in {group} as "
            "the other modules; HQQ with numbers of single modules is not readable"
        )
    words, groups = stored[MARK], N * K // group
    height = groups // 2 if args.bits == 4 else groups
    fits = K % group == 0 and words.shape == (height, group) and words.dtype == torch.uint8
    if not fits or any(stored[p].shape != (groups, 1) for p in ("scale", "zero")):
        raise CheckpointError(
            f"{module}: {MARK} {words.dtype} {tuple(words.shape)}, scale "
            f"{tuple(stored['scale'].shape)} and zero {tuple(stored['zero'].shape)} don't fit "
            f"{N} x {K} in groups of {group}; the file is damaged"
        )
    rows = torch.cat([words >> 4, words & 15]) if args.bits == 4 else words
    codes = (rows.to(torch.int16) - half).to(torch.int8).view(N, K)
    scales = stored["scale"].view(N, -1).contiguous()
    zeros = _shift(module, stored["zero"].view(N, -1), half)
    if not args.symmetric:
        return QuantizedTensor(codes, scales, zeros, args)
    if zeros.any():
        raise CheckpointError(f"{module}: {args.bits}-bit codes with zero points, not readable")
    return QuantizedTensor(codes, scales, None, args)


def read_numbers(module: str, load: Callable[[str], torch.Tensor]) -> tuple[int, int]:
    """Return bits and group size of a stored module, by a function that loads a tensor by name.

    Raises CheckpointError for groups along N, and for tensors that are no numbers.
    """
    try:
        axis, group, bits = (float(load(f"{module}.{name}")) for name in NUMBERS)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{module}: axis, group_size or nbits is no number") from error
    if axis != 1:
        raise CheckpointError(
            f"{module}: HQQ with axis {axis:g} is not readable, its groups run along the outputs; "
            "quantize with axis=1"
        )
    if bits not in PACKING or group < 1:
        raise CheckpointError(
            f"{module}: HQQ with nbits {bits:g} in groups of {group:g} is not readable; 4 and 8 are"
        )
    return int(bits), int(group)


def read_shape(module: str, load: Callable[[str], torch.Tensor]) -> tuple[int, int]:
    """Return (N, K) of a stored module. Raises CheckpointError when that is no matrix's shape."""
    sides = load(f"{module}.shape").flatten().tolist()
    if len(sides) != 2 or min(sides) < 1:
        raise CheckpointError(f"{module}.shape: {sides} is no shape of a matrix")
    return int(sides[0]), int(sides[1])


def refuses(args: QuantArgs, activation: QuantArgs | None, shape: tuple[int, int]) -> str | None:
    """Return why such a weight can't be stored, None if it can."""
    if args.dtype == "float":
        return "hqq holds integers, not float8"
    if activation is not None:
        return "hqq can't say how activations are rounded"
    if args.group_size == 1:
        return "its groups are not neighbours (desc_act), which QuantizedTensor can't keep"
    group = args.group_size or shape[1]
    if shape[1] % group:
        return f"in_features {shape[1]} is not a multiple of its group, {group}"
    if group % 8:
        return f"hqq has groups of multiples of 8, not of {group}"
    if args.bits == 4 and shape[0] * shape[1] // group % 2:
        return "an odd number of groups, which hqq packs in pairs"
    return None


def config(args: QuantArgs, ignore: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` that transformers' HqqConfig writes."""
    weights = {
        "nbits": args.bits,
        "channel_wise": True,
        "group_size": args.group_size,
        "optimize": True,
        "round_zero": args.bits == 4,
        "axis": 1,
        "view_as_float": False,
    }
    return {
        "quant_method": "hqq",
        "quant_config": {
            "weight_quant_params": weights,
            "scale_quant_params": None,
            "zero_quant_params": None,
            "offload_meta": False,
        },
        "skip_modules": ["lm_head", *ignore],
    }


def parse(config: Mapping[str, Any]) -> list[Group]:
    """Return the one group of numbers. Raises CheckpointError for what soroq can't represent."""
    told = config.get("quant_config")
    weights = told.get("weight_quant_params") if isinstance(told, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            "HQQ without weight_quant_params for all modules is not readable: numbers of single "
            "modules (linear tags) are not"
        )
    bits, group, axis = (weights.get(key) for key in ("nbits", "group_size", "axis"))
    if type(bits) is not int or bits not in PACKING or axis != 1:
        raise CheckpointError(
            f"HQQ with nbits {bits!r} and axis {axis!r} is not readable; 4 and 8 with axis 1 are"
        )
    if group is not None and type(group) is not int:
        raise CheckpointError(f"HQQ with group_size {group!r} is not readable")
    try:
        return [(["Linear"], QuantArgs(bits=bits, group_size=group, symmetric=bits == 8), None)]
    except SchemeError as error:
        raise CheckpointError(f"quantization_config can't be read: {error}") from error


def config_from_tensors(modules: list[str], load: Callable[[str], torch.Tensor]) -> dict[str, Any]:
    """Return the configuration of a model that hqq itself saved: config.json says nothing of it.

    Raises CheckpointError when modules differ in their numbers.
    """
    found = {module: read_numbers(module, load) for module in modules}
    whole_rows = all(read_shape(m, load)[1] == group for m, (_, group) in found.items())
    first = found[modules[0]]
    for module, numbers in found.items():
        if numbers[0] != first[0] or (numbers != first and not whole_rows):
            raise CheckpointError(
                f"HQQ with numbers of single modules is not readable: {modules[0]} has {first[0]} "
                f"bits in groups of {first[1]}, {module} {numbers[0]} in {numbers[1]}"
            )
    group = None if len(set(found.values())) > 1 else first[1]
    return config(QuantArgs(bits=first[0], group_size=group, symmetric=first[0] == 8), [])


def _shift(module: str, zeros: torch.Tensor, half: int) -> torch.Tensor:
    """Return zero points less `half`: int8 if all are codes, else float64, exactly."""
    shifted = zeros.double() - half
    if not torch.equal(shifted + half, zeros.double()):
        raise CheckpointError(f"{module}: zero points too near to 0 for float64; not readable")
    whole = bool(((shifted == shifted.round()) & (shifted >= -half) & (shifted < half)).all())
    return shifted.to(torch.int8) if whole else shifted


def _letters(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
