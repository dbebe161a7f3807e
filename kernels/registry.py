"""KERNELS: every kernel by its name, one entry each; importing this file loads nothing.

A kernel is chosen by `soroq.kernels.dispatch` from the highest priority down: the first whose
predicate has no objection. The plain torch twins in `kernels/reference` accept everything.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation.

    `activations` and `weight` are dtype names; `device` is a torch device type or 'any'.
    `predicate` names a function Problem → str: '' when the kernel can run the problem, otherwise
    why not. Both strings are "module:function".
    """

    op: str
    name: str
    layout: str
    weight: str
    activations: tuple[str, ...]
    device: str
    predicate: str
    priority: int
    function: str


_HALVES = ("bfloat16", "float16")
_FLOATS = ("float32", *_HALVES)
_ANYTHING = "soroq.kernels.reference:can_run"
_PACKED = "soroq.kernels.reference.packed"
_CAN_USE_PANELS = "soroq.kernels.cpu.panels:can_use_panels"
_CAN_USE_FLOAT8 = "soroq.kernels.triton.support:can_use_float8"
_CAN_USE_W4A8 = "soroq.kernels.triton.support:can_use_w4a8"
_CAN_USE_TILES = "soroq.kernels.triton.support:can_use_tiles"

KERNELS: dict[str, Kernel] = {
    k.name: k
    for k in (
        Kernel(
            op="matmul_w4",
            name="matmul_w4_scalar",
            layout="pack-quantized",
            weight="int4",
            activations=_FLOATS,
            device="cpu",
            predicate="soroq.kernels.cpu.ops:can_matmul_w4",
            priority=10,
            function="soroq.kernels.cpu.ops:matmul_w4",
        ),
        *(
            Kernel(
                op=f"{op}_w{bits}",
                name=f"{op}_w{bits}_reference",
                layout="pack-quantized",
                weight=f"int{bits}",
                activations=_FLOATS,
                device="any",
                predicate=_ANYTHING,
                priority=0,
                function=f"{_PACKED}:{op}_w{bits}",
            )
            for op in ("matmul", "gather")
            for bits in (4, 8)
        ),
        *(
            Kernel(
                op=f"{op}_tiles",
                name=f"{op}_tiles_{kind}",
                layout="soroq-t64",
                weight="int4 or int8",
                activations=floats,
                device=device,
                predicate=predicate,
                priority=priority,
                function=f"{module}:{op}_tiles",
            )
            for op in ("matmul", "geglu", "gather")
            for kind, floats, device, predicate, priority, module in (
                ("triton", _HALVES, "cuda", _CAN_USE_TILES, 10, "soroq.kernels.triton.ops"),
                ("reference", _FLOATS, "any", _ANYTHING, 0, "soroq.kernels.reference.tiled"),
            )
        ),
        *(
            Kernel(
                op="matmul_w4a8",
                name=f"matmul_w4a8_{kind}",
                layout="soroq-t64",
                weight="int4",
                activations=floats,
                device=device,
                predicate=predicate,
                priority=priority,
                function=f"{module}:matmul_w4a8",
            )
            for kind, floats, device, predicate, priority, module in (
                ("triton", _HALVES, "cuda", _CAN_USE_W4A8, 10, "soroq.kernels.triton.w4a8_ops"),
                ("reference", _FLOATS, "any", _ANYTHING, 0, "soroq.kernels.reference.tiled"),
            )
        ),
        *(
            Kernel(
                op=f"{op}_panels",
                name=f"{op}_panels_{kind}",
                layout="soroq-p64",
                weight="int4, int8 or bfloat16",
                activations=_FLOATS,
                device=device,
                predicate=predicate,
                priority=priority,
                function=f"{module}:{op}_panels",
            )
            for op in ("matmul", "gated", "gather")
            for kind, device, predicate, priority, module in (
                ("cpu", "cpu", _CAN_USE_PANELS, 10, "soroq.kernels.cpu.panels"),
                ("reference", "any", _ANYTHING, 0, "soroq.kernels.reference.panels"),
            )
        ),
        *(
            Kernel(
                op=op,
                name=f"{op}_{kind}",
                layout="float-quantized",
                weight="float8_e4m3fn",
                activations=floats,
                device=device,
                predicate=predicate,
                priority=priority,
                function=f"{module}:{op}",
            )
            for op in ("matmul_w8_float", "matmul_fp8", "matmul_rounded", "round_rows")
            for kind, floats, device, predicate, priority, module in (
                ("triton", _HALVES, "cuda", _CAN_USE_FLOAT8, 10, "soroq.kernels.triton.fp8_ops"),
                ("reference", _FLOATS, "any", _ANYTHING, 0, "soroq.kernels.reference.fp8"),
            )
        ),
    )
}
