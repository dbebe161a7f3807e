"""onnx-soroq: the folder of onnx-cpu with soroq's own kernels in ONNX Runtime.

    soroq export gemma3-270m-int4 --target onnx-soroq -o out-soroq

Weights are stored in panels, once, which only libsoroq_ort reads (kernels/cpu/ort). Where it can't
be had a folder of onnx-cpu is what to use: the same codes, ONNX Runtime's own kernels. Both in one
folder would be twice the bytes.
"""

from soroq.core.errors import KernelError, SchemeError
from soroq.export.graph import GraphBuilder
from soroq.export.linears import LinearWriter
from soroq.export.onnx_cpu import export_folder
from soroq.export.ort_library import NAME, OPSET, find_library
from soroq.export.panel_linears import PRECISIONS, PanelLinears
from soroq.export.target import Check, ExportManifest, ExportRequest, Say
from soroq.export.tensors import FILE_LIMIT
from soroq.io.checkpoint import Checkpoint
from soroq.kernels.panels import is_built

TARGET = "onnx-soroq"


def export(
    request: ExportRequest, say: Say = print, check: Check | None = None, limit: int = FILE_LIMIT
) -> ExportManifest:
    """Do as `soroq.export.onnx_cpu.export`.

    Raises KernelError where there is nothing to make panels with, or to check the folder with.
    """
    if request.compute != "float32":
        raise SchemeError(f"--compute {request.compute!r}: --target {TARGET} computes in float32")
    if request.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise SchemeError(
            f"--precision {request.precision!r} is not one of {known} of --target {TARGET}"
        )
    if not is_built():
        raise KernelError(f"--target {TARGET} needs soroq._cpu, which is not built; pip install .")
    if check is not None:
        find_library("--no-parity exports without it")

    def linears(graph: GraphBuilder, checkpoint: Checkpoint) -> LinearWriter:
        return PanelLinears(graph, checkpoint, precision=request.precision)

    return export_folder(request, TARGET, linears, {NAME: str(OPSET)}, say, check, limit)
