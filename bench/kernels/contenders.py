"""Who is timed: our product, torch's, and other libraries' where they are installed.

A contender is made for a shape, M and a device: `bytes` it must read, and a call over copies.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from soroq.bench.kernels.ceilings import launch_nothing, read, words_to_read
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call
from soroq.kernels.tiles import TILE_K, TILE_N, TiledWeight
from soroq.kernels.triton import ops

GROUP = 128
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Contender:
    """nbytes: of one copy of the weights; make(copies) allocates them and returns the call."""

    name: str
    nbytes: int
    make: Callable[[int], Call]


def random_tiles(
    shape: Shape, device: torch.device, *, bits: int = 4, group: int = GROUP
) -> TiledWeight:
    """Return a random symmetric weight, made in place in tiles."""
    rows = -(-shape.N // 128) * 128
    columns = -(-shape.K // TILE_K)
    size = (rows // TILE_N, columns * bits // 4, TILE_N, TILE_K // 4)
    tiles = torch.randint(-(2**15), 2**15, size, dtype=torch.int16, device=device)
    n_groups = 1 if group == shape.K else columns * TILE_K // group
    scales = torch.rand(n_groups, rows, device=device).mul_(0.01).to(BF16)
    return TiledWeight(tiles, scales, None, shape.N, shape.K, group, bits)


def contenders(shape: Shape, M: int, device: torch.device) -> list[Contender]:
    """Return everyone who can multiply x (M, K) by this shape here, without gemlite."""
    found = [ours(shape, M, device), _torch(shape, M, device)]
    found.append(reader(shape.int4_bytes, device))
    if device.type == "cuda":
        found += [_int4pack(shape, M, device)] if shape.N % 64 == 0 and M <= 64 else []
        found += [_marlin(shape, M, device)] if "SOROQ_MARLIN" in os.environ else []
        found += [_unpacked(shape, M, device)] if M >= 256 else []
    return found


def inputs(M: int, K: int, device: torch.device) -> torch.Tensor:
    """Return random activations (M, K), never zeros: those multiply faster."""
    return torch.randn(M, K, device=device).to(BF16)


def ours(shape: Shape, M: int, device: torch.device) -> Contender:
    """Our product of int4 weights and bfloat16, as a model runs it."""

    def make(copies: int) -> Call:
        weights = [random_tiles(shape, device) for _ in range(copies)]
        x = inputs(M, shape.K, device)
        return lambda i: ops.matmul_tiles(x, weights[i])

    return Contender("soroq int4", shape.int4_bytes, make)


def _unpacked(shape: Shape, M: int, device: torch.device) -> Contender:
    """W dequantized once, then cuBLAS: what a product of many rows must not be slower than."""

    def make(copies: int) -> Call:
        weights = [random_tiles(shape, device) for _ in range(copies)]
        x = inputs(M, shape.K, device)
        y = torch.empty(M, shape.N, dtype=BF16, device=device)
        return lambda i: ops.multiply_unpacked(x, weights[i], y)

    return Contender("dequantize, then cuBLAS", shape.int4_bytes, make)


def _marlin(shape: Shape, M: int, device: torch.device) -> Contender:
    """IST-DASLab/marlin in the library that SOROQ_MARLIN names (bench/peers/marlin_c.cu)."""
    library = ctypes.CDLL(os.environ["SOROQ_MARLIN"])
    sms = ops.device_facts(device)[1]
    N, K = shape.N, shape.K

    def make(copies: int) -> Call:
        if N % 128 or K % 128:
            raise ValueError("N and K must be multiples of 128")
        size = (K // 16, N * 2)
        weights = [
            torch.randint(-(2**31), 2**31 - 1, size, dtype=torch.int32, device=device)
            for _ in range(copies)
        ]
        scales = torch.rand(K // GROUP, N, device=device).mul_(0.01).half()
        x = torch.randn(M, K, device=device).half()
        y = torch.empty(M, N, dtype=torch.float16, device=device)
        locks = torch.zeros(N // 128 * 16, dtype=torch.int32, device=device)

        def call(i: int) -> None:
            stream = torch.cuda.current_stream(device).cuda_stream
            pointers = [t.data_ptr() for t in (x, weights[i], y, scales, locks)]
            as_c = [ctypes.c_void_p(p) for p in (*pointers, stream)]
            error = library.soroq_marlin(*as_c, M, N, K, GROUP, device.index or 0, sms)
            if error:
                raise RuntimeError(f"marlin: error {error}")

        return call

    return Contender("marlin float16", shape.int4_bytes, make)


def _torch(shape: Shape, M: int, device: torch.device) -> Contender:
    def make(copies: int) -> Call:
        weights = [
            torch.empty(shape.N, shape.K, dtype=BF16, device=device).normal_()
            for _ in range(copies)
        ]
        x = inputs(M, shape.K, device)
        return lambda i: torch.nn.functional.linear(x, weights[i])

    return Contender("torch bfloat16", shape.N * shape.K * 2, make)


def _int4pack(shape: Shape, M: int, device: torch.device) -> Contender:
    """The tinygemm kernel inside torch."""

    def make(copies: int) -> Call:
        size = (shape.N, shape.K // 2)
        weights = []
        for _ in range(copies):
            codes = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
            weights.append(torch.ops.aten._convert_weight_to_int4pack(codes, 8))
        scales = torch.rand(shape.K // GROUP, shape.N, 2, device=device).mul_(0.01).to(BF16)
        x = inputs(M, shape.K, device)
        return lambda i: torch.ops.aten._weight_int4pack_mm(x, weights[i], GROUP, scales)

    return Contender("torch _weight_int4pack_mm", shape.int4_bytes, make)


def gemlite_contender(shape: Shape, M: int, device: torch.device) -> Contender:
    """gemlite, tuned by itself for a shape that it ships no configuration for: some 10 seconds.

    Raises ImportError when it isn't installed.
    """
    import gemlite

    def make(copies: int) -> Call:
        layers = []
        for _ in range(copies):
            layer = gemlite.GemLiteLinear(
                W_nbits=4,
                group_size=GROUP,
                in_features=shape.K,
                out_features=shape.N,
                input_dtype=gemlite.DType.BF16,
                output_dtype=gemlite.DType.BF16,
            )
            codes = torch.randint(0, 16, (shape.N, shape.K), dtype=torch.uint8, device=device)
            n_groups = shape.N * shape.K // GROUP
            scales = torch.rand(n_groups, 1, device=device).mul_(0.01).to(BF16)
            layer.pack(codes, scales, torch.full_like(scales, 8), bias=None)
            layers.append(layer)
        x = inputs(M, shape.K, device)
        return lambda i: layers[i](x)

    return Contender(f"gemlite {gemlite.__version__}", shape.int4_bytes, make)


def reader(nbytes: int, device: torch.device) -> Contender:
    """A kernel that reads as many bytes as the int4 weight has: what no product can beat."""
    sms = ops.device_facts(device)[1]

    def make(copies: int) -> Call:
        words = [words_to_read(nbytes, sms, device) for _ in range(copies)]
        return lambda i: read(words[i])

    return Contender("read the same bytes", nbytes, make)


def ceilings(device: torch.device, nbytes: int, side: int) -> list[Contender]:
    """Return what bounds everything: a copy, a reader, an empty launch, dense products."""

    def copy(copies: int) -> Call:
        parts = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
        return lambda i: parts[0].copy_(parts[1])

    def launch(copies: int) -> Call:
        return lambda i: launch_nothing(device)

    def dense(copies: int) -> Call:
        a = inputs(side, side, device)
        b = inputs(side, side, device)
        return lambda i: a @ b

    found = [
        Contender("copy", 2 * nbytes, copy),
        reader(nbytes, device),
        Contender("empty launch", 1, launch),
        Contender("bfloat16 product", 4 * side * side, dense),
    ]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        found.append(Contender("float8 product", 2 * side * side, _float8(side, device)))
    return found


def _float8(side: int, device: torch.device) -> Callable[[int], Call]:
    def make(copies: int) -> Call:
        a = inputs(side, side, device).to(torch.float8_e4m3fn)
        b = inputs(side, side, device).to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=device)
        return lambda i: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=BF16)

    return make
