"""libsoroq_ort: where it is, and sessions that use it. Imports neither torch nor onnxruntime.

It is built where SOROQ_ORT_INCLUDE names the folder of onnxruntime_c_api.h: see
kernels/cpu/ort/CMakeLists.txt.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from soroq.core.errors import KernelError

NAME = "libsoroq_ort"
FILE = NAME + (".dylib" if sys.platform == "darwin" else ".so")
VARIABLE = "SOROQ_ORT_LIBRARY"
OPSET = 2  # version of the operators that this soroq's library has; 2 added CausalAttention


def find_library(otherwise: str) -> Path:
    """Return the library's path: what SOROQ_ORT_LIBRARY names, else what was installed with soroq.

    otherwise: what to do without it, for the KernelError where there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if path.is_file():
            return path
        raise KernelError(f"{VARIABLE}={named!r} is no file; name {FILE}, or {otherwise}")
    built = importlib.util.find_spec("soroq._cpu")
    if built is not None and built.origin is not None:
        path = Path(built.origin).with_name(FILE)
        if path.is_file():
            return path
    raise KernelError(
        f"{NAME} is not built; install soroq with SOROQ_ORT_INCLUDE=<the folder of "
        f"onnxruntime_c_api.h>, name the file in {VARIABLE}, or {otherwise}"
    )


def requirements(folder: Path) -> dict[str, str]:
    """Return what an exported folder says that it needs; nothing if it doesn't say."""
    try:
        manifest = json.loads((folder / "soroq.json").read_text(encoding="utf-8"))
        return {name: str(version) for name, version in manifest["requires"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def add_operators(options: Any, folder: Path, threads: int | None) -> None:
    """Do as `use_library` for a folder that needs the library; nothing for others."""
    needed = requirements(folder).get(NAME)
    if needed is not None:
        use_library(options, needed, threads)


def use_library(options: Any, needed: str, threads: int | None) -> None:
    """Let a session with these options run soroq's operators.

    needed: the version of the operators that a graph has, any up to the library's. ONNX
    Runtime's own threads sleep when they wait, else they would take the processors from soroq's.
    threads holds for the whole process. Raises KernelError.
    """
    fallback = "use a folder of `soroq export --target onnx-cpu`"
    if needed not in map(str, range(1, OPSET + 1)):
        raise KernelError(
            f"the folder needs {NAME} {needed}, this soroq's is {OPSET}; "
            f"export it anew, or {fallback}"
        )
    path = find_library(fallback)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.add_session_config_entry("soroq.num_threads", str(threads))
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's have no base of their own
        reason = " ".join(str(error).split())
        raise KernelError(
            f"{path} can't be loaded: {reason}; build it anew, or {fallback}"
        ) from error
