"""TARGETS: formats that a checkpoint is exported to, "module:function" by name; one line each.

A target's function takes an `ExportRequest` and returns the folder's manifest.
"""

TARGETS = {
    "onnx-cpu": "soroq.export.onnx_cpu:export",
    "onnx-soroq": "soroq.export.onnx_soroq:export",
}
