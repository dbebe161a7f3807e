"""A disk that is full: one line, exit code 2, and nothing half-written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., tuple[Path, Path]]

# No file may grow beyond so many bytes: the write behind it fails as on a full disk.
RUN = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["soroq", *sys.argv[2:]]
from soroq.cli import main
main()
"""


@pytest.mark.parametrize("fits", [100, 5000, 50_000])
def test_an_export_that_does_not_fit_leaves_nothing(
    fits: int, exported: Make, tmp_path: Path
) -> None:
    source, whole = exported()
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    assert fits < largest
    out = tmp_path / "full"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(fits), "export", str(source), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("soroq: ") and "File too large" in last
    assert "Traceback" not in done.stderr
    assert not out.exists() and not list(tmp_path.glob("full*"))
