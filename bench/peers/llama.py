"""libllama through ctypes: what running and quantizing a model takes, whatever its version.

    llama = Llama("llama.cpp", folder, threads=2)
    llama.quantize(Path("float32.gguf"), Path("q4_0.gguf"), FTYPES["Q4_0"], embedding=TYPES["Q8_0"])
    with llama.open(Path("q4_0.gguf"), window=512) as model:
        logits = model.evaluate(ids, every=False)

Parameters are passed by value in structures that change with every release. So the library's own
defaults are taken as bytes, longer than any release's, and only their first fields are set; what
came of it is asked back. Thread counts and pools are set by functions.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soroq.bench.kernels.ggml import Ggml

if TYPE_CHECKING:  # a process that races llama.cpp alone has no torch in it
    import torch

# enum llama_ftype; R8: ik_llama.cpp
FTYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q4_0_R8": 202}
Array = np.ndarray[Any, Any]
_IMPORTANCE_OFFSET = 24  # llama.h, llama_model_quantize_params.imatrix, behind 4 ints and 6 bools
_ROOM = 512  # bytes; the longest structure, llama_context_params, has about 200


class _Opaque(ctypes.Structure):
    _fields_ = [("bytes", c_int32 * (_ROOM // 4))]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
        ("more", c_int32 * 16),
    ]


class _Importance(ctypes.Structure):
    """llama.h, struct llama_model_imatrix_data: since 2026 the quantizer takes a list of these."""

    _fields_ = [("name", c_char_p), ("data", c_void_p), ("size", c_size_t)]


class Llama:
    """A libllama and its libggml, of one directory. Raises OSError when it has none."""

    def __init__(self, flavour: str, folder: Path, threads: int) -> None:
        self.ggml = Ggml(flavour, folder, threads)
        found = sorted(folder.glob("libllama.*so*"))
        if not found:
            raise OSError(f"{folder} has no libllama.so")
        self.library = ctypes.CDLL(str(found[0]))
        self.flavour, self.threads = flavour, threads
        self._log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)
        self.call("llama_log_set", None, (type(self._log), self._log), (c_void_p, None))
        self.call("llama_backend_init", None)

    def call(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """Call a C function; arguments are (type, value)."""
        function = getattr(self.library, name)
        function.restype, function.argtypes = result, [kind for kind, _ in arguments]
        return function(*(value for _, value in arguments))

    def quantize(
        self,
        source: Path,
        out: Path,
        ftype: int,
        embedding: int | None,
        *,
        matrix: Mapping[str, "torch.Tensor"] | None = None,
    ) -> None:
        """Quantize a float GGUF; `embedding`: the ggml type of the tied embedding and head.

        None: what llama.cpp itself would take. matrix: the importance of each input column,
        float32 (K,) by tensor name (`soroq.bench.peers.imatrix`).
        """
        params = self.call("llama_model_quantize_default_params", _Opaque)
        params.bytes[0] = self.threads
        params.bytes[1] = ftype
        if embedding is not None:
            params.bytes[2] = params.bytes[3] = embedding  # output tensor, token embedding
        rows = (_Importance * (len(matrix or {}) + 1))()  # the last one, empty, ends the list
        held = [(name.encode(), values.contiguous()) for name, values in (matrix or {}).items()]
        for row, (name, values) in zip(rows, held, strict=False):
            row.name, row.data, row.size = name, values.data_ptr(), values.numel()
        if held:
            place = ctypes.addressof(params) + _IMPORTANCE_OFFSET
            c_void_p.from_address(place).value = ctypes.addressof(rows)
        paths = ((c_char_p, str(source).encode()), (c_char_p, str(out).encode()))
        status = self.call(
            "llama_model_quantize", c_uint32, *paths, (c_void_p, ctypes.addressof(params))
        )
        if status != 0:
            raise RuntimeError(f"{self.flavour} could not quantize {source}: {status}")

    def open(self, path: Path, window: int, *, watch: Any = None) -> "LlamaModel":
        """Load a model, with room for `window` tokens; watch: a callback of the scheduler's.

        Raises RuntimeError.
        """
        return LlamaModel(self, path, window, watch)


class LlamaModel:
    """A model and its context; `with` gives the memory back."""

    def __init__(self, llama: Llama, path: Path, window: int, watch: Any = None) -> None:
        self._llama = llama
        name = ((c_char_p, str(path).encode()), (_Opaque, self._defaults("model")))
        self._model = llama.call("llama_model_load_from_file", c_void_p, *name)
        if not self._model:
            raise RuntimeError(f"{llama.flavour} could not load {path}")
        params = self._defaults("context")
        first = 0 if llama.flavour == "llama.cpp" else 1  # ik_llama.cpp's begin with a seed
        for place in range(3):  # n_ctx, n_batch, n_ubatch
            params.bytes[first + place] = window
        if watch is not None:
            _set_callback(params, watch)
        given = ((c_void_p, self._model), (_Opaque, params))
        self._context = llama.call("llama_init_from_model", c_void_p, *given)
        for size in ("n_ctx", "n_batch", "n_ubatch"):
            found = int(self._ask(f"llama_{size}", c_uint32))
            if found < window:
                raise RuntimeError(f"{llama.flavour}: {size} is {found}, {window} were asked for")
        threads = (c_int32, llama.threads)
        self._ask("llama_set_n_threads", None, threads, threads)
        if llama.ggml.pool is not None:
            pool = (c_void_p, llama.ggml.pool)
            self._ask("llama_attach_threadpool", None, pool, pool)
        self.n_tokens = 0
        self.n_vocab = self._vocabulary()

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self._ask("llama_free", None)
        free = "llama_model_free" if hasattr(self._llama.library, "llama_model_free") else ""
        self._llama.call(free or "llama_free_model", None, (c_void_p, self._model))

    def clear(self) -> None:
        """Forget all tokens."""
        self.n_tokens = 0
        if hasattr(self._llama.library, "llama_get_memory"):
            memory = self._ask("llama_get_memory", c_void_p)
            self._llama.call("llama_memory_clear", None, (c_void_p, memory), (c_bool, True))
        else:
            self._ask("llama_kv_cache_clear", None)

    def evaluate(self, ids: Sequence[int], *, every: bool = False) -> Array:
        """Go on with `ids`; return logits float32 (n, vocabulary) of the last or `every` token.

        The result is the library's own memory, valid until the next call.
        """
        n = len(ids)
        places = range(self.n_tokens, self.n_tokens + n)
        sequence = (c_int32 * 1)(0)
        batch = _Batch(
            n_tokens=n,
            token=(c_int32 * n)(*ids),
            pos=(c_int32 * n)(*places),
            n_seq_id=(c_int32 * n)(*[1] * n),
            seq_id=(POINTER(c_int32) * n)(*[ctypes.cast(sequence, POINTER(c_int32))] * n),
            logits=(c_int8 * n)(*[int(every or i == n - 1) for i in range(n)]),
        )
        status = self._ask("llama_decode", c_int32, (_Batch, batch))
        if status != 0:
            raise RuntimeError(f"{self._llama.flavour}: llama_decode returned {status}")
        self.n_tokens += n
        first = self._ask(
            "llama_get_logits_ith", POINTER(c_float), (c_int32, 0 if every else n - 1)
        )
        rows = n if every else 1
        address = ctypes.cast(first, POINTER(c_float * (rows * self.n_vocab)))
        found: Array = np.ctypeslib.as_array(address.contents)
        return found.reshape(rows, self.n_vocab)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, with the model's BOS and special tokens read as such."""
        vocabulary = self._llama.call("llama_model_get_vocab", c_void_p, (c_void_p, self._model))
        raw = text.encode()
        ids = (c_int32 * (len(raw) + 2))()
        given = ((c_char_p, raw), (c_int32, len(raw)), (c_void_p, ctypes.addressof(ids)))
        rest = ((c_int32, len(ids)), (c_bool, True), (c_bool, True))
        first = (c_void_p, vocabulary)
        n = self._llama.call("llama_tokenize", c_int32, first, *given, *rest)
        if n < 0:
            raise RuntimeError(f"{self._llama.flavour}: llama_tokenize returned {n}")
        return list(ids[:n])

    def _ask(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        return self._llama.call(name, result, (c_void_p, self._context), *arguments)

    def _defaults(self, kind: str) -> _Opaque:
        params: _Opaque = self._llama.call(f"llama_{kind}_default_params", _Opaque)
        return params

    def _vocabulary(self) -> int:
        model = (c_void_p, self._model)
        if not hasattr(self._llama.library, "llama_vocab_n_tokens"):
            return int(self._llama.call("llama_n_vocab", c_int32, model))
        vocabulary = self._llama.call("llama_model_get_vocab", c_void_p, model)
        return int(self._llama.call("llama_vocab_n_tokens", c_int32, (c_void_p, vocabulary)))


def _set_callback(params: _Opaque, watch: Any) -> None:
    """Put a callback where the defaults of llama_context_params have `cb_eval`.

    Its place moves with the releases; what stands there by default doesn't: two null pointers
    (callback and its data) and two times GGML_TYPE_F16, 1, for keys and values.
    """
    places = [
        place
        for place in range(0, _ROOM // 4 - 6, 2)  # pointers begin at multiples of 8 bytes
        if list(params.bytes[place : place + 6]) == [0, 0, 0, 0, 1, 1]
    ]
    if len(places) != 1:
        raise RuntimeError("llama_context_params has no place for a callback that can be told")
    address = ctypes.addressof(params) + 4 * places[0]
    c_void_p.from_address(address).value = ctypes.cast(watch, c_void_p).value
