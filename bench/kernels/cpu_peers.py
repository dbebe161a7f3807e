"""Soroq's products and PyTorch's, and the list of everybody who can race here."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from soroq.bench.kernels import ggml
from soroq.bench.kernels.cpu_contender import Contender, Ready, Unfit, copies_for
from soroq.bench.kernels.cpu_problem import Problem
from soroq.bench.kernels.cpu_race import Runner
from soroq.bench.kernels.ggml_peer import MulMat
from soroq.kernels import dispatch
from soroq.kernels.panels import PanelWeight, pack

BF16 = torch.bfloat16
W = TypeVar("W")
# Beginnings of the names of those who race by default: each library's fastest formats.
DEFAULT_WHO = (
    "soroq,torch,onnxruntime,openvino,llama.cpp Q4_0 repacked,llama.cpp Q4_K repacked,"
    "llama.cpp Q8_0,ik_llama.cpp Q4_0 repacked,ik_llama.cpp Q4_K,ik_llama.cpp IQ4_XS repacked,"
    "ik_llama.cpp Q8_0 repacked"
)


@dataclass(frozen=True)
class Soroq:
    """Our panels: one packed copy for every M."""

    name: str
    bits: int
    group: int
    precision: str  # of activations: integers they are rounded to, or what they are kept in
    family: str = "soroq"

    @property
    def layout(self) -> str:
        return f"int{self.bits} g{self.group} panels"

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        key = (self.bits, self.group, cold_bytes)
        if key not in problem.kept:
            problem.kept[key] = self._pack(problem, cold_bytes)
        panels, weight = problem.kept[key]
        mode = self.precision if self.precision.startswith("int") else "exact"

        def runner(x: torch.Tensor) -> Runner:
            given = x.to(BF16) if self.precision == "bfloat16" else x
            return calls(lambda w: dispatch.matmul_panels(given, w, precision=mode), panels)

        return Ready(panels[0].nbytes, len(panels), weight, runner)

    def _pack(self, problem: Problem, cold_bytes: int) -> tuple[list[PanelWeight], torch.Tensor]:
        quantized = problem.quantize(self.group, bits=self.bits)
        whole = problem.spread(quantized)
        panels = [pack(whole)]
        more = copies_for(panels[0].nbytes, cold_bytes) - 1
        panels += [pack(whole) for _ in range(more)]
        return panels, quantized.dequantize()


@dataclass(frozen=True)
class TorchLinear:
    """What a model that was never quantized runs: oneDNN's bfloat16 product."""

    name: str = "torch bfloat16"
    family: str = "torch"
    layout: str = "bfloat16"
    precision: str = "bfloat16"

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        rows = problem.rows.to(BF16)
        whole = problem.repeat(rows)
        nbytes = whole.numel() * 2
        weights = [whole, *(whole.clone() for _ in range(copies_for(nbytes, cold_bytes) - 1))]

        def runner(x: torch.Tensor) -> Runner:
            given = x.to(BF16)
            return calls(lambda w: torch.nn.functional.linear(given, w), weights)

        return Ready(nbytes, len(weights), rows.float(), runner)


@dataclass(frozen=True)
class TorchInt4:
    """PyTorch's own int4 product, bfloat16 activations, groups of 128."""

    name: str = "torch int4"
    family: str = "torch"
    layout: str = "int4 g128"
    precision: str = "bfloat16"

    def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
        if problem.shape.N % 16:
            raise Unfit(f"N {problem.shape.N} is not a multiple of 16")
        quantized = problem.quantize(128)
        codes = problem.repeat(quantized.codes).to(torch.int32) + 8
        scales = problem.repeat(quantized.scales).to(BF16).t()
        pairs = torch.stack([scales, torch.zeros_like(scales)], 2).contiguous()  # scale, offset
        first = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        del codes
        nbytes = first.numel() * first.element_size() + pairs.numel() * 2
        more = range(copies_for(nbytes, cold_bytes) - 1)
        weights = [(first, pairs), *((first.clone(), pairs.clone()) for _ in more)]

        def runner(x: torch.Tensor) -> Runner:
            given = x.to(BF16)
            product = torch.ops.aten._weight_int4pack_mm_for_cpu
            return calls(lambda w: product(given, w[0], 128, w[1]), weights)

        return Ready(nbytes, len(weights), quantized.dequantize(), runner)


def everybody(threads: int) -> tuple[list[Contender], list[str], dict[str, str]]:
    """Return who can race here, a line about each who can't, and the versions of who can."""
    found: list[Contender] = [
        Soroq("soroq int8", 4, 128, "int8"),
        Soroq("soroq int8-coarse", 4, 128, "int8-coarse"),
        Soroq("soroq int16", 4, 128, "int16"),
        Soroq("soroq exact bf16", 4, 128, "bfloat16"),
        Soroq("soroq exact f32", 4, 128, "float32"),
        Soroq("soroq w8 int8", 8, 128, "int8"),
        TorchLinear(),
        TorchInt4(),
    ]
    versions = {"torch": str(torch.__version__)}
    absent: list[str] = []
    if _version("onnxruntime", versions, absent) and _version("onnx", versions, absent):
        from soroq.bench.kernels.onnxruntime_peer import MatMulNBits

        found += [MatMulNBits(block, level, threads) for block in (32, 128) for level in (1, 4)]
    if _version("openvino", versions, absent):
        from soroq.bench.kernels.openvino_peer import VARIANTS, OpenVino

        found += [OpenVino(name, threads) for name in VARIANTS]
    for flavour in ("llama.cpp", "ik_llama.cpp"):
        folder = ggml.directory(flavour)
        if folder is None:
            absent.append(f"{flavour}: {ggml.PLACES[flavour][0]} is not set, see bench/peers")
            continue
        try:
            library = ggml.Ggml(flavour, folder, threads)
        except OSError as error:
            absent.append(f"{flavour}: {error}")
            continue
        versions[flavour] = " ".join(library.features)
        kinds = ("Q4_0", "Q4_1", "Q4_K", "IQ4_XS", "Q8_0")
        found += [MulMat(library, kind, repacked) for kind in kinds for repacked in (False, True)]
    return found, absent, versions


def _version(package: str, versions: dict[str, str], absent: list[str]) -> bool:
    """Note a package's version, or that it isn't installed; return whether it is."""
    try:
        versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        absent.append(f"{package}: not installed")
        return False
    return True


def calls(product: Callable[[W], torch.Tensor], weights: list[W]) -> Runner:
    """Return a runner whose units are one call each of a product of Python's."""
    units = [lambda w=w: product(w) for w in weights]
    return Runner(units, 1, lambda: product(weights[0]))
