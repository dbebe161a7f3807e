"""The learning rate over a run, which parameters are decayed, and what MFU counts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from soroq.train.metrics import MetricsLog, flops_per_token, read_metrics
from soroq.train.optim import make_optimizers
from soroq.train.schedule import wsd_factor


def test_warmup_stable_decay() -> None:
    factors = [wsd_factor(step, 100, 10, 30) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:70] == [1.0] * 60
    assert factors[70:] == sorted(factors[70:], reverse=True)
    assert factors[70] == pytest.approx(1 - (1 / 31) ** 0.5)
    assert 0 < factors[99] < 0.02


def test_no_warmup_and_no_decay_is_constant() -> None:
    assert {wsd_factor(step, 5, 0, 0) for step in range(5)} == {1.0}


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.proj = nn.Linear(4, 4, bias=True)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)


def test_only_linears_are_decayed_and_frozen_stays() -> None:
    net = _Net()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # decay alone moves anything
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    make_optimizers(net, "adamw", 0.1, 0.5).step(0.1)
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"proj.weight"}
    torch.testing.assert_close(net.proj.weight, before["proj.weight"] * (1 - 0.1 * 0.5))


def test_muon_orthogonalizes_matrices_and_leaves_the_rest_to_adamw() -> None:
    net = _Net()
    gradient = torch.randn(4, 4) @ torch.diag(torch.tensor([10.0, 3.0, 1.0, 0.5]))
    net.proj.weight.grad = gradient
    net.norm.weight.grad = torch.ones(4)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizers = make_optimizers(net, "muon", 0.1, 0.0)
    assert [type(part).__name__ for part in optimizers.parts] == ["Muon", "AdamW"]
    optimizers.step(0.1)
    step = before["proj.weight"] - net.proj.weight.detach()
    values = torch.linalg.svdvals(step)
    assert values.max() / values.min() < 3  # the gradient's are 20 apart and more
    torch.testing.assert_close(net.norm.weight, before["norm.weight"] - 0.1)
    assert net.proj.weight.grad is None


def test_flops_are_counted_by_hand() -> None:
    config = SimpleNamespace(num_attention_heads=4, head_dim=8, num_hidden_layers=3, hidden_size=32)
    forward = 2 * (1000 + 500) + 3 * 4 * 4 * 8 * 10
    assert flops_per_token(config, 1000, 500, 10.0, 1.0) == 3 * forward
    assert flops_per_token(config, 1000, 500, 10.0, 0.0) == 3 * forward - 2 * (1000 + 500)


def test_lines_behind_the_checkpoint_are_dropped(tmp_path: object) -> None:
    from pathlib import Path

    run = Path(str(tmp_path))
    log = MetricsLog(run, tensorboard=False)
    for step in range(1, 6):
        log.write(step, {"loss": float(step)})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    MetricsLog(run, tensorboard=False, last_step=3).write(4, {"loss": 40.0})
    assert [line["loss"] for line in read_metrics(run)] == [1.0, 2.0, 3.0, 40.0]
