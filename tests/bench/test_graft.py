"""Matrices of one file in the place of another's, everything else as it was."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from soroq.bench.peers.graft import graft


def _write(path: Path, *, quantized: bool, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_uint32("gemma3.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ҷ"])
    for name in ("blk.0.ffn_down.weight", "blk.0.attn_q.weight"):
        if quantized and "down" in name:
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_only_one_kind_is_taken_over(tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one.gguf", "two.gguf", "out.gguf"))
    _write(one, quantized=False, seed=1)
    _write(two, quantized=True, seed=2)
    assert graft(one, two, "Q4_0", out) == ["blk.0.ffn_down.weight"]
    made = gguf.GGUFReader(out)
    tensors = {t.name: t for t in made.tensors}
    taken = {t.name: t for t in gguf.GGUFReader(two).tensors}["blk.0.ffn_down.weight"]
    kept = {t.name: t for t in gguf.GGUFReader(one).tensors}["blk.0.attn_q.weight"]
    assert tensors[taken.name].tensor_type.name == "Q4_0"
    assert np.array_equal(tensors[taken.name].data, taken.data)
    assert list(tensors[taken.name].shape) == [64, 2]
    assert np.array_equal(tensors[kept.name].data, kept.data)
    assert made.fields["tokenizer.ggml.tokens"].contents() == ["a", "ҷ"]
    assert made.fields["gemma3.block_count"].contents() == 1


def test_a_file_without_it_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "one.gguf", quantized=False, seed=1)
    with pytest.raises(ValueError, match="has no Q4_K"):
        graft(tmp_path / "one.gguf", tmp_path / "one.gguf", "Q4_K", tmp_path / "out.gguf")
