"""OpenVINO's compressed int4 product as a contender of the CPU race.

The graph is the one that NNCF writes: unsigned 4-bit codes, float16 scales and a zero point,
converted and multiplied in front of a MatMul, which the CPU plugin folds into one kernel. A
compiled model holds a chunk of the copies, a MatMul each, all but the first writing to one buffer.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from soroq.bench.kernels.cpu_contender import Ready, Unfit, copies_for, differ
from soroq.bench.kernels.cpu_problem import Problem
from soroq.bench.kernels.cpu_race import Runner

CHUNK_BYTES = 32 << 20
# By default activations are bfloat16, rounded to int8 in groups of 32 where that is fast.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    " f32 q128": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128},
}


@dataclass(frozen=True)
class OpenVino:
    """int4 in groups, float32 activations in and out; `variant`: see VARIANTS."""

    variant: str
    threads: int
    group: int = 128
    family: str = "openvino"
    precision: str = "int8"

    @property
    def name(self) -> str:
        return f"openvino g{self.group}{self.variant}"

    @property
    def layout(self) -> str:
        return f"int4 g{self.group}"

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        import openvino

        N, K = problem.shape.N, problem.shape.K
        if K % self.group:
            raise Unfit(f"K {K} is not a multiple of {self.group}")
        quantized = problem.quantize(self.group)
        rounded = quantized.scales.half()
        truth = type(quantized)(quantized.codes, rounded, None, quantized.args).dequantize()
        unsigned = (quantized.codes + 8).to(torch.uint8).numpy()
        packed = problem.repeat_bytes(unsigned[:, 0::2] | unsigned[:, 1::2] << 4)
        scales = problem.repeat_bytes(rounded.numpy())
        nbytes = packed.nbytes + scales.nbytes
        chunk = min(max(1, CHUNK_BYTES // nbytes), copies_for(nbytes, cold_bytes))
        n_models = -(-copies_for(nbytes, cold_bytes) // chunk)
        options: dict[str, Any] = dict(VARIANTS[self.variant])
        options |= {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        models = []
        for i in range(n_models):
            graph = self._graph(packed, scales, K, range(i * chunk, (i + 1) * chunk))
            models.append(core.compile_model(graph, "CPU", options))

        def runner(x: torch.Tensor) -> Runner:
            return _runner(models, x, chunk, N)

        return Ready(nbytes, chunk * n_models, truth, runner)

    def _graph(
        self, packed: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], K: int, copies: range
    ) -> Any:
        import openvino
        from openvino import opset13 as ops

        N, groups = scales.shape
        x = ops.parameter([-1, K], np.float32, name="x")
        eight = np.full(1, 8, np.uint8)
        products = []
        for i in copies:
            codes = _nibbles(differ(packed, i), [N, groups, self.group])
            half = ops.convert(codes, "f16")
            zero = _nibbles(eight, [1, 1, 1])
            centred = ops.subtract(half, ops.convert(zero, "f16"))
            scaled = ops.multiply(centred, ops.constant(scales.reshape(N, groups, 1)))
            flat = ops.reshape(scaled, np.array([N, K]), special_zero=False)
            weight = ops.convert(flat, "f32")
            products.append(ops.matmul(x, weight, False, True))
        return openvino.Model(products, [x], "products")


def _nibbles(packed: np.ndarray[Any, Any], shape: list[int]) -> Any:
    """Return a constant of unsigned 4-bit numbers, the lower half of a byte first."""
    import openvino

    tensor = openvino.Tensor(openvino.Type.u4, shape)  # made of an array, it would only point there
    tensor.data[:] = packed.reshape(tensor.data.shape)
    return openvino.op.Constant(tensor)


def _runner(models: list[Any], x: torch.Tensor, chunk: int, N: int) -> Runner:
    import openvino

    given = openvino.Tensor(x.contiguous().numpy())
    both = np.full((2, len(x), N), np.nan, np.float32)  # a tensor doesn't keep an array alive
    y = both[0]
    output, other = (openvino.Tensor(part, shared_memory=True) for part in both)
    requests = []
    for model in models:
        request = model.create_infer_request()
        request.set_input_tensor(0, given)
        for i in range(chunk):
            request.set_output_tensor(i, other if i else output)
        requests.append(request)
    units = [partial(_infer, request) for request in requests]

    def result() -> torch.Tensor:
        units[0]()
        return torch.from_numpy(y)

    return Runner(units, chunk, result)


def _infer(request: Any) -> None:
    request.start_async()
    request.wait()
