"""ONNX Runtime's MatMulNBits as a contender of the CPU race.

A session holds a chunk of the copies, a node each, so that what `run` costs is not counted to the
product, and nothing is copied. All sessions share one thread pool of ONNX Runtime's, with its
default of spinning: pools of their own would fight for the cores.
A model's MatMulNBits differ only in `accuracy_level`: 4 rounds activations to int8 (per token and
block), 1 keeps float32.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from soroq.bench.kernels.cpu_contender import Ready, Unfit, copies_for, differ
from soroq.bench.kernels.cpu_problem import Problem
from soroq.bench.kernels.cpu_race import Runner

CHUNK_BYTES = 32 << 20
DOMAIN = "com.microsoft"


@cache
def start_pool(threads: int) -> None:
    """Set the size of ONNX Runtime's shared pool; only the first call of a process counts."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


@dataclass(frozen=True)
class MatMulNBits:
    """int4 codes in symmetric blocks, float32 scales and activations.

    shared: one pool for all sessions. No session of the process can then have its own.
    """

    block: int
    level: int
    threads: int
    shared: bool = True
    family: str = "onnxruntime"

    @property
    def name(self) -> str:
        return f"onnxruntime b{self.block} acc{self.level}"

    @property
    def layout(self) -> str:
        return f"int4 g{self.block}"

    @property
    def precision(self) -> str:
        return "int8" if self.level == 4 else "float32"

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        N, K = problem.shape.N, problem.shape.K
        if K % self.block:
            raise Unfit(f"K {K} is not a multiple of {self.block}")
        if self.shared:
            start_pool(self.threads)
        quantized = problem.quantize(self.block)
        unsigned = (quantized.codes + 8).to(torch.uint8).numpy()
        packed = unsigned[:, 0::2] | unsigned[:, 1::2] << 4
        B = problem.repeat_bytes(packed).reshape(N, K // self.block, self.block // 2)
        scales = problem.repeat(quantized.scales.float()).numpy()
        nbytes = B.nbytes + scales.nbytes
        chunk = max(1, CHUNK_BYTES // nbytes)
        if cold_bytes == 0:
            chunk = 1
        n_sessions = -(-copies_for(nbytes, cold_bytes) // chunk)
        model = self._model(N, K, B, scales, chunk)
        sessions = [self._session(model) for _ in range(n_sessions)]
        del model

        def runner(x: torch.Tensor) -> Runner:
            return _runner(sessions, x, chunk, N)

        return Ready(nbytes, chunk * n_sessions, quantized.dequantize(), runner)

    def _model(
        self, N: int, K: int, B: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], chunk: int
    ) -> bytes:
        """Return a serialized graph of `chunk` products of x (M, K), each with its own weights."""
        from onnx import TensorProto, helper, numpy_helper

        nodes, weights, outputs = [], [], []
        for i in range(chunk):
            weights.append(numpy_helper.from_array(differ(B, i), f"B{i}"))
            weights.append(numpy_helper.from_array(scales, f"scales{i}"))
            node = helper.make_node(
                "MatMulNBits",
                ["x", f"B{i}", f"scales{i}"],
                [f"y{i}"],
                domain=DOMAIN,
                K=K,
                N=N,
                bits=4,
                block_size=self.block,
                accuracy_level=self.level,
            )
            nodes.append(node)
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", N]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", K])
        graph = helper.make_graph(nodes, "products", [x], outputs, weights)
        domains = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=10)
        return bytes(model.SerializeToString())

    def _session(self, model: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if self.shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _runner(sessions: list[Any], x: torch.Tensor, chunk: int, N: int) -> Runner:
    import onnxruntime

    given = onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())
    blank = np.full((len(x), N), np.nan, np.float32)
    y, other = (onnxruntime.OrtValue.ortvalue_from_numpy(blank) for _ in range(2))
    bindings = []
    for session in sessions:
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", given)
        for i in range(chunk):
            binding.bind_ortvalue_output(f"y{i}", other if i else y)
        bindings.append(binding)
    pairs = zip(sessions, bindings, strict=True)
    units = [lambda s=s, b=b: s.run_with_iobinding(b) for s, b in pairs]

    def result() -> torch.Tensor:
        units[0]()
        return torch.from_numpy(y.numpy())

    return Runner(units, chunk, result)
