"""A GGUF file whose quantized matrices stay as they are stored: codes, scales, zero points.

    weights = StoredWeights(open_stored("model-Q4_0.gguf"))
    weights.load_quantized("model.layers.0.mlp.up_proj")

Q4_0, Q8_0, and those Q4_1 that have whole zero points, are presented as tensors of the
compressed-tensors format (`X.weight_packed`, …) with a `quantization_config`, so that everything
that runs, inspects or converts soroq's own checkpoints takes them too. Tensors of other types are
expanded to bfloat16, as `soroq.io.gguf` does with all of them.
"""

from pathlib import Path

import torch

from soroq.core.packing import pack_columns
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import Scheme
from soroq.io.checkpoint import TensorInfo
from soroq.io.formats import compressed_tensors
from soroq.io.formats.gguf import READABLE, decode
from soroq.io.gguf import GgufCheckpoint


class PackedGguf(GgufCheckpoint):
    """The tensors of one GGUF file under Hugging Face names, quantized ones in their parts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._last: tuple[str, dict[str, torch.Tensor]] = "", {}
        self._module_of: dict[str, str] = {}
        self._infos: dict[str, TensorInfo] = {}
        schemes: dict[str, Scheme] = {}
        for name, tensor in self._tensors.items():
            if len(tensor.shape) != 2 or self._kind(name) not in READABLE:
                continue
            module = name.removesuffix(".weight")
            # only of Q4_1 the values decide
            whole = self._kind(name) != "Q4_1"
            weight = self._decode(name, 1 if whole else None)
            if weight is not None:
                schemes[module] = Scheme(
                    "gguf", "", weight.args, "rtn", compressed_tensors.PACK, None
                )
                self._add_parts(module, weight, tensor.shape)
        if not schemes:
            return
        parts = {f"{module}.weight" for module in schemes}
        ignored = [
            name.removesuffix(".weight")
            for name, tensor in self._tensors.items()
            if name not in parts and len(tensor.shape) == 2
        ]
        # an embedding apart: one group alone would be said to be every Linear
        embedding = "model.embed_tokens"
        embed = schemes.pop(embedding).weight if embedding in schemes else None
        self.config["quantization_config"] = compressed_tensors.quantization_config(
            schemes, ignored, embedding, embed
        )

    def _add_parts(self, module: str, weight: QuantizedTensor, shape: tuple[int, ...]) -> None:
        N, K = shape
        bits, groups = weight.args.bits, K // (weight.args.group_size or K)
        words = N * (K * bits // 32)
        infos = {
            "weight_packed": TensorInfo((N, K * bits // 32), torch.int32, 4 * words),
            "weight_scale": TensorInfo((N, groups), torch.float16, 2 * N * groups),
            "weight_shape": TensorInfo((2,), torch.int64, 16),
        }
        if weight.zeros is not None:
            zeros = pack_columns(torch.zeros(N, groups, dtype=torch.int8), bits)
            infos["weight_zero_point"] = TensorInfo(tuple(zeros.shape), torch.int32, zeros.nbytes)
        for part, info in infos.items():
            self._infos[f"{module}.{part}"] = info
            self._module_of[f"{module}.{part}"] = module

    def names(self) -> list[str]:
        quantized = {f"{module}.weight" for module in self._module_of.values()}
        return sorted([*self._infos, *(name for name in self._tensors if name not in quantized)])

    def info(self, name: str) -> TensorInfo:
        return self._infos[name] if name in self._infos else super().info(name)

    def _load(self, name: str) -> torch.Tensor:
        if name not in self._infos:
            return super()._load(name)
        module = self._module_of[name]
        if module != self._last[0]:  # its parts are asked for one by one
            weight = self._decode(f"{module}.weight", None)
            assert weight is not None
            self._last = module, compressed_tensors.encode(module, weight)
        return self._last[1][name]

    def _load_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self._load(name)[rows] if name in self._infos else super()._load_rows(name, rows)

    def _decode(self, name: str, n_rows: int | None) -> QuantizedTensor | None:
        """Return a matrix or its first rows, None if QuantizedTensor can't mean its blocks."""
        raw = torch.from_numpy(self._read(name, 0, n_rows))
        if self.architecture == "llama" and n_rows is None:
            raw = self._undo_rotary_order(self._tensors[name].name, raw)
        return decode(self._kind(name), raw)
