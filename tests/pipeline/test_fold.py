"""Folding alone, as it is stored on disk, changes nothing but bfloat16 noise."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from soroq.core.schemes import get_scheme
from soroq.models.registry import find_layout
from soroq.models.runner import DecoderRunner
from soroq.models.tiny import tiny_config, write_tiny_model
from soroq.pipeline import fold
from soroq.pipeline.fold import fold_block_, relative_error, share_between_heads

FOLD_NOISE = 1e-9  # relative squared error; one bfloat16 rounding of the output would be 1e-5


def _block(tmp_path: Path, model_type: str) -> tuple[DecoderRunner, nn.Module]:
    write_tiny_model(tmp_path, model_type)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        layout = find_layout(tiny_config(model_type), set(file.keys()))
        prefix = layout.block(1) + "."
        tensors = {
            n[len(prefix) :]: file.get_tensor(n) for n in file.keys() if n.startswith(prefix)
        }
    runner = DecoderRunner(layout)
    return runner, runner.build_block(1, tensors)


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen2", "qwen3"])
def test_folding_alone_keeps_the_block_function(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, block = _block(tmp_path, model_type)
    x = torch.randn(2, 24, 64)
    with torch.no_grad():
        before = runner.run_block(block, 1, x)
    norms = {n: p.clone() for n, p in block.named_parameters() if "layernorm" in n}
    # every edge folds with α = 0.6, whatever it gains
    monkeypatch.setattr(fold, "ALPHAS", (0.6,))
    architecture = runner.layout.architecture
    schemes = {p: get_scheme("int4-awq", group_size=32) for p in architecture.linears}
    fold_block_(
        block, lambda b: runner.run_block(b, 1, x), architecture, schemes, torch.bfloat16, 32
    )
    changed = [
        n for n, p in block.named_parameters() if n in norms and not torch.equal(p, norms[n])
    ]
    assert len(changed) == 2
    for name, parameter in block.named_parameters():
        if name in norms:
            assert torch.equal(parameter, parameter.to(torch.bfloat16).float()), name
    with torch.no_grad():
        after = runner.run_block(block, 1, x)
    assert relative_error(after, before) < FOLD_NOISE


def test_search_keeps_only_folds_that_help(tmp_path: Path) -> None:
    runner, block = _block(tmp_path, "gemma3_text")
    x = torch.randn(2, 24, 64) * torch.logspace(-1, 1, 64)
    architecture = runner.layout.architecture
    schemes = {p: get_scheme("int4-awq", group_size=32) for p in architecture.linears}
    reports = fold_block_(
        block, lambda b: runner.run_block(b, 1, x), architecture, schemes, torch.bfloat16, 32
    )
    assert len(reports) == 4
    assert all(r.error_after <= r.error_before for r in reports)
    assert any(r.alpha > 0 for r in reports)


def test_grouped_heads_share_one_scale_per_value_row() -> None:
    scales = torch.rand(4 * 8) + 0.5  # 4 query heads of 8, 2 key/value heads
    per_row, per_column = share_between_heads(scales, 16, 8)
    heads = per_column.view(2, 2, 8)
    assert torch.equal(heads[:, 0], heads[:, 1])
    for kv in range(2):
        pair = scales.view(2, 2, 8)[kv].double()
        want = (pair[0] * pair[1]).sqrt()
        torch.testing.assert_close(per_row.view(2, 8)[kv].double(), want)
