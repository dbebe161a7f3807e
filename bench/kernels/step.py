"""All products of one decode step of a model, in order, each with its own weights.

Norms, attention and the cache are left out: what this shows is how far the products of a step are
from reading the step's weights once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from soroq.bench.kernels.ceilings import read, words_to_read
from soroq.bench.kernels.contenders import BF16, inputs, random_tiles
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call
from soroq.kernels.triton import ops


@dataclass(frozen=True)
class Model:
    """layers times (qkv, o, gate_up, down), and the head; gate and up alternate in gate_up."""

    name: str
    layers: int
    qkv: Shape
    o: Shape
    gate_up: Shape
    down: Shape
    head: Shape

    @property
    def int4_bytes(self) -> int:
        """Bytes of all weights: int4 in groups of 128."""
        layer = sum(s.int4_bytes for s in (self.qkv, self.o, self.gate_up, self.down))
        return self.layers * layer + self.head.int4_bytes


GEMMA3_4B = Model(
    "gemma3 4b",
    34,
    Shape("qkv", 4096, 2560),
    Shape("o", 2560, 2048),
    Shape("gate_up", 20480, 2560),
    Shape("down", 2560, 10240),
    Shape("head", 262208, 2560),
)
TRIAL = Model(
    "trial",
    2,
    Shape("qkv", 256, 128),
    Shape("o", 128, 128),
    Shape("gate_up", 512, 128),
    Shape("down", 128, 256),
    Shape("head", 512, 128),
)

Make = Callable[[], Call]


def steps(model: Model, M: int, device: torch.device) -> dict[str, Make]:
    """Return who makes the products of a step, name → maker of the call."""
    kinds = (model.qkv, model.o, model.gate_up, model.down)
    x = inputs(M, model.qkv.K, device)
    attended = inputs(M, model.o.K, device)

    def ours() -> Call:
        layers = [[random_tiles(s, device) for s in kinds] for _ in range(model.layers)]
        head = random_tiles(model.head, device)

        def call(_: int) -> None:
            hidden = x
            for qkv, o, gate_up, down in layers:
                ops.matmul_tiles(hidden, qkv)
                hidden = ops.matmul_add(attended, o, hidden)
                hidden = ops.matmul_add(ops.geglu_tiles(hidden, gate_up), down, hidden)
            ops.matmul_tiles(hidden, head)

        return call

    def dense() -> Call:
        def weight(shape: Shape) -> torch.Tensor:
            return torch.empty(shape.N, shape.K, dtype=BF16, device=device).normal_()

        layers = [[weight(s) for s in kinds] for _ in range(model.layers)]
        head = weight(model.head)
        half = model.gate_up.N // 2

        def call(_: int) -> None:
            hidden = x
            for qkv, o, gate_up, down in layers:
                torch.nn.functional.linear(hidden, qkv)
                hidden = hidden + torch.nn.functional.linear(attended, o)
                both = torch.nn.functional.linear(hidden, gate_up)
                gated = torch.nn.functional.gelu(both[:, :half], approximate="tanh")
                hidden = hidden + torch.nn.functional.linear(gated * both[:, half:], down)
            torch.nn.functional.linear(hidden, head)

        return call

    def floor() -> Call:
        words = words_to_read(model.int4_bytes, ops.device_facts(device)[1], device)
        return lambda _: read(words)

    return {"soroq int4": ours, "torch bfloat16": dense, "read the same bytes": floor}
