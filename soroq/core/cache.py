"""Where soroq keeps what can be made again: $SOROQ_CACHE, or ~/.cache/soroq."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder; it may not exist yet."""
    return Path(os.environ.get("SOROQ_CACHE") or Path.home() / ".cache" / "soroq")
