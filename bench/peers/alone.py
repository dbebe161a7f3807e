"""One contender alone in a fresh process: time to load, time to the first token, peak memory.

    facts = measure_alone(contender, threads=1, prompt=ids)      # starts the process and waits
    python -m soroq.bench.peers.alone < request.json             # that process

The request is one JSON document on stdin, the answer one on stdout; what libraries print goes to
stderr. Loading begins when the program's modules are imported and ends when the model takes tokens;
the first token comes behind a prompt, with all that a runtime puts off until then. Files are in the
page cache. The peak is VmHWM of /proc/self/status: pages of mapped files count as long as they are
in memory, and so do the interpreter and the imported modules, whose share stands beside it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soroq.bench.peers.players import Contender, import_modules, open_player

TIMEOUT_S = 600
STATUS = Path("/proc/self/status")


class AloneError(RuntimeError):
    """The process came to nothing; says why in one line."""


def measure_alone(contender: Contender, *, threads: int, prompt: Sequence[int]) -> dict[str, Any]:
    """Return what `run` measures in a process of its own. Raises AloneError."""
    request = {"contender": asdict(contender), "threads": threads, "prompt": list(prompt)}
    own = {"OMP_NUM_THREADS": str(threads), "SOROQ_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "soroq.bench.peers.alone"],
            input=json.dumps(request),
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise AloneError(f"{contender.name}: no answer within {TIMEOUT_S} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise AloneError(f"{contender.name}: exit code {done.returncode}, {last[:300]}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def run(contender: Contender, threads: int, prompt: Sequence[int]) -> dict[str, Any]:
    """Load, take the prompt and one token behind it; return seconds and bytes."""
    begin = time.perf_counter()
    import_modules(contender)
    imported = time.perf_counter()
    before = memory("VmHWM")
    player = open_player(contender, threads=threads, window=max(512, len(prompt) + 1))
    loaded = time.perf_counter()
    player.feed(prompt)
    said = time.perf_counter()
    player.feed(prompt[-1:])
    facts = {
        "import_s": imported - begin,
        "load_s": loaded - imported,
        "first_token_s": said - loaded,
        "imports_bytes": before,
        "peak_rss_bytes": memory("VmHWM"),
        "anonymous_bytes": memory("RssAnon"),
        "file_bytes": memory("RssFile"),
    }
    player.close()
    return facts


def memory(field: str) -> int:
    """Return a size of /proc/self/status in bytes, 0 where there is none."""
    if not STATUS.is_file():
        return 0
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0


def main() -> None:
    """Answer one request."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what C libraries print is no part of the answer
    request = json.load(sys.stdin)
    facts = run(Contender(**request["contender"]), request["threads"], request["prompt"])
    with os.fdopen(answer, "w") as stream:
        json.dump(facts, stream)


if __name__ == "__main__":
    main()
