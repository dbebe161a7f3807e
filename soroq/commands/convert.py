"""convert: the same weights in another format."""

import sys
import time
from pathlib import Path

from soroq.export.gguf import write_gguf
from soroq.pipeline.convert import convert


def run_convert(source: str, out: Path, format_name: str) -> None:
    """Convert, showing which module is looked at and the time left."""
    started = time.monotonic()

    def show(done: int, total: int, module: str) -> None:
        left = (time.monotonic() - started) * (total - done) / done if done else 0.0
        print(f"{done}/{total} {module}, about {left:.0f} s left", file=sys.stderr, flush=True)

    if format_name == "gguf":
        write_gguf(source, out, listen=show)
    else:
        convert(source, out, format_name, listen=show)
    print(f"wrote {out} as {format_name}", file=sys.stderr)
