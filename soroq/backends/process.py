"""Start a tool in the Python that has it, hand its output through, and say how it ended."""

import codecs
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from soroq.backends.tools import Tool
from soroq.core.errors import BackendError

PYTHON = "SOROQ_BACKEND_PYTHON"
TAIL = 4096  # bytes of a failed run's output in which its reason is looked for
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Exit)\b")
GRACE_S = 10.0  # between asking a tool to stop and killing it


def find_python(tool: Tool, given: Path | None) -> str:
    """Return the Python that runs a tool: `given`, else ours.

    Raises BackendError when it isn't there or doesn't have the tool; that says what pip needs.
    """
    python = str(given or sys.executable)
    if os.sep in python:  # it will be started in another folder; a link must stay a link
        python = os.path.abspath(python)
    look = f"import sys, importlib.util as u; sys.exit(u.find_spec({tool.module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, check=False)
    except OSError as error:
        raise BackendError(
            f"can't run {python}: {error.strerror}; --backend-python (or ${PYTHON}) names the "
            f"Python of an environment with {tool.name}"
        ) from error
    if found.returncode:
        raise BackendError(
            f"{python} has no {tool.name}; in an environment of its own: "
            f"pip install {' '.join(tool.requirements)}, and name its Python by --backend-python "
            f"or ${PYTHON}"
        )
    return python


def run_tool(command: list[str], name: str, folder: Path, threads: int) -> None:
    """Run `command` in `folder`, its output on our stderr and in `peer.log`, until it ends.

    Raises BackendError when it fails, with its last exception, or else the last line it said.
    Whatever stops us (an interrupt) stops it, with everything it started.
    """
    log = folder / "peer.log"
    tail = b""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its workers can be stopped with it
        )
        assert process.stdout is not None
        try:
            while piece := os.read(process.stdout.fileno(), 65536):
                file.write(piece)
                tail = (tail + piece)[-TAIL:]
                sys.stderr.write(decode(piece))
                sys.stderr.flush()
            code = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:
                stop(process)
    if code:
        raise BackendError(_how_it_ended(name, code, tail, log))


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process and all it started to stop, and kill what doesn't within GRACE_S."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _how_it_ended(name: str, code: int, tail: bytes, log: Path) -> str:
    lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "nothing")
    said = next((line for line in reversed(lines) if _EXCEPTION.match(line)), last)
    ended = f"exit code {code}"
    if code < 0:
        ended = f"killed by signal {-code}" + (", out of memory?" if code == -9 else "")
    return f"{name} failed ({ended}); it said: {said}; its whole output is in {log}"
