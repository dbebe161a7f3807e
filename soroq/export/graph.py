"""GraphBuilder: nodes, constants and weights of one ONNX graph, by name.

y = graph.node("Add", [x, graph.constant(1)], "layers.0/add")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

import soroq
from soroq.export.ort_library import OPSET as SOROQ_OPSET
from soroq.export.tensors import ONNX_TYPES, ExternalData
from soroq.io.writer import atomic_write

OPSET = 21
MICROSOFT_OPSET = 1
IR_VERSION = 10
MICROSOFT = "com.microsoft"
SOROQ = "soroq"  # libsoroq_ort's operators


class GraphBuilder:
    """Collects a graph whose weights lie in `data`. Values are known by their names.

    compute: the type that floating values have between nodes.
    """

    def __init__(self, data: ExternalData, compute: torch.dtype) -> None:
        self.data, self.compute = data, compute
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def node(
        self, op: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node with one output, called as the node; return its name."""
        return self.nodes_of(op, inputs, [name], domain=domain, **attributes)[0]

    def nodes_of(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node with several outputs ('' for one that nobody wants); return their names."""
        node = helper.make_node(
            op, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes
        )
        self.nodes.append(node)
        return list(outputs)

    def constant(self, value: int | Sequence[int]) -> str:
        """Return the name of an int64 constant, a scalar or a list; equal ones are one."""
        shape = [] if isinstance(value, int) else [len(value)]
        values = [value] if isinstance(value, int) else list(value)
        key = (*shape, *values)
        if key not in self._constants:
            name = "constants/" + "_".join(str(v).replace("-", "m") for v in (*values, *shape))
            self.tensors[name] = helper.make_tensor(name, TensorProto.INT64, shape, values)
            self._constants[key] = name
        return self._constants[key]

    def scalar(self, name: str, value: float) -> str:
        """Return the name of a scalar in the compute type."""
        kind = ONNX_TYPES[self.compute]
        self.tensors[name] = helper.make_tensor(name, kind, [], [value])
        return name

    def weight(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> str:
        """Store a tensor as it is; return its name in `dtype`, by default the compute type.

        Where the types differ a Cast stands behind it, which ONNX Runtime does once, when it loads.
        """
        return self.weight_of(name, [tensor], tensor.shape, dtype)

    def weight_of(
        self,
        name: str,
        parts: Sequence[torch.Tensor],
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> str:
        """Do as `weight` with a tensor given in parts that lie one behind the other."""
        stored, wanted = parts[0].dtype, dtype or self.compute
        self.tensors[name] = self.data.add(name, stored, shape, parts)
        if stored == wanted:
            return name
        cast = f"{name}/cast"
        return self.node("Cast", [name], cast, to=ONNX_TYPES[wanted])

    def view(self, name: str, other: str, shape: Sequence[int]) -> str:
        """Return a weight over the bytes of another one, which the file holds once."""
        self.tensors[name] = self.data.view(name, self.tensors[other], shape)
        return name

    def save(
        self,
        path: Path,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        nodes: Sequence[NodeProto] | None = None,
    ) -> None:
        """Write the graph, or the one of other nodes, with the tensors that its nodes use."""
        chosen = self.nodes if nodes is None else list(nodes)
        used = {name for node in chosen for name in node.input}
        tensors = [tensor for name, tensor in self.tensors.items() if name in used]
        graph = helper.make_graph(chosen, "decoder", list(inputs), list(outputs), tensors)
        opsets = {"": OPSET, MICROSOFT: MICROSOFT_OPSET}
        if any(node.domain == SOROQ for node in chosen):
            opsets[SOROQ] = SOROQ_OPSET
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
            ir_version=IR_VERSION,
            producer_name="soroq",
            producer_version=soroq.__version__,
        )
        atomic_write(path, model.SerializeToString(deterministic=True))
