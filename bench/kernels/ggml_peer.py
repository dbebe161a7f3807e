"""llama.cpp's and ik_llama.cpp's products as contenders of the CPU race.

A graph holds a chunk of the weights' copies, a mul_mat each, all writing to one output, and is
computed by a thread pool that lasts. Weights are quantized by the library's own function, and read
for the truth by the `gguf` package. "repacked" ones lie as the libraries lay them out when they
load a model (llama.cpp: by default; ik_llama.cpp: with -rtr).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from soroq.bench.kernels.cpu_contender import Ready, Unfit, copies_for
from soroq.bench.kernels.cpu_problem import Problem
from soroq.bench.kernels.cpu_race import Runner
from soroq.bench.kernels.ggml import F32, TYPES, Arena, Ggml

CHUNK_BYTES = 32 << 20
FEW_ROWS = 16  # up to so many a graph holds a chunk, above one product


@dataclass(frozen=True)
class MulMat:
    """One ggml type; activations are rounded to 8 bits in blocks of 32 (K types: 256)."""

    ggml: Ggml
    type_name: str
    repacked: bool
    precision: str = "int8"

    @property
    def family(self) -> str:
        return self.ggml.flavour

    @property
    def name(self) -> str:
        return f"{self.family} {self.type_name}{' repacked' if self.repacked else ''}"

    @property
    def layout(self) -> str:
        return self.name.removeprefix(f"{self.family} ")

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        from gguf import GGMLQuantizationType, dequantize

        ggml, kind = self.ggml, TYPES[self.type_name]
        N, K = problem.shape.N, problem.shape.K
        block = 256 if self.type_name.endswith(("_K", "_XS")) else 32
        if K % block:
            raise Unfit(f"K {K} is not a multiple of {block}")
        rows = self._quantize(problem.rows.numpy(), kind)
        truth = torch.from_numpy(dequantize(rows, GGMLQuantizationType(kind)).copy())
        whole = np.ascontiguousarray(problem.repeat_bytes(rows))
        nbytes = whole.nbytes
        chunk = min(max(1, CHUNK_BYTES // nbytes), copies_for(nbytes, cold_bytes))
        copies = -(-copies_for(nbytes, cold_bytes) // chunk) * chunk
        arena = Arena(ggml, copies + 2)
        weights = [arena.matrix(kind, N, K) for _ in range(copies)]
        if self.repacked and self.family == "llama.cpp":
            if ggml.repacking is None:
                raise Unfit("this build has no repacking")
            arena.place(ggml.repacking, weights)
            if not ggml.repacks(arena.product(weights[0], arena.matrix(F32, 1, K))):
                raise Unfit(f"no repacked kernel for {self.type_name} here")
        else:
            arena.place(ggml.buffer_type, weights)
        for weight in weights:
            ggml.call("ggml_backend_tensor_set", weight, whole.ctypes.data, 0, nbytes)
            if self.repacked and self.family == "ik_llama.cpp":
                if not ggml.repack_ik(weight, kind):
                    raise Unfit(f"no repacked kernel for {self.type_name} here")

        def runner(inputs: torch.Tensor, keep: Arena = arena) -> Runner:
            return self._runner(weights, inputs, N, chunk)

        return Ready(nbytes, copies, truth, runner)

    def _quantize(self, rows: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
        size = self.ggml.call("ggml_row_size", kind, rows.shape[1])
        found = np.empty((rows.shape[0], size), np.uint8)
        place = (rows.ctypes.data, found.ctypes.data, 0, *rows.shape, None)
        self.ggml.call("ggml_quantize_chunk", kind, *place)
        return found

    def _runner(self, weights: list[int], inputs: torch.Tensor, N: int, chunk: int) -> Runner:
        ggml = self.ggml
        M, K = inputs.shape
        chunk = chunk if M <= FEW_ROWS else 1
        n_units = len(weights) // chunk
        arena = Arena(ggml, len(weights) + 2, n_units, chunk + 8)
        x, y = arena.matrix(F32, M, K), arena.matrix(F32, M, N)
        arena.place(ggml.buffer_type, [x, y])
        given = inputs.contiguous().numpy()
        ggml.call("ggml_backend_tensor_set", x, given.ctypes.data, 0, given.nbytes)
        graphs = []
        for start in range(0, len(weights), chunk):
            products = [arena.product(weight, x) for weight in weights[start : start + chunk]]
            for product in products:
                arena.place_over(product, y)
            graphs.append(arena.graph(products))
        units = [partial(arena.compute, graph) for graph in graphs]

        def result() -> torch.Tensor:
            found = np.full((M, N), np.nan, np.float32)
            ggml.call("ggml_backend_tensor_set", y, found.ctypes.data, 0, found.nbytes)
            units[0]()
            ggml.call("ggml_backend_tensor_get", y, found.ctypes.data, 0, found.nbytes)
            return torch.from_numpy(found)

        return Runner(units, chunk, result)
