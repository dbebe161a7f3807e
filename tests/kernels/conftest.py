"""Uninitialised memory is NaN here, so that an element a kernel forgets to write shows."""

from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def nan_filled_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = real(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(-99)

    monkeypatch.setattr(torch, "empty", empty)
