"""A tiny checkpoint of any kind, and its export."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from soroq.core.recipe import Recipe  # noqa: E402
from soroq.core.scheme import QuantArgs  # noqa: E402
from soroq.core.schemes import get_scheme  # noqa: E402
from soroq.export import TARGETS  # noqa: E402
from soroq.export.target import ExportRequest  # noqa: E402
from soroq.models.tiny import write_tiny_model  # noqa: E402
from soroq.pipeline.run import quantize  # noqa: E402

Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def exported(tmp_path: Path) -> Make:
    """Return make(model_type, scheme, …) → (checkpoint, exported folder); scheme '': bfloat16."""

    def make(
        model_type: str = "gemma3_text",
        scheme: str = "int4-rtn",
        *,
        embed: QuantArgs | None = None,
        group_size: int | None | str = 32,
        compute: str = "float32",
        precision: str = "exact",
        symmetric: bool | None = None,
        target: str = "onnx-cpu",
        **changes: Any,
    ) -> tuple[Path, Path]:
        source = write_tiny_model(tmp_path / "base", model_type, **changes)
        if scheme:
            if scheme.startswith("fp8"):
                group_size = ""
            numbers = get_scheme(scheme, group_size=group_size, symmetric=symmetric)
            recipe = Recipe(numbers, embed=embed)
            quantize(source, tmp_path / "out", recipe=recipe, calibration=None)
            source = tmp_path / "out"
        request = ExportRequest(str(source), tmp_path / "onnx", compute, precision)
        module = importlib.import_module(TARGETS[target].partition(":")[0])
        module.export(request, lambda line: None)
        return source, tmp_path / "onnx"

    return make
