"""Settings for all tests: one torch thread a worker, no hypothesis deadlines, gpu tests skipped."""

import os

import pytest
import torch
from hypothesis import settings

# Timing of single examples on a busy machine says nothing.
settings.register_profile("soroq", deadline=None)
settings.load_profile("soroq")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU that torch sees")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
