"""HQQ checkpoints that hqq wrote: the weights it dequantizes, bit for bit, and what is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soroq.core.errors import CheckpointError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.inspection import describe
from soroq.io.checkpoint import open_checkpoint
from soroq.io.formats.refusal import FormatError
from soroq.io.formats.registry import FORMATS
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.pipeline.convert import convert

GOLDEN = Path(__file__).parent / "golden"
CASES = ("hqq", "hqq-rows", "hqq-whole")  # float32; float16, rows; bfloat16, integer zero points
MODULE = "model.layers.0.mlp.up_proj"
HQQ = FORMATS["hqq"]


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()


def _as_hqq_rounds(weight: QuantizedTensor) -> torch.Tensor:
    """(q − zero) · scale as hqq takes it: both steps rounded to the dtype of its scales."""
    dtype = weight.scales.dtype
    zeros = torch.zeros(()) if weight.zeros is None else weight.zeros[..., None]
    steps = (weight.codes.view(*weight.scales.shape, -1).double() - zeros.double()).to(dtype)
    return (steps * weight.scales[..., None]).view(weight.shape)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_hqq_dequantizes(case: str) -> None:
    stored = StoredWeights(open_checkpoint(GOLDEN / case))
    dense = json.loads((GOLDEN / case / "dense.json").read_text())
    assert stored.format is HQQ
    assert stored.quantized == set(dense) and len(dense) == 7
    for module, want in dense.items():
        weight = stored.load_quantized(module)[0]
        assert weight.has_real_zeros == (case != "hqq-whole")
        assert weight.args.group_size == (None if case == "hqq-rows" else 32)
        assert _sha256(_as_hqq_rounds(weight)) == want, module
        if case != "hqq-rows":  # float16 rounds q − zero, soroq doesn't
            assert _sha256(weight.dequantize(weight.scales.dtype)) == want, module


@pytest.mark.parametrize("case", CASES)
def test_encoding_again_gives_the_tensors_that_hqq_wrote(case: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / case)
    stored = StoredWeights(checkpoint)
    encoded: dict[str, torch.Tensor] = {}
    for module in stored.quantized:
        encoded |= HQQ.encode(module, stored.load_quantized(module)[0])
    assert set(encoded) == stored.parts()
    told = (".optimize", ".round_zero") if case == "hqq-whole" else ()  # no defaults there
    for name, tensor in encoded.items():
        want = checkpoint.load(name)
        assert tensor.dtype == want.dtype and tensor.shape == want.shape, name
        assert torch.equal(tensor, want) or name.endswith(told), name


@pytest.mark.parametrize("case", CASES)
def test_models_run_unpacked_late_and_after_a_conversion_to_hqq(case: str, tmp_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    want = load(GOLDEN / case, packed=False)(ids).logits
    assert torch.equal(load(GOLDEN / case, late=True)(ids).logits, want)
    convert(GOLDEN / case, tmp_path / "again", "hqq")  # with a quantization_config now
    assert torch.equal(load(tmp_path / "again", packed=False)(ids).logits, want)
    told = [dict(describe(path).facts)["format"] for path in (GOLDEN / case, tmp_path / "again")]
    group = "row" if case == "hqq-rows" else 32
    assert told == [f"hqq, axis 1, 4 bits, group {group}"] * 2


def test_integer_zero_points_are_packed_and_converted(tmp_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    want = load(GOLDEN / "hqq-whole", packed=False)(ids).logits
    assert torch.allclose(load(GOLDEN / "hqq-whole")(ids).logits, want, atol=1e-4)
    for name in ("compressed-tensors", "mlx", "gptq-v2"):
        convert(GOLDEN / "hqq-whole", tmp_path / name, name)
        assert torch.equal(load(tmp_path / name, packed=False)(ids).logits, want)
        convert(tmp_path / name, tmp_path / f"{name}-back", "hqq")
        assert torch.equal(load(tmp_path / f"{name}-back", packed=False)(ids).logits, want)


def test_real_zero_points_are_refused_by_kernels_and_other_formats(tmp_path: Path) -> None:
    stored = StoredWeights(open_checkpoint(GOLDEN / "hqq"))
    with pytest.raises(CheckpointError, match="packed=False"):
        stored.open(MODULE).rows(0, 4)
    for precision in ("exact", None):
        with pytest.raises(CheckpointError, match="packed=False"):
            load(GOLDEN / "hqq", precision=precision)
    for name in sorted(FORMATS.keys() - {"hqq"}):
        with pytest.raises(FormatError, match="zero points between the integers"):
            convert(GOLDEN / "hqq", tmp_path / name, name)
    assert not list(tmp_path.iterdir())


@settings(max_examples=60)
@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 32, 40, None]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    whole=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_words_are_hqqs_and_come_back(
    bits: int,
    rows: int,
    groups: int,
    group: int | None,
    dtype: torch.dtype,
    whole: bool,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    N, K = 2 * rows, (group or 16) * groups
    size = group or K
    q = torch.randint(0, 2**bits, (N * K // size, size), generator=g).to(torch.uint8)
    scale = (torch.rand(len(q), 1, generator=g) + 0.01).to(dtype)
    zero = (torch.rand(len(q), 1, generator=g) * 20 - 2).to(dtype)
    if whole:
        zero = zero.round().clamp(0, 15)
    if bits == 8:
        zero = torch.full_like(zero, 128)
    # hqq's pack_4bit_u8: row i of the first half and row i of the second are one byte
    half = len(q) // 2
    words = q[:half] * 16 + q[half:] if bits == 4 else q
    numbers = {"axis": 1, "group_size": size, "nbits": bits}
    parts = {"W_q": words, "scale": scale, "zero": zero, "shape": torch.tensor([N, K])}
    parts |= {name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()}
    stored = {f"m.{name}": tensor for name, tensor in parts.items()}
    args = QuantArgs(bits=bits, group_size=group, symmetric=bits == 8)

    weight = HQQ.decode("m", stored, args)
    want = ((q.double() - zero.double()).float() * scale.float()).view(N, K)
    assert torch.equal(weight.dequantize(), want)
    assert weight.has_real_zeros == (bits == 4 and not bool((zero == zero.round()).all()))
    encoded = HQQ.encode("m", weight)
    assert all(torch.equal(encoded[name], tensor) for name, tensor in stored.items())
    assert HQQ.parse(HQQ.config({"m": (args, None)}, [])) == [(["Linear"], args, None)]


def _parts() -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(GOLDEN / "hqq")
    names = (f"{MODULE}.{part}" for part in HQQ.parts)
    return {name: checkpoint.load(name) for name in names}


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("axis", torch.tensor(0, dtype=torch.int32), "axis 0 is not readable"),
        ("nbits", torch.tensor(3, dtype=torch.int32), "nbits 3 in groups of 32"),
        ("nbits", torch.tensor(1.58), "nbits 1.58 in"),
        ("nbits", torch.tensor([4, 4]), "is no number"),
        ("nbits", torch.tensor(8, dtype=torch.int32), "single modules"),
        ("group_size", torch.tensor(64, dtype=torch.int32), "single modules"),
        ("view_as_float", torch.tensor(1, dtype=torch.uint8), "view_as_float is not readable"),
        ("quant_zero", torch.tensor(1, dtype=torch.uint8), "quant_zero is not readable"),
        ("W_q", torch.zeros(3, 32, dtype=torch.uint8), "don't fit"),
        ("W_q", torch.zeros(32, 32, dtype=torch.int32), "don't fit"),
        ("zero", torch.zeros(64), "don't fit"),
        ("shape", torch.tensor([64, 48]), "don't fit"),
        ("shape", torch.tensor([64]), "no shape of a matrix"),
        ("zero", torch.full((64, 1), 1e-30), "too near to 0"),
    ],
)
def test_what_is_not_readable_is_one_clear_line(part: str, value: torch.Tensor, why: str) -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    assert HQQ.decode(MODULE, _parts(), args).shape == (64, 32)
    with pytest.raises(CheckpointError, match=why) as refused:
        HQQ.decode(MODULE, _parts() | {f"{MODULE}.{part}": value}, args)
    assert "\n" not in str(refused.value)


def test_missing_parts_and_other_configurations_are_refused() -> None:
    args = QuantArgs(bits=4, group_size=32, symmetric=False)
    for part in ("W_q", "scale", "zero", "shape", "axis", "nbits"):
        without = {k: v for k, v in _parts().items() if k != f"{MODULE}.{part}"}
        with pytest.raises(CheckpointError, match=f"{part} is missing"):
            HQQ.decode(MODULE, without, args)
    for told, why in (
        ({"self_attn.q_proj": {"weight_quant_params": {}}}, "linear tags"),
        ({"weight_quant_params": {"nbits": 2, "group_size": 64, "axis": 1}}, "nbits 2"),
        ({"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 0}}, "axis 0"),
        ({"weight_quant_params": {"nbits": 4, "group_size": "64", "axis": 1}}, "group_size '64'"),
        ({"weight_quant_params": {"nbits": 4, "group_size": 0, "axis": 1}}, "group_size 0"),
        (None, "linear tags"),
    ):
        with pytest.raises(CheckpointError, match=why):
            HQQ.parse({"quant_method": "hqq", "quant_config": told})
    odd = QuantArgs(bits=4, group_size=32, symmetric=True)
    assert "odd number of groups" in str(HQQ.refuses(odd, None, (3, 96)))
    assert "multiples of 8" in str(HQQ.refuses(QuantArgs(group_size=4), None, (4, 96)))
    assert "multiple of its group" in str(HQQ.refuses(odd, None, (4, 80)))


def test_hqqs_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((GOLDEN / "hqq" / "config.json").read_text())
    (tmp_path / "qmodel.pt").touch()
    with pytest.raises(CheckpointError, match="qmodel.pt .* save_to_safetensors"):
        open_checkpoint(tmp_path)


def test_modules_of_different_numbers_are_refused_where_no_configuration_tells(
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(GOLDEN / "hqq" / "model.safetensors")
    tensors[f"{MODULE}.group_size"] = torch.tensor(16, dtype=torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "hqq" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="single modules .* groups of 32, .* 4 in 16"):
        open_checkpoint(tmp_path)
