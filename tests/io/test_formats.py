"""GPTQ and AWQ words against their layouts written out number by number, and bad files refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.core.errors import CheckpointError, SchemeError, SoroqError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import FORMATS, format_of, get_format
from soroq.io.stored import _arguments

INTEGER_FORMATS = ("gptq", "gptq-v2", "awq", "awq-gemv")


def _random(args: QuantArgs, N: int, K: int, seed: int, lowest_zero: int = 1) -> QuantizedTensor:
    g = torch.Generator().manual_seed(seed)
    groups = K // (args.group_size or K)
    codes = torch.randint(args.code_min, args.code_max + 1, (N, K), generator=g).to(torch.int8)
    scales = (torch.rand(N, groups, generator=g) + 0.01).to(torch.bfloat16)
    zeros = None
    if not args.symmetric:
        low = args.code_min + lowest_zero
        zeros = torch.randint(low, args.code_max + 1, (N, groups), generator=g).to(torch.int8)
    return QuantizedTensor(codes, scales, zeros, args)


def _nibbles(word: int, bits: int) -> list[int]:
    return [(word >> (bits * i)) & (2**bits - 1) for i in range(32 // bits)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("name", "less"), [("gptq", 1), ("gptq-v2", 0)])
def test_gptq_words_hold_neighbours_along_k_and_zero_points_less_one_in_v1(
    name: str, less: int, bits: int
) -> None:
    weight = _random(QuantArgs(bits=bits, group_size=32, symmetric=bits == 8), 8, 64, 0)
    stored = FORMATS[name].encode("m", weight)
    half = 2 ** (bits - 1)
    per_word = 32 // bits
    for n, row in ((0, 0), (5, 3), (7, 7)):
        word = int(stored["m.qweight"][row, n])
        want = [int(weight.codes[n, row * per_word + i]) + half for i in range(per_word)]
        assert _nibbles(word, bits) == want
    zeros = torch.zeros(8, 2) if weight.zeros is None else weight.zeros
    for group in (0, 1):
        want = [int(zeros[i, group]) + half - less for i in range(per_word)]
        assert _nibbles(int(stored["m.qzeros"][group, 0]), bits) == want
    assert stored["m.g_idx"].tolist() == [0] * 32 + [1] * 32
    assert stored["m.scales"].dtype == torch.float16
    assert torch.equal(stored["m.scales"].float(), weight.scales.t().float())


def test_awq_words_hold_neighbours_along_n_in_autoawqs_order() -> None:
    weight = _random(QuantArgs(bits=4, group_size=32, symmetric=False), 16, 64, 1)
    stored = FORMATS["awq"].encode("m", weight)
    assert weight.zeros is not None
    for k, j in ((0, 0), (63, 1), (17, 1)):
        want = [int(weight.codes[8 * j + n, k]) + 8 for n in (0, 2, 4, 6, 1, 3, 5, 7)]
        assert _nibbles(int(stored["m.qweight"][k, j]), 4) == want
    want = [int(weight.zeros[8 + n, 1]) + 8 for n in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert _nibbles(int(stored["m.qzeros"][1, 1]), 4) == want


@pytest.mark.parametrize(
    ("group", "width"), [(128, 1), (64, 2), (32, 4), (None, 1)], ids=["128", "64", "32", "row"]
)
def test_awq_gemv_words_hold_neighbours_along_k_and_zero_points_padded(
    group: int | None, width: int
) -> None:
    weight = _random(QuantArgs(bits=4, group_size=group, symmetric=False), 8, 384, 2)
    stored = FORMATS["awq-gemv"].encode("m", weight)
    assert weight.zeros is not None
    for n, j in ((0, 0), (7, 47), (3, 20)):
        want = [int(weight.codes[n, 8 * j + i]) + 8 for i in range(8)]
        assert _nibbles(int(stored["m.qweight"][n, j]), 4) == want
    groups = weight.zeros.shape[1]
    multiple = {32: 4, 64: 2}.get(group or 0, 1)
    assert width == max(multiple, -(-groups // 8))
    assert stored["m.qzeros"].shape == (8, width)
    assert stored["m.scales"].shape == (8, 8 * width)
    for n in (0, 5):
        zeros = [z for word in stored["m.qzeros"][n].tolist() for z in _nibbles(word, 4)]
        assert zeros == [int(z) + 8 for z in weight.zeros[n]] + [0] * (8 * width - groups)
        assert stored["m.scales"][n, groups:].eq(0).all()
    assert format_of(FORMATS["awq-gemv"].config({"m": (weight.args, None)}, [])).name == "awq-gemv"


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.sampled_from([32, 64, None]),
    seed=st.integers(0, 1000),
)
def test_what_is_encoded_comes_back_or_is_refused(
    name: str, bits: int, symmetric: bool, rows: int, groups: int, size: int | None, seed: int
) -> None:
    args = QuantArgs(bits=bits, group_size=size, symmetric=symmetric or bits == 8)
    weight = _random(args, 8 * rows, (size or 32) * groups, seed)
    format_ = FORMATS[name]
    reason = format_.refuses(args, None, weight.shape)
    if (name.startswith("awq") and bits == 8) or (name == "mlx" and size is None):
        assert reason is not None
        return
    assert reason is None
    read = args
    if name != "compressed-tensors":
        ((_, read, _),) = format_.parse(format_.config({"m": (args, None)}, []))
    got = format_.decode("m", format_.encode("m", weight), read)
    assert torch.equal(got.codes, weight.codes)
    assert torch.equal(got.dequantize(), weight.dequantize())


@pytest.mark.parametrize(("symmetric", "bits"), [(True, 4), (False, 4), (True, 8)])
def test_mlx_is_codes_times_scales_plus_biases(symmetric: bool, bits: int) -> None:
    args = QuantArgs(bits=bits, group_size=32, symmetric=symmetric)
    weight = _random(args, 8, 64, 8)
    stored = FORMATS["mlx"].encode("m", weight)
    words, scales, biases = (stored[f"m.{part}"] for part in ("weight", "scales", "biases"))
    assert words.dtype == torch.uint32 and words.shape == (8, 64 * bits // 32)
    assert biases.dtype == (torch.bfloat16 if symmetric else torch.float32)  # 12 bits need more
    want = weight.dequantize(torch.float64)
    for n in range(8):
        codes = [c for word in words[n].tolist() for c in _nibbles(word, bits)]
        for k in range(64):
            made = codes[k] * scales[n, k // 32].double() + biases[n, k // 32].double()
            assert made == want[n, k]


def test_mlx_biases_between_codes_are_refused() -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    stored = FORMATS["mlx"].encode("m", _random(args, 8, 64, 9))
    between = stored | {"m.biases": stored["m.biases"] + stored["m.scales"] / 2}
    below = stored | {"m.biases": stored["m.scales"].clone()}
    for wrong in (between, below):
        with pytest.raises(CheckpointError, match="no multiples of their scales"):
            FORMATS["mlx"].decode("m", wrong, args)
    with pytest.raises(CheckpointError, match="don't fit"):
        FORMATS["mlx"].decode("m", stored | {"m.biases": stored["m.biases"][:4]}, args)
    eight = QuantArgs(bits=8, group_size=32, symmetric=True)
    stored = FORMATS["mlx"].encode("m", _random(eight, 8, 64, 9))
    scales, biases = stored["m.scales"].float(), stored["m.biases"].float()
    moved = stored | {"m.scales": scales, "m.biases": biases + scales}
    with pytest.raises(CheckpointError, match="8-bit codes with zero points"):
        FORMATS["mlx"].decode("m", moved, eight)
    for config, why in (
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mode 'mxfp4'"),
        ({"group_size": 64, "bits": 4, "lm_head": {"bits": 8, "group_size": 64}}, "lm_head"),
        ({"group_size": 64, "bits": 3}, "bits|3"),
    ):
        with pytest.raises(CheckpointError, match=why):
            format_of(config).parse(config)


def test_unsorted_g_idx_is_read_exactly() -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=True)
    weight = _random(args, 8, 64, 3)
    stored = FORMATS["gptq"].encode("m", weight)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(4))
    index = stored["m.g_idx"][order]
    got = FORMATS["gptq"].decode("m", stored | {"m.g_idx": index}, args)
    want = weight.codes.float() * weight.scales.float()[:, index.long()]
    assert torch.equal(got.dequantize(), want)


def test_scales_beyond_float16_and_zero_points_v1_has_no_place_for_are_refused() -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    weight = _random(args, 8, 64, 5)
    tiny = QuantizedTensor(weight.codes, weight.scales * 2.0**-26, weight.zeros, args)
    for name in INTEGER_FORMATS:
        with pytest.raises(FormatError, match="scales are no float16"):
            FORMATS[name].encode("m", tiny)
    assert weight.zeros is not None
    zeros = weight.zeros.clone()
    zeros[0, 0] = args.code_min
    lowest = QuantizedTensor(weight.codes, weight.scales, zeros, args)
    with pytest.raises(FormatError, match="gptq-v2"):
        FORMATS["gptq"].encode("m", lowest)
    kept = FORMATS["gptq-v2"].decode("m", FORMATS["gptq-v2"].encode("m", lowest), args)
    assert torch.equal(kept.dequantize(), lowest.dequantize())


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_missing_or_cut_parts_are_one_clear_error(name: str) -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    stored = FORMATS[name].encode("m", _random(args, 16, 64, 6))
    for part in ("qweight", "qzeros", "scales"):
        without = {k: v for k, v in stored.items() if k != f"m.{part}"}
        with pytest.raises(CheckpointError, match=f"m.{part} is missing"):
            FORMATS[name].decode("m", without, args)
        for cut in (stored[f"m.{part}"][:-1], stored[f"m.{part}"].flatten()):
            with pytest.raises(CheckpointError, match="don't fit|not a matrix|g_idx"):
                FORMATS[name].decode("m", stored | {f"m.{part}": cut}, args)


_JSON = st.one_of(st.none(), st.booleans(), st.integers(-200, 200), st.text(max_size=8))


@settings(max_examples=150)
@given(
    st.sampled_from(["gptq", "awq", "compressed-tensors", "exl2", 3]),
    st.dictionaries(
        st.sampled_from(
            ["bits", "group_size", "sym", "zero_point", "version", "checkpoint_format"]
        ),
        _JSON,
    ),
)
def test_no_configuration_ends_in_anything_but_a_soroq_error(
    method: object, fields: dict[str, object]
) -> None:
    config = {"quant_method": method, **fields}
    try:
        groups = format_of(config).parse(config)
    except SoroqError as error:
        assert "\n" not in str(error)
    else:
        assert all(args.bits in (4, 8) for _, args, _ in groups)


def test_an_unknown_format_names_those_there_are() -> None:
    with pytest.raises(
        SchemeError, match="awq, awq-gemv, compressed-tensors, gptq, gptq-v2, hqq, mlx"
    ):
        get_format("gpqt")


def test_a_module_gets_the_numbers_of_the_group_that_names_it_best() -> None:
    """By name, then by pattern, then as a Linear: whichever group stands first."""
    int4, int8 = QuantArgs(bits=4), QuantArgs(bits=8)
    row = QuantArgs(bits=8, group_size=None)
    groups = [
        (["Linear"], int4, None),
        (["re:.*down_proj"], int8, None),
        (["model.layers.1.mlp.down_proj"], row, None),
    ]
    assert _arguments("model.layers.0.mlp.up_proj", groups)[0] == int4
    assert _arguments("model.layers.0.mlp.down_proj", groups)[0] == int8
    assert _arguments("model.layers.1.mlp.down_proj", groups)[0] == row
    with pytest.raises(CheckpointError, match="no group of quantization_config names it"):
        _arguments("model.layers.0.mlp.up_proj", groups[1:])
    with pytest.raises(CheckpointError, match="is no pattern"):
        _arguments("model.norm", [(["re:("], int4, None)])
