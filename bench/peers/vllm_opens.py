"""Ask vLLM's own classes whether they open what soroq writes, without a GPU.

    PYTHONPATH=SOROQ python bench/peers/vllm_opens.py > tests/io/golden/vllm.json

In an environment where `import vllm` works (the wheel's Python files and its light dependencies are
enough, no CUDA): each scheme in each format gets its `quantization_config` and one linear's tensors
from soroq; vLLM's config class parses the first, its linear method creates the parameters it would
load into, and names, shapes and dtypes are compared. AWQ's words also go through vLLM's own
conversion, which must give the codes back. vLLM is told it sits on an H100. Not asked: which kernel
runs float8 (needs vLLM's compiled library), and what numbers come out.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import vllm.platforms
from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum


class _Hopper(Platform):  # type: ignore[misc]  # no types without vLLM
    _enum = PlatformEnum.UNSPECIFIED  # until all is imported: CUDA's imports want compiled code
    device_name, device_type = "cuda", "cpu"

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(9, 0)


vllm.platforms._current_platform = _Hopper()  # before the modules that read it at import

import vllm  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.model_executor.layers.linear import LinearBase  # noqa: E402
from vllm.model_executor.layers.quantization import auto_awq  # noqa: E402
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig  # noqa: E402
from vllm.model_executor.layers.quantization.compressed_tensors import (  # noqa: E402
    compressed_tensors,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (  # noqa: E402
    compressed_tensors_w8a8_fp8 as w8a8_fp8,
)

from soroq.core.qtensor import QuantizedTensor  # noqa: E402
from soroq.core.scheme import QuantArgs  # noqa: E402
from soroq.core.schemes import get_scheme  # noqa: E402
from soroq.io.formats.registry import FORMATS  # noqa: E402

SHAPES = {"even": (256, 640), "odd": (96, 160)}  # Gemma 3 270M's k_proj, and one off vLLM's tiles
MODULE = "model.layers.0.self_attn.k_proj"
CONFIGS = {"gptq": AutoGPTQConfig, "awq": auto_awq.AutoAWQConfig}


def cases() -> list[tuple[str, QuantArgs, QuantArgs | None]]:
    """Return (name, weight numbers, activation numbers) of every scheme's numbers."""
    found: list[tuple[str, QuantArgs, QuantArgs | None]] = []
    for symmetric in (False, True):
        for group in (16, 32, 64, 128, None):
            scheme = get_scheme("int4-rtn", group_size=group, symmetric=symmetric)
            name = f"int4-{'sym' if symmetric else 'asym'}-{group or 'row'}"
            found.append((name, scheme.weight, None))
    for group in (128, None):
        found.append(
            (f"int8-{group or 'row'}", get_scheme("int8-rtn", group_size=group).weight, None)
        )
    for name in ("fp8", "fp8-static", "fp8-block"):
        scheme = get_scheme(name)
        found.append((name, scheme.weight, scheme.activation))
    return found


def weight_of(args: QuantArgs, shape: tuple[int, int]) -> QuantizedTensor:
    """Return a weight of these numbers: random codes and zero points, scales of 1."""
    N, K = shape
    if args.block is not None:
        scales = torch.ones(-(-N // args.block[0]), -(-K // args.block[1]))
    else:
        scales = torch.ones(N, K // (args.group_size or K), dtype=torch.bfloat16)
    if args.dtype == "float":
        return QuantizedTensor(torch.ones(N, K).to(torch.float8_e4m3fn), scales, None, args)
    # no zero point of 0: GPTQ v1 has no place for it
    codes = torch.randint(args.code_min, args.code_max + 1, (N, K), dtype=torch.int8)
    zeros = None if args.symmetric else codes[:, : scales.shape[1]].clamp(min=args.code_min + 1)
    return QuantizedTensor(codes, scales, zeros, args)


def ask(config: dict[str, Any], stored: dict[str, torch.Tensor], shape: tuple[int, int]) -> str:
    """Return the class of vLLM's that takes the tensors. Raises what vLLM raises, or ValueError."""
    N, K = shape
    layer = torch.nn.Module.__new__(LinearBase)
    torch.nn.Module.__init__(layer)
    layer.input_size, layer.output_size = K, N
    kind = CONFIGS.get(config["quant_method"], compressed_tensors.CompressedTensorsConfig)
    method = kind.from_config(config).get_quant_method(layer, MODULE)
    if method is None or type(method).__name__ == "UnquantizedLinearMethod":
        raise ValueError("taken for a linear that is not quantized")
    method.create_weights(
        layer, K, [N], K, N, torch.bfloat16, weight_loader=lambda parameter, loaded: None
    )
    scheme = getattr(layer, "scheme", method)
    wanted = {name: value for name, value in layer.named_parameters() if name != "input_scale"}
    loaded = kind.get_checkpoint_weight_mapper().apply(stored.items())
    got = {name.removeprefix(MODULE + "."): value for name, value in loaded}
    if wanted.keys() != got.keys():
        raise ValueError(f"vLLM has parameters {sorted(wanted)}, soroq wrote {sorted(got)}")
    for name, value in wanted.items():
        floats = value.is_floating_point() and value.dtype.itemsize > 1  # copy_ casts those
        same = value.shape == got[name].shape and (
            floats == (got[name].is_floating_point() and got[name].dtype.itemsize > 1)
            and (floats or value.dtype == got[name].dtype)
        )
        if not same:
            raise ValueError(
                f"{name}: vLLM has {tuple(value.shape)} {value.dtype}, soroq wrote "
                f"{tuple(got[name].shape)} {got[name].dtype}"
            )
    kernel = getattr(scheme, "kernel", None)
    return type(scheme).__name__ + (f", {type(kernel).__name__}" if kernel else "")


def check_awq_words() -> None:
    """Stop unless vLLM's own conversion of soroq's AWQ words gives the codes back."""
    N, K = SHAPES["even"]
    weight = weight_of(get_scheme("int4-rtn", group_size=64, symmetric=False).weight, (N, K))
    stored = FORMATS["awq"].encode("m", weight)
    layer = torch.nn.Module()
    for name in ("qweight", "qzeros"):
        layer.register_parameter(name, torch.nn.Parameter(stored[f"m.{name}"], False))
    auto_awq._convert_awq_to_standard_format(layer, "qweight", "qzeros", 4)
    qweight, qzeros = (layer.get_parameter(name).data.t() for name in ("qweight", "qzeros"))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((qweight.unsqueeze(-1) >> shifts) & 15).reshape(N, K)
    zeros = ((qzeros.unsqueeze(-1) >> shifts) & 15).reshape(-1, N).t()
    assert weight.zeros is not None
    if not torch.equal(codes - 8, weight.codes.int()):
        raise SystemExit("vLLM reads other codes than soroq wrote as AWQ")
    if not torch.equal(zeros - 8, weight.zeros.int()):
        raise SystemExit("vLLM reads other zero points than soroq wrote as AWQ")


def main() -> None:
    _Hopper._enum = PlatformEnum.CUDA
    parallel_state._TP = SimpleNamespace(world_size=1, rank_in_group=0)
    engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.bfloat16))
    w8a8_fp8.get_current_vllm_config = lambda: engine
    w8a8_fp8.init_fp8_linear_kernel = lambda **_: None
    w8a8_fp8.expose_input_quant_key = lambda *_: None
    check_awq_words()
    answers = []
    for name, weight, activation in cases():
        for format_name in ("compressed-tensors", "gptq", "gptq-v2", "awq"):
            format_ = FORMATS[format_name]
            for size, shape in SHAPES.items():
                if weight.group_size and shape[1] % weight.group_size:
                    continue
                if format_.refuses(weight, activation, shape):
                    continue
                config = format_.config({MODULE: (weight, activation)}, [])
                stored = format_.encode(MODULE, weight_of(weight, shape))
                answer = {"case": name, "format": format_name, "shape": size, "config": config}
                try:
                    answer["opens"] = ask(json.loads(json.dumps(config)), stored, shape)
                except (ValueError, NotImplementedError) as error:
                    answer["refuses"] = str(error).splitlines()[0]
                answers.append(answer)
    json.dump({"vllm": vllm.__version__, "answers": answers}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
