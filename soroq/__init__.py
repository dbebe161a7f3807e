"""soroq quantizes Gemma 3 and its like for Tajik, and runs the result.

    import soroq
    model = soroq.load("out")        # weights stay packed

`import soroq` loads neither torch nor transformers: the names below are looked up on first use.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soroq.io.checkpoint import open_checkpoint
    from soroq.loading import load
    from soroq.pipeline.run import quantize

__version__ = "0.1.0"

__all__ = ["__version__", "load", "open_checkpoint", "quantize"]

_LAZY = {
    "load": "soroq.loading",
    "open_checkpoint": "soroq.io.checkpoint",
    "quantize": "soroq.pipeline.run",
}

# In a checkout kernels/, calib/, bench/ and train/ lie beside this package, in a wheel inside it.
# They can't be packages of their own: transformers imports another package called `kernels`.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "CMakeLists.txt").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'soroq' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
