"""llama.cpp's importance matrix: the mean square of each linear's input, over given tokens.

    matrix = measure(llama, Path("bf16.gguf"), ids)      # "blk.0.attn_q.weight" → float32 (K,)
    llama.quantize(Path("bf16.gguf"), out, FTYPES["Q4_0"], None, matrix=matrix)

What llama-imatrix does (tools/imatrix/imatrix.cpp): the scheduler's callback is shown every matrix
product of a block, before and behind it, and the squares of its right operand are summed; the head
is left out, as by default there. It is done here because the prebuilt llama.cpp is libraries
without programs, and so that both quantizers see the same tokens, not only the same text. Differs:
windows are given as ids, where the program cuts one long text.
"""

import ctypes
import sys
from collections.abc import Callable
from ctypes import c_bool, c_char, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import torch

from soroq.bench.peers.llama import Llama

EVAL_CALLBACK = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
F32 = 0  # enum ggml_type


class _Tensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor: `measure` compares its names with what ggml_get_name says."""

    _fields_ = [
        ("type", c_int32),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int32),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    ]


class Collector:
    """Sums of squares by tensor name, filled by the callback that `callback` makes."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.error: str | None = None

    def callback(self) -> Callable[..., bool]:
        """Return the C callback; keep it as long as the context lives."""
        return EVAL_CALLBACK(self._see)

    def _see(self, address: int, ask: bool, _data: int | None) -> bool:
        tensor = _Tensor.from_address(address)
        description = self._ggml("ggml_op_desc", ctypes.c_char_p, address)
        if description != b"MUL_MAT" or not (tensor.src[0] and tensor.src[1]):
            return not ask  # behind a tensor: go on
        weight = _Tensor.from_address(tensor.src[0])
        if weight.name != self._ggml("ggml_get_name", ctypes.c_char_p, tensor.src[0]):
            self.error = "struct ggml_tensor is not what this file says; see ggml.h"
            return False
        name = weight.name.decode()
        x = _Tensor.from_address(tensor.src[1])
        if not name.startswith("blk.") or x.type != F32:
            return not ask
        if ask:
            return True
        self._add(name, x)
        return True

    def _add(self, name: str, x: _Tensor) -> None:
        K, n = x.ne[0], x.ne[1] * x.ne[2] * x.ne[3]
        if list(x.nb) != [4, 4 * K, 4 * K * x.ne[1], 4 * K * x.ne[1] * x.ne[2]]:
            self.error = f"{name}: its input is not contiguous"
            return
        values = np.ctypeslib.as_array((ctypes.c_float * (n * K)).from_address(x.data))
        squares = torch.from_numpy(values).view(n, K).double().square().sum(0)
        self.sums[name] = self.sums.get(name, torch.zeros(K, dtype=torch.float64)) + squares
        self.counts[name] = self.counts.get(name, 0) + n

    def _ggml(self, name: str, result: object, address: int) -> bytes:
        found: bytes = self._llama.ggml.call_as(name, result, (c_void_p, address))
        return found


def measure(llama: Llama, model: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean square (K,) float32 of the input of each block's matrix, by llama.cpp's name.

    ids int64 (windows, length). Raises RuntimeError when a window can't be run or nothing was seen.
    """
    collector = Collector(llama)
    callback = collector.callback()
    with llama.open(model, window=ids.shape[1], watch=callback) as running:
        for done, window in enumerate(ids.tolist()):
            print(f"importance matrix {done}/{len(ids)}", file=sys.stderr, flush=True)
            running.clear()
            # of every token: else the last block goes on with one token behind its attention
            running.evaluate(window, every=True)
            if collector.error is not None:
                raise RuntimeError(collector.error)
    if not collector.sums:
        raise RuntimeError(f"{llama.flavour} showed no matrix products of {model}")
    return {
        name: (total / collector.counts[name]).float() for name, total in collector.sums.items()
    }
