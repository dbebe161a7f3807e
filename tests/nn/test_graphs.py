"""Decoding in place, token by token what transformers' own generation says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.nn.graphs import GraphDecoder

PROMPT = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"])
def test_the_same_tokens_as_generate(model_type: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base", model_type)
    model = load(tmp_path / "base")
    decoder = GraphDecoder(model, max_length=48, batch=2)
    for prompt in (PROMPT, PROMPT[:, :4].flip(0)):  # the second on the first's cache
        want = model.generate(
            prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        got = decoder.generate(prompt, max_new_tokens=30)  # beyond Gemma's window of 16
        torch.testing.assert_close(got, want[:, prompt.shape[1] :])


# What waits for the device, or copies from the host's ordinary memory: neither can be captured.
UNCAPTURABLE = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh")


class _Recorder(TorchDispatchMode):
    """Keeps the name of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"])
def test_a_step_asks_nothing_of_the_host(model_type: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base", model_type)
    decoder = GraphDecoder(load(tmp_path / "base"), max_length=48, batch=2)
    assert len(decoder._columns) == 64  # a multiple of 16: torch's attention copies no mask
    decoder.start(PROMPT)
    with _Recorder() as recorder:
        decoder.step()
    assert "index_copy_" in recorder.names and "argmax" in recorder.names
    assert not set(recorder.names) & set(UNCAPTURABLE)
    with _Recorder() as recorder:  # the recorder does see what it looks for
        int(decoder.position)
        torch.tensor(1.0)
    assert {"_local_scalar_dense", "lift_fresh"} <= set(recorder.names)


def test_it_stops_where_a_sequence_ends(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base")
    decoder = GraphDecoder(load(tmp_path / "base"), max_length=64, batch=2)
    whole = decoder.generate(PROMPT, max_new_tokens=40)
    end = int(whole[0, 5])
    first = [row.tolist().index(end) if end in row.tolist() else 40 for row in whole]
    got = decoder.generate(PROMPT, max_new_tokens=40, ends={end})
    assert got.shape[1] == min(40, max(first) + 1)
    for row, kept, at in zip(whole, got, first, strict=True):
        assert kept[: at + 1].tolist() == row[: at + 1][: got.shape[1]].tolist()
        assert set(kept[at:].tolist()) <= {end}


def test_sampling_is_seeded_and_not_greedy(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base")
    model = load(tmp_path / "base")
    decoder = GraphDecoder(model, max_length=64, batch=2, temperature=1.5)
    torch.manual_seed(1)
    one = decoder.generate(PROMPT, max_new_tokens=20)
    torch.manual_seed(1)
    assert torch.equal(one, decoder.generate(PROMPT, max_new_tokens=20))
    greedy = GraphDecoder(model, max_length=64, batch=2).generate(PROMPT, max_new_tokens=20)
    assert not torch.equal(one, greedy)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "base")
    decoder = GraphDecoder(load(tmp_path / "base"), max_length=16, batch=2)
    with pytest.raises(ValueError, match="2 × 9 tokens and 8 new ones don't fit 2 × 16"):
        decoder.generate(PROMPT, max_new_tokens=8)
    with pytest.raises(ValueError, match="1 × 9 tokens"):
        decoder.generate(PROMPT[:1], max_new_tokens=2)
