"""convert: the same weights in another format."""

import sys
import time
from pathlib import Path

from soroq.export.gguf import write_gguf
from soroq.io.formats.refusal import FormatError
from soroq.pipeline.convert import convert


def run_convert(source: str, out: Path, format_name: str, k_quants: bool = False) -> None:
    """Convert, showing which module is looked at and the time left."""
    if k_quants and format_name != "gguf":
        raise FormatError(f"{format_name} has no K-quants; drop --k-quants, or --format gguf")
    started = time.monotonic()

    def show(done: int, total: int, module: str) -> None:
        left = (time.monotonic() - started) * (total - done) / done if done else 0.0
        print(f"{done}/{total} {module}, about {left:.0f} s left", file=sys.stderr, flush=True)

    if format_name == "gguf":
        write_gguf(source, out, k_quants=k_quants, listen=show)
    else:
        convert(source, out, format_name, listen=show)
    print(f"wrote {out} as {format_name}", file=sys.stderr)
