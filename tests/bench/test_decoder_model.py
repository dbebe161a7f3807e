"""Checks of a checkpoint as it runs on the C++ kernels."""

from pathlib import Path

import pytest
import torch

from soroq.bench.quality.decoder_model import DecoderSource, split_runtime
from soroq.bench.quality.model import find_source, open_model
from soroq.core.errors import CheckError
from soroq.kernels import panels
from soroq.models.tiny import write_tiny_model

pytestmark = pytest.mark.skipif(not panels.is_built(), reason="soroq._cpu is not built")


def test_names_of_runtimes_are_told_from_paths(tmp_path: Path) -> None:
    assert split_runtime("cpu:out") == ("cpu", "out")
    assert split_runtime("cpu-int8:a:b") == ("cpu-int8", "a:b")
    assert split_runtime("gemma3-270m") == ("", "gemma3-270m")
    assert split_runtime("gpu:out") == ("", "gpu:out")
    base = write_tiny_model(tmp_path / "base")
    assert isinstance(find_source(f"cpu:{base}"), DecoderSource)
    assert not isinstance(find_source(str(base)), DecoderSource)


def test_windows_continuations_and_text_equal_the_torch_model(tmp_path: Path) -> None:
    base = str(write_tiny_model(tmp_path / "base"))
    ids = torch.randint(4, 260, (2, 150), generator=torch.Generator().manual_seed(1))
    torch_model, decoder = open_model(base), open_model(f"cpu-exact:{base}")
    want = torch.cat([log_p for _, log_p in torch_model.score_windows(ids)])
    spans, rows = zip(*decoder.score_windows(ids), strict=True)
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(2 * 149))
    got = torch.cat(rows)
    kl = (want.exp() * (want - got)).sum(1)
    assert float(kl.mean()) < 2e-4  # keys and values in bfloat16
    context, choices = ids[0, :20].tolist(), [[5], [6, 7, 8], [9, 10]]
    for a, b in zip(
        torch_model.score_continuations(context, choices),
        decoder.score_continuations(context, choices),
        strict=True,
    ):
        assert abs(a - b) < 0.05
    assert decoder.generate(context, 1) == [int(want[19].argmax())]


def test_keys_tell_precisions_apart_and_choices_are_refused(tmp_path: Path) -> None:
    base = str(write_tiny_model(tmp_path / "base"))
    keys = {
        find_source(f"{runtime}:{base}").key(torch.float32, "sdpa")
        for runtime in ("cpu-exact", "cpu-int8", "cpu-int16")
    }
    assert len(keys) == 3
    same = find_source(f"cpu:{base}").key(torch.float32, "sdpa")
    assert same in keys  # the default is one of them
    with pytest.raises(CheckError, match="fix their own types and attention"):
        find_source(f"cpu:{base}").key(torch.bfloat16, "sdpa")


def test_a_long_window_gets_a_longer_context(tmp_path: Path) -> None:
    base = str(write_tiny_model(tmp_path / "base"))
    model = open_model(f"cpu:{base}")
    ids = torch.randint(4, 260, (1, 2200), generator=torch.Generator().manual_seed(1))
    rows = sum(len(log_p) for _, log_p in model.score_windows(ids))
    assert rows == 2199
