"""A whole decode step of Gemma 3 with random weights: norms, attention, cache and the head too.

The same model in int4 tiles and in bfloat16, each in one CUDA graph and launch by launch, beside a
plain read of the bytes that the int4 step reads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from soroq.bench.kernels.ceilings import read, words_to_read
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.kernels.triton.ops import device_facts
from soroq.models.runner import build_skeleton
from soroq.nn.graphs import GraphDecoder
from soroq.nn.tiled import TiledEmbedding, TiledGeGLU, TiledLinear, TiledStack, put

BF16 = torch.bfloat16
STEPS = 20  # replayed between two looks at the clock
ROUNDS = 7


@dataclass(frozen=True)
class Model:
    """Sizes of a Gemma 3 text model, from its config.json."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int

    def config(self) -> dict[str, Any]:
        """Return the text model's config.json."""
        kinds = ["sliding_attention"] * 5 + ["full_attention"]
        return {
            "model_type": "gemma3_text",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "sliding_window": self.window,
            "query_pre_attn_scalar": self.head_dim,
            "layer_types": [kinds[i % 6] for i in range(self.layers)],
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        }

    def step_bytes(self, length: int, batch: int) -> int:
        """Return what a step reads: int4 weights in groups of 128, and the caches."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        cells = self.layers * self.hidden * (attention + 3 * self.intermediate)
        weights = (cells + self.vocabulary * self.hidden) * (4 + 16 / 128) / 8
        cache = self.layers * 2 * self.kv_heads * self.head_dim * 2 * length * batch
        return int(weights) + cache


MODELS = (
    Model("gemma3 1b", 1152, 6912, 26, 4, 1, 256, 262144, 512),
    Model("gemma3 4b", 2560, 10240, 34, 8, 4, 256, 262208, 1024),
)
TRIAL = Model("trial", 128, 256, 2, 2, 1, 64, 512, 16)


def build(model: Model, device: torch.device, *, tiled: bool) -> Any:
    """Return a causal model of random weights on `device`, linears in int4 tiles or bfloat16."""
    built = build_skeleton(model.config())
    if tiled:
        for block in built.model.layers:
            _tile(block, model, device)
        shared = TiledLinear(_random(model.vocabulary, model.hidden, device), dtype=BF16)
        put(built.model, "embed_tokens", TiledEmbedding(shared, model.hidden**0.5, BF16))
        put(built, "lm_head", shared)
    for name, parameter in list(built.named_parameters()):
        value = torch.empty(parameter.shape, dtype=BF16, device=device).normal_(std=0.02)
        put_parameter(built, name, value)
    if not tiled:
        built.lm_head.weight = built.model.embed_tokens.weight
    return built.to(device).eval()


def put_parameter(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a parameter by its dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Parameter(value, requires_grad=False))


def _tile(block: nn.Module, model: Model, device: torch.device) -> None:
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    weights = [_random(rows, model.hidden, device) for rows in (q, kv, kv)]
    stack = TiledStack(weights, [None] * 3, dtype=BF16).parts()
    for name, part in zip(("q_proj", "k_proj", "v_proj"), stack, strict=True):
        put(block, f"self_attn.{name}", part)
    put(block, "self_attn.o_proj", TiledLinear(_random(model.hidden, q, device), dtype=BF16))
    gate, up = (_random(model.intermediate, model.hidden, device) for _ in range(2))
    down = TiledLinear(_random(model.hidden, model.intermediate, device), dtype=BF16)
    put(block, "mlp", TiledGeGLU(gate, up, down, dtype=BF16))


def _random(rows: int, columns: int, device: torch.device) -> QuantizedTensor:
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, device=device)
    scales = torch.rand(rows, columns // 128, device=device).mul_(0.005).to(BF16)
    return QuantizedTensor(codes, scales, None, QuantArgs(group_size=128))


def both(model: Model, device: torch.device) -> dict[str, Any]:
    """Return the model in int4 tiles and in bfloat16."""
    return {
        "soroq int4": build(model, device, tiled=True),
        "bfloat16": build(model, device, tiled=False),
    }


def times(
    model: Model, models: dict[str, Any], length: int, batch: int, device: torch.device
) -> dict[str, float]:
    """Return microseconds a step, by who makes it; medians of rounds in which all take turns."""
    words = words_to_read(model.step_bytes(length, batch), device_facts(device)[1], device)
    ids = torch.randint(0, model.vocabulary, (batch, 8), device=device)
    racers: dict[str, Callable[[], Callable[[], object]]] = {}
    for name, built in models.items():
        for kind, graph in (("launch by launch", False), ("one graph", True)):
            decoder = GraphDecoder(built, max_length=length, batch=batch, graph=graph)
            decoder.start(ids)
            racers[f"{name}, {kind}"] = partial(_from_the_prompt, decoder, ids)
    racers["read the same bytes"] = lambda: lambda: read(words)
    found: dict[str, list[float]] = {name: [] for name in racers}
    for number in range(ROUNDS + 1):  # one to warm up
        for name in list(racers) if number % 2 else list(racers)[::-1]:
            taken = _seconds(racers[name](), 3 if device.type == "cpu" else STEPS)
            if number:
                found[name].append(taken * 1e6)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


def _from_the_prompt(decoder: GraphDecoder, ids: torch.Tensor) -> Callable[[], object]:
    """Return the step, back at the prompt's end: a step reads the whole cache wherever it is."""
    decoder.rewind(ids.shape[1], ids[:, -1:])
    return decoder.step


def _seconds(call: Callable[[], object], steps: int) -> float:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps
