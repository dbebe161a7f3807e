"""A .gguf: the values that were solved, in the places where llama.cpp looks for them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from soroq.bench.kernels.ggml import directory
from soroq.bench.peers.imatrix import measure
from soroq.bench.peers.llama import FTYPES, Llama, LlamaModel
from soroq.core.errors import CheckpointError, OutputError
from soroq.core.recipe import Recipe
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.export.gguf import write_gguf
from soroq.io.checkpoint import open_checkpoint
from soroq.io.formats.gguf_blocks import unpack_q4_k
from soroq.io.formats.refusal import FormatError
from soroq.io.gguf_tokenizer import write_tokenizer
from soroq.io.stored import StoredWeights
from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize

FOLDER = directory("llama.cpp")
needs_llama = pytest.mark.skipif(
    FOLDER is None or not any(FOLDER.glob("libllama.*so*")),
    reason="needs libllama: bench/peers/get_llama.sh llama.cpp DIR; SOROQ_LLAMA_CPP=DIR",
)
LETTERS = "▁abcdeg"
WORDS = ["ab", "▁ab", "abc", "▁abc", "de", "▁de", "▁abde"]
# relative to the logits. llama.cpp caches keys and values in float16, 8e-4 when this was written,
# and rounds the inputs of quantized products to 8 bits
EXACT, ROUNDED = 2e-3, 0.05
ROUNDED_K = 0.1  # K-quants' inputs share a scale between 256 columns, not 32
SCHEMES = {"q4_0": ("int4-rtn", True), "q4_1": ("int4-rtn", False), "q8_0": ("int8-rtn", True)}


def _tokenizer(folder: Path) -> None:
    """Give a folder a SentencePiece-like vocabulary of 274, as Gemma's is."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *LETTERS, *WORDS]
    first = len(tokens) - len(WORDS)
    write_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3, 3, 2, *[6] * 256, *[1] * (len(tokens) - 260)],
            "tokenizer.ggml.scores": [float(min(first - i, 0)) for i in range(len(tokens))],
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.chat_template": "{{ messages[0].content }}",
        },
        folder,
    )


def _quantized(
    root: Path, model_type: str, kind: str = "q4_0", *, group: int | None = 32, **changes: Any
) -> Path:
    if model_type == "qwen2":
        changes["head_dim"] = 16  # the heads are as wide as the hidden state together
    base = write_tiny_model(root / "base", model_type, **changes)
    if model_type == "gemma3_text":
        config = json.loads((base / "config.json").read_text())
        config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
        (base / "config.json").write_text(json.dumps(config))
    _tokenizer(base)
    method, symmetric = SCHEMES[kind]
    scheme = get_scheme(method, group_size=group, symmetric=symmetric)
    embed = QuantArgs(bits=8, group_size=32) if model_type == "gemma3_text" else None
    quantize(base, root / "out", recipe=Recipe(scheme, embed=embed), calibration=None)
    return root / "out"


def _open(path: Path) -> LlamaModel:
    assert FOLDER is not None
    return Llama("llama.cpp", FOLDER, threads=1).open(path, window=128)


def _values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    reader = gguf.GGUFReader(path)
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize("group", [32, 64, None], ids=["G32", "G64", "row"])
@pytest.mark.parametrize("kind", SCHEMES)
def test_blocks_hold_what_was_solved(tmp_path: Path, kind: str, group: int | None) -> None:
    source = _quantized(tmp_path, "qwen3", kind, group=group, num_hidden_layers=1)
    write_gguf(source, tmp_path / "m.gguf")
    stored = StoredWeights(open_checkpoint(source))
    found = _values(tmp_path / "m.gguf")
    names = {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down", "mlp.up_proj": "ffn_up"}
    for ours, theirs in names.items():
        weight = stored.load_quantized(f"model.layers.0.{ours}")[0]
        limit = 0.0
        if weight.zeros is not None:  # half a unit in the last of float16's 11 bits
            limit = float(((weight.zeros.float() + 8) * weight.scales.float()).max()) * 2**-11
        values = torch.from_numpy(found[f"blk.0.{theirs}.weight"])
        assert float((values - weight.dequantize()).abs().max()) <= limit * 1.001
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == kind.upper()
    assert tensors["token_embd.weight"].tensor_type.name == "BF16"
    dense = open_checkpoint(source).load("model.embed_tokens.weight").float()
    assert np.array_equal(found["token_embd.weight"], dense.numpy())


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2", "qwen3"])
def test_soroq_reads_its_own_file_back(tmp_path: Path, model_type: str) -> None:
    source = _quantized(tmp_path, model_type, "q8_0", num_hidden_layers=2)
    write_gguf(source, tmp_path / "m.gguf")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "m.gguf")
    for key in ("architectures", "head_dim", "rms_norm_eps", "rope_parameters", "vocab_size"):
        if key in before.config and key != "rope_parameters":
            assert after.config[key] == before.config[key]
    stored = StoredWeights(before)
    for name in after.names():
        module = name.removesuffix(".weight")
        if module in stored.quantized:
            want = stored.load_quantized(module)[0].dequantize(torch.bfloat16)
        else:
            want = before.load(name)
        # Gemma's norms are stored as 1 + w
        assert torch.allclose(after.load(name).float(), want.float(), rtol=0, atol=2**-20)


def test_the_vocabulary_says_what_each_token_is(tmp_path: Path) -> None:
    source = _quantized(tmp_path, "gemma3_text", num_hidden_layers=1)
    write_gguf(source, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    get = {key.removeprefix("tokenizer.ggml."): f.contents() for key, f in fields.items()}
    assert get["model"] == "llama"
    assert get["token_type"][:5] == [3, 3, 3, 2, 6]
    assert get["token_type"][-1] == 5
    assert get["tokens"][-1] == "[PAD299]"
    scores = dict(zip(get["tokens"], get["scores"], strict=True))
    assert scores["ab"] > scores["abc"] > scores["▁abc"] > scores["de"] > scores["a"]
    assert get["add_bos_token"] is True
    assert get["add_space_prefix"] is False
    assert (get["bos_token_id"], get["eos_token_id"], get["padding_token_id"]) == (2, 1, 0)
    assert get["tokenizer.chat_template"] == "{{ messages[0].content }}"


@needs_llama
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["F32", *SCHEMES])
def test_llama_cpp_speaks_as_soroq_does(tmp_path: Path, model_type: str, kind: str) -> None:
    source = _quantized(tmp_path, model_type, "q8_0" if kind == "F32" else kind)
    if kind == "F32":
        source = tmp_path / "base"
        tensors = {n: t.float() for n, t in load_file(source / "model.safetensors").items()}
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
    write_gguf(source, tmp_path / "m.gguf")
    ids = [2, *range(260, 300), *range(10, 40)]  # beyond the sliding window of 16
    with _open(tmp_path / "m.gguf") as model:
        theirs = torch.from_numpy(model.evaluate(ids, every=True).copy())
    ours = load(source, packed=False)(torch.tensor([ids])).logits[0]
    error = float((theirs - ours).norm() / ours.norm())
    assert error < (EXACT if kind == "F32" else ROUNDED)


def _k_quants(tmp_path: Path, model_type: str) -> tuple[Path, Path]:
    """A model whose rows fill blocks of 256, but for o_proj's, and its file of K-quants."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    source = _quantized(tmp_path, model_type, "q4_1", **shape)
    write_gguf(source, tmp_path / "m.gguf", k_quants=True)
    return source, tmp_path / "m.gguf"


def test_k_quants_keep_codes_and_round_the_head(tmp_path: Path) -> None:
    source, file = _k_quants(tmp_path, "llama")
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    kinds = {name: t.tensor_type.name for name, t in tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.1.attn_v.weight"] == "Q4_K"
    assert kinds["blk.0.attn_output.weight"] == "Q4_1"  # 128 columns
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q6_K"
    stored, values = StoredWeights(open_checkpoint(source)), _values(file)
    weight = stored.load_quantized("model.layers.0.mlp.down_proj")[0]
    codes = unpack_q4_k(torch.from_numpy(tensors["blk.0.ffn_down.weight"].data.copy()))[0]
    assert torch.equal(codes - 8, weight.codes)
    dense = open_checkpoint(source).load("lm_head.weight").float()
    error = torch.from_numpy(values["output.weight"]) - dense
    assert float(error.norm() / dense.norm()) < 0.03
    assert gguf.GGUFReader(file).fields["general.file_type"].parts[-1][0] == 14


def test_an_eight_bit_embedding_becomes_q6_k_too(tmp_path: Path) -> None:
    source, file = _k_quants(tmp_path, "gemma3_text")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == "Q6_K"
    whole = StoredWeights(open_checkpoint(source)).load_quantized("model.embed_tokens")[0]
    error = torch.from_numpy(_values(file)["token_embd.weight"]) - whole.dequantize()
    assert float(error.norm() / whole.dequantize().norm()) < 0.03


@needs_llama
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_llama_cpp_reads_k_quants_as_written(tmp_path: Path, model_type: str) -> None:
    source, file = _k_quants(tmp_path, model_type)
    values = _values(file)
    names = {"mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}
    ids = [2, *range(260, 300)]
    with _open(file) as model:
        theirs = torch.from_numpy(model.evaluate(ids, every=True).copy())
    reference = load(source, packed=False)
    with torch.no_grad():  # what was moved by the fit and the head's rounding, put in place
        for index in range(2):
            for ours, name in names.items():
                weight = reference.get_submodule(f"model.layers.{index}.{ours}").weight
                weight.copy_(torch.from_numpy(values[f"blk.{index}.{name}.weight"]))
        reference.model.embed_tokens.weight.copy_(torch.from_numpy(values["token_embd.weight"]))
        if "output.weight" in values:
            reference.lm_head.weight.copy_(torch.from_numpy(values["output.weight"]))
        ours_logits = reference(torch.tensor([ids])).logits[0]
    assert float((theirs - ours_logits).norm() / ours_logits.norm()) < ROUNDED_K


@needs_llama
def test_llama_cpp_chooses_the_tokens_that_soroq_chooses(tmp_path: Path) -> None:
    source = _quantized(tmp_path, "gemma3_text", "q8_0")
    write_gguf(source, tmp_path / "m.gguf")
    ours = [2, 260, 261, 262]
    model = load(source, packed=False)
    for _ in range(24):
        ours.append(int(model(torch.tensor([ours])).logits[0, -1].argmax()))
    theirs = ours[:4]
    with _open(tmp_path / "m.gguf") as runtime:
        logits = runtime.evaluate(theirs)
        for _ in range(24):
            theirs.append(int(logits[0].argmax()))
            logits = runtime.evaluate(theirs[-1:])
    assert theirs == ours


@needs_llama
@pytest.mark.parametrize("text", ["ab abc abde", "  de de", "gab\nabcde é", "a<eos>b"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(tmp_path: Path, text: str) -> None:
    source = _quantized(tmp_path, "gemma3_text", num_hidden_layers=1)
    write_gguf(source, tmp_path / "m.gguf")
    want = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids
    with _open(tmp_path / "m.gguf") as model:
        assert model.tokenize(text) == want


@pytest.mark.parametrize(
    ("scheme", "group", "why"),
    [("fp8-rtn", "", "not float8"), ("int4-rtn", 16, "not a multiple of GGUF's 32")],
    ids=["fp8", "G16"],
)
def test_what_gguf_cant_hold_is_refused(tmp_path: Path, scheme: str, group: Any, why: str) -> None:
    base = write_tiny_model(tmp_path / "base", "llama", num_hidden_layers=1)
    made = get_scheme(scheme, group_size=group)
    quantize(base, tmp_path / "out", recipe=Recipe(made), calibration=None)
    with pytest.raises(FormatError, match=why):
        write_gguf(tmp_path / "out", tmp_path / "m.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


def test_another_pattern_of_windows_and_full_places_are_refused(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", "gemma3_text")
    with pytest.raises(CheckpointError, match="layer_types is not what llama"):
        write_gguf(base, tmp_path / "m.gguf")
    (tmp_path / "m.gguf").touch()
    with pytest.raises(OutputError, match="exists"):
        write_gguf(base, tmp_path / "m.gguf")
    with pytest.raises(OutputError, match="ends in .gguf"):
        write_gguf(base, tmp_path / "m")


LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
IDS = torch.randint(4, 260, (2, 48), generator=torch.Generator().manual_seed(1))
# float16 keys and values, bfloat16 weights times inputs rounded to bfloat16 in llama.cpp
MEAN_SQUARE = 0.02


def _float_file(tmp_path: Path) -> Path:
    """Return a checkpoint, not quantized, of one block; beside it lies its .gguf."""
    original = write_tiny_model(tmp_path / "original", "qwen3", num_hidden_layers=1, vocab_size=274)
    _tokenizer(original)
    write_gguf(original, original.with_suffix(".gguf"))
    return original


@needs_llama
def test_the_importance_matrix_is_the_mean_square_of_each_input(tmp_path: Path) -> None:
    assert FOLDER is not None
    original = _float_file(tmp_path)
    matrix = measure(Llama("llama.cpp", FOLDER, 1), original.with_suffix(".gguf"), IDS)
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    assert len(matrix) == 7 * model.config.num_hidden_layers
    seen: dict[str, torch.Tensor] = {}
    for theirs, ours in LINEARS.items():

        def keep(_module: Any, inputs: Any, name: str = f"blk.0.{theirs}.weight") -> None:
            seen[name] = inputs[0].flatten(0, -2).square().mean(0)

        model.get_submodule(f"model.layers.0.{ours}").register_forward_pre_hook(keep)
    with torch.no_grad():
        model(IDS)
    for name, wanted in seen.items():
        error = (matrix[name] - wanted).abs().max() / wanted.abs().max()
        assert float(error) < MEAN_SQUARE, name


@needs_llama
def test_the_quantizer_takes_the_matrix(tmp_path: Path) -> None:
    assert FOLDER is not None
    original = _float_file(tmp_path)
    library, base = Llama("llama.cpp", FOLDER, 1), original.with_suffix(".gguf")
    matrix = measure(library, base, IDS)
    name = "model.layers.0.mlp.down_proj.weight"
    wanted = open_checkpoint(original).load(name).double()
    errors = []
    for given in (None, matrix):
        out = tmp_path / f"{given is None}.gguf"
        library.quantize(base, out, FTYPES["Q4_0"], None, matrix=given)
        error = (open_checkpoint(out).load(name).double() - wanted) ** 2
        errors.append(float((error * matrix["blk.0.ffn_down.weight"]).sum()))
    assert errors[1] < errors[0]
