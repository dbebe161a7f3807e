"""Settings for all tests: one torch thread, fixed seeds, no deadlines, gpu tests skipped."""

import pytest
import torch
from hypothesis import settings

# Timing of single examples on a busy machine says nothing.
settings.register_profile("soroq", deadline=None)
settings.load_profile("soroq")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers in every run: a failure can be repeated."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU that torch sees")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
