"""What the compiler makes of the Triton kernels, read without a GPU.

    python -m soroq.bench.kernels.machine_code            # every configuration, every target

Compiles for a compute capability, disassembles, and counts in the main loop: instructions per
weight (of a lane: what it issues over the weights it unpacks), tensor-core instructions, spills,
loads of weights narrower than four bytes. These bound the speed, they don't predict it.
"""

import argparse
import importlib.util
import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_UNPACK = re.compile(r"LOP3\.LUT .*(0xf000f|0x43004300|0x64006400).*0xea\b")
_UNPACK_BYTES = re.compile(r"LOP3\.LUT .*0xf0f0f0f\b.*0xc0\b")
_BRANCH = re.compile(r"\bBRA\b.*\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class MachineCode:
    """What was read from one compiled kernel.

    loop: the opcodes of the loop that holds the tensor-core instructions, in order;
    per_weight: its length over the weights that a lane unpacks in it.
    """

    loop: tuple[str, ...]
    per_weight: float
    registers: int
    spilled: int
    shared: int

    def count(self, pattern: str) -> int:
        """Return how many instructions of the loop match a regular expression from the start."""
        return sum(bool(re.match(pattern, op)) for op in self.loop)


def is_available() -> bool:
    """Tell whether Triton is here with its assembler and disassembler."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    try:
        tools = (knobs.nvidia.ptxas, knobs.nvidia.nvdisasm, knobs.nvidia.cuobjdump)
        return all(Path(tool.path).is_file() for tool in tools)
    except RuntimeError:
        return False


def compile_matmul_tiles(
    capability: int,
    config: Any,
    *,
    N: int = 4096,
    K: int = 5376,
    group: int = 128,
    has_zeros: bool = True,
    bits: int = 4,
    epilogue: Any = "none",
    dtype: str = "bf16",
) -> MachineCode:
    """Compile matmul_tiles for sm_`capability` and read it. dtype: 'bf16' or 'fp16'."""
    from soroq.kernels.triton import matmul_tiles

    kernel = matmul_tiles.matmul_tiles_kernel
    constants = matmul_tiles.constants(
        N=N,
        K=K,
        rows=-(-N // 128) * 128,
        group=group,
        has_zeros=has_zeros,
        bits=bits,
        config=config,
        epilogue=epilogue,
        portable=False,
    )
    signature = {
        "x": f"*{dtype}",
        "tiles": "*i16",
        "scales": f"*{dtype}",
        "zeros": "*u8",
        "y": f"*{dtype}",
        "extra": "*fp32" if epilogue == "maxima" else f"*{dtype}",
        "partials": "*fp32",
        "counters": "*i32",
        "M": "i32",
    }
    compiled = compile_kernel(capability, kernel, signature, constants, config)
    return _read(compiled, _UNPACK, 8 / bits)  # two nibbles an instruction


def compile_matmul_w4a8(
    capability: int,
    config: Any,
    *,
    N: int = 4096,
    K: int = 5376,
    group: int = 128,
    has_zeros: bool = True,
) -> MachineCode:
    """Compile matmul_w4a8 for sm_`capability` and read it."""
    from soroq.kernels.triton import matmul_w4a8

    constants = matmul_w4a8.constants(
        N=N,
        K=K,
        rows=-(-N // 128) * 128,
        group=group,
        has_zeros=has_zeros,
        config=config,
        portable=False,
    )
    signature = {
        "x": "*fp8e4nv",
        "tiles": "*i16",
        "x_scales": "*fp32",
        "scales": "*bf16",
        "zeros": "*u8",
        "y": "*bf16",
        "partials": "*fp32",
        "counters": "*i32",
        "M": "i32",
    }
    kernel = matmul_w4a8.matmul_w4a8_kernel
    compiled = compile_kernel(capability, kernel, signature, constants, config)
    return _read(compiled, _UNPACK_BYTES, 4)


def _read(compiled: Any, unpack: re.Pattern[str], weights: float) -> MachineCode:
    """Return what is in a compiled kernel whose instructions `unpack` give so many weights each."""
    loop, registers, spilled = disassemble(compiled)
    unpacked = weights * sum(bool(unpack.match(text)) for text in loop)
    opcodes = tuple(_opcode(text) for text in loop)
    per_weight = len(loop) / unpacked if unpacked else math.inf
    return MachineCode(opcodes, per_weight, registers, spilled, compiled.metadata.shared)


def compile_kernel(
    capability: int, kernel: Any, signature: dict[str, str], constants: dict[str, Any], config: Any
) -> Any:
    """Compile for CUDA; pointers are 16-byte aligned, as torch's allocations are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else signature[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]]
            for n, kind in signature.items()
            if kind.startswith("*")
        },
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassemble(compiled: Any) -> tuple[tuple[str, ...], int, int]:
    """Return the loop with the tensor-core work, registers, and spilled bytes."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        listing = _run(knobs.nvidia.nvdisasm.path, "-c", str(file))
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", str(file))
    registers = int(_search(r"REG:(\d+)", usage))
    return main_loop(listing), registers, int(_search(r"LOCAL:(\d+)", usage))


def main_loop(listing: str) -> tuple[str, ...]:
    """Return the instructions of the loop with most tensor-core work, () if there is none."""
    code: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif found := _INSTRUCTION.search(line):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            code.append((address, found[2]))
    best: tuple[str, ...] = ()
    for address, text in code:
        target = _BRANCH.search(text)
        start = labels.get(target[1], address) if target else address
        if start < address:
            body = tuple(t for a, t in code if start <= a <= address)
            if _tensor(body) > _tensor(best):
                best = body
    return best


def _tensor(body: tuple[str, ...]) -> int:
    return sum("MMA" in _opcode(text) for text in body)


def _opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in what the disassembler said")
    return found[1]


def main() -> None:
    """Print a table of all rule configurations on all targets."""
    from soroq.kernels.triton.config import rule

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, nargs="*", default=[80, 86, 89, 90])
    options = parser.parse_args()
    for capability in options.capability:
        for M in (1, 16, 32, 64, 128):
            for has_zeros in (False, True):
                config = rule(132, M, 4096, 5376)
                code = compile_matmul_tiles(capability, config, has_zeros=has_zeros)
                kinds = Counter(op.split(".")[0] for op in code.loop)
                print(
                    f"sm_{capability} M={M} zeros={has_zeros} {config}\n   "
                    f"{code.per_weight:.2f} a weight, {code.registers} registers, "
                    f"{code.spilled} spilled, {code.shared} shared, {dict(kinds.most_common(9))}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
