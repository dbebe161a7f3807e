"""OnnxDecoder: an exported folder under ONNX Runtime, without torch or transformers.

    decoder = OnnxDecoder(Path("out-onnx"))
    logits = decoder.step([2, 1045, 77])          # float32 (V,): what comes behind the last token
    for token in decoder.generate(ids, max_new_tokens=64): ...

One sequence. Keys and values lie in buffers that a step reads and writes in place (the same memory
as input and output), so that a step copies none of them.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soroq.core.errors import CheckpointError, KernelError
from soroq.export.ort_library import add_operators, requirements

EVERY, LAST = "model.onnx", "model_last.onnx"
FOLDER = "onnx"
CAPACITY = 512  # tokens that buffers hold at first; they grow twofold
TOP_K = 64  # candidates of a sampled token
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Array = np.ndarray[Any, Any]


def open_session(folder: Path, graph: str = LAST, threads: int | None = None) -> Any:
    """Return ONNX Runtime's session of one of a folder's graphs.

    Raises CheckpointError for a folder that isn't an export, KernelError where ONNX Runtime is
    missing, too old for it, or can't open it.
    """
    path = folder / FOLDER / graph
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {FOLDER}/{graph}; give a folder that soroq export wrote"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        raise KernelError("onnxruntime is not installed; pip install onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and needs no log beside it
    if threads is not None:
        options.intra_op_num_threads = threads
    requires = requirements(folder)
    add_operators(options, folder, threads)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no base of their own
        needed = requires.get("onnxruntime", "0")
        here = str(onnxruntime.__version__)
        if _numbers(here) < _numbers(needed):
            raise KernelError(
                f"{folder} needs onnxruntime {needed} or newer, {here} is installed; "
                f"pip install 'onnxruntime>={needed}'"
            ) from error
        reason = " ".join(str(error).split())
        raise KernelError(f"{path}: onnxruntime {here} can't open it: {reason}") from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class OnnxDecoder:
    """One sequence of tokens and the model that goes on with it.

    graph: LAST gives the last token's logits, EVERY those of all tokens of a step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        graph: str = LAST,
        threads: int | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._session = open_session(folder, graph, threads)
        self._past = {
            node.name: node for node in self._session.get_inputs() if node.name.startswith("past")
        }
        self._capacity = capacity
        self._caches: dict[str, Any] = {}
        self._binding = self._session.io_binding()
        self.length = 0
        self._allocate()

    def rewind(self, n: int = 0) -> None:
        """Forget all tokens behind the first n."""
        if not 0 <= n <= self.length:
            raise ValueError(f"{n} tokens can't be kept of {self.length}")
        self.length = n

    def step(self, ids: Sequence[int]) -> Array:
        """Append tokens; return float32 logits (V,) of the last, or (n, V) of all with EVERY."""
        total = self.length + len(ids)
        if total > self._capacity:
            while self._capacity < total:
                self._capacity *= 2
            self._allocate()
        binding = self._binding
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        self.length = total
        logits: Array = binding.get_outputs()[-1].numpy()[0]
        return logits[0] if len(logits) == 1 else logits

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
    ) -> Iterator[int]:
        """Append ids, then yield tokens one by one until one of `stop`, which isn't yielded.

        temperature 0: the likeliest; otherwise drawn from the TOP_K likeliest.
        """
        random = np.random.default_rng(seed)
        step = list(ids)
        for _ in range(max_new_tokens):
            logits = self.step(step)
            token = choose(logits, temperature, random)
            if token in stop:
                return
            yield token
            step = [token]

    def _allocate(self) -> None:
        """Make buffers of the capacity, with what the old ones hold, and bind them."""
        for name, node in self._past.items():
            _, heads, _, size = node.shape
            buffer = np.zeros((1, heads, self._capacity, size), _NUMPY[node.type])
            if name in self._caches:
                buffer[:, :, : self.length] = self._caches[name].numpy()[:, :, : self.length]
            self._caches[name] = self._ort.OrtValue.ortvalue_from_numpy(buffer)
        self._binding = self._session.io_binding()
        for name, value in self._caches.items():
            self._binding.bind_ortvalue_input(name, value)
            present = name.replace("past_key_values", "present")
            self._binding.bind_ortvalue_output(present, value)


def choose(logits: Array, temperature: float, random: np.random.Generator) -> int:
    """Return the likeliest token, or one drawn from the TOP_K likeliest at a temperature."""
    if temperature == 0:
        return int(logits.argmax())
    best = np.argpartition(logits, -min(TOP_K, len(logits)))[-TOP_K:]
    weights = np.exp((logits[best] - logits[best].max()) / temperature)
    return int(random.choice(best, p=weights / weights.sum()))
