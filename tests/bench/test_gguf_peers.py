"""Comparing with llama.cpp's quantizer: a fair original, the same calibration, the table.

What needs llama.cpp itself stands in tests/export/test_gguf.py.
"""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from soroq.bench.peers import gguf, llama
from soroq.bench.peers.gguf import calibration_of, table
from soroq.bench.peers.off_grid import LIMIT, factors, scaled_block, write_off_grid
from soroq.io.checkpoint import open_checkpoint
from soroq.models.tiny import write_tiny_model

LOGITS_TOLERANCE = 0.03  # of the largest: weights and norms are rounded to bfloat16 again
IDS = torch.randint(5, 256, (2, 48), generator=torch.Generator().manual_seed(1))
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_an_original_off_the_grid_says_the_same(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", dtype="bfloat16")
    write_off_grid(open_checkpoint(base), tmp_path / "off")
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(IDS).logits.detach()
        for path in (base, tmp_path / "off")
    ]
    assert float((logits[0] - logits[1]).abs().max() / logits[0].abs().max()) < LOGITS_TOLERANCE
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "off")
    for module in NAMES.values():
        name = f"model.layers.1.{module}.weight"
        ratio = after.load(name).float() / before.load(name).float()
        columns = ratio.nanmedian(0).values
        assert float(columns.max() / columns.min()) > 1.2  # neighbours have no common step
    assert torch.equal(
        after.load("model.embed_tokens.weight"), before.load("model.embed_tokens.weight")
    )


def test_factors_stay_within_their_limit() -> None:
    drawn = factors(1000, torch.Generator().manual_seed(0))
    assert 1 / LIMIT <= float(drawn.min()) < 0.85 and 1.2 < float(drawn.max()) <= LIMIT


def test_value_heads_are_divided_by_what_their_output_columns_are_multiplied_by() -> None:
    shapes = {
        "self_attn.q_proj": (16, 8),
        "self_attn.k_proj": (8, 8),
        "self_attn.v_proj": (8, 8),
        "self_attn.o_proj": (8, 16),
        "mlp.gate_proj": (12, 8),
        "mlp.up_proj": (12, 8),
        "mlp.down_proj": (8, 12),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{n}.weight": torch.randn(s, generator=generator) for n, s in shapes.items()}
    for norm in ("input_layernorm", "pre_feedforward_layernorm"):
        tensors[f"{norm}.weight"] = torch.rand(8, generator=generator)
    changed = scaled_block(tensors.__getitem__, heads_per_kv=2, head_dim=4, seed=3)
    v, o = "self_attn.v_proj.weight", "self_attn.o_proj.weight"
    for head in range(4):  # heads 0 and 1 read the first four rows of v, 2 and 3 the last four
        rows = slice(4 * (head // 2), 4 * (head // 2) + 4)
        columns = slice(4 * head, 4 * head + 4)
        # v's columns are scaled too, by what its norm is divided by
        s = (1 + tensors["input_layernorm.weight"]) / (1 + changed["input_layernorm.weight"])
        before = tensors[o][:, columns] @ tensors[v][rows]
        after = changed[o][:, columns] @ (changed[v][rows] / s)
        torch.testing.assert_close(after, before)


def test_the_calibration_is_what_quantize_looks_at(tmp_path: Path) -> None:
    from soroq.calib.sources import builtin_documents
    from soroq.commands.calibration import build_set, parse_mix

    base = write_tiny_model(tmp_path / "base")
    documents = {language: list(builtin_documents(language, "calib")) for language in ("tg", "en")}
    wanted = build_set(documents, parse_mix(""), str(base), 3, 512, 0, "builtin")
    assert calibration_of(str(base), 3).sha256 == wanted.sha256


def test_a_callback_is_put_where_two_null_pointers_stand_before_the_cache_types() -> None:
    params = llama._Opaque()
    for place, value in ((0, 512), (1, 0), (30, 0), (32, 0), (34, 1), (35, 1), (37, 7)):
        params.bytes[place] = value
    params.bytes[29] = -1

    watch = ctypes.CFUNCTYPE(ctypes.c_bool)(lambda: True)
    llama._set_callback(params, watch)
    address = ctypes.cast(watch, ctypes.c_void_p).value
    assert address is not None
    low, high = params.bytes[30] & 0xFFFFFFFF, params.bytes[31] & 0xFFFFFFFF
    assert (high << 32 | low) == address
    with pytest.raises(RuntimeError, match="no place for a callback"):
        llama._set_callback(llama._Opaque(), watch)


def test_the_table_has_a_row_a_file_and_the_paired_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def record(maker: str, kind: str, text: str, perplexity: float, **more: Any) -> dict[str, Any]:
        facts = {"model": "m", "maker": maker, "type": kind, "text": text, "file_bytes": 1234567}
        delta = {"delta_nll_from_original": 0.5, "delta_nll_from_original_stderr": 0.02}
        return {**facts, "perplexity": perplexity, **delta, **more}

    paired = {"delta_nll_from_llama": -0.25, "delta_nll_from_llama_stderr": 0.01}
    records = [
        record("original", "BF16", "tg", 50.0),
        record("soroq x", "Q4_0", "tg", 99.0, **paired),
        record("soroq x", "Q4_0", "tg", 60.0, **paired),
    ]
    monkeypatch.setattr(gguf, "read_records", lambda bench: records)
    lines = table().splitlines()
    assert len(lines) == 4
    assert lines[2] == "| m | BF16 | original | 1,234,567 | 50.00 | – | – |"
    cells = "60.00 | +0.500 ± 0.020 | -0.250 ± 0.010 |"  # the last record of a file counts
    assert lines[3] == f"| m | Q4_0 | soroq x | 1,234,567 | {cells}"
