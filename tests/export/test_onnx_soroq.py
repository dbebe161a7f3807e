"""Panels under ONNX Runtime: the same bits as soroq._cpu, and folders that say what others say."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from soroq.cli import main
from soroq.core.errors import KernelError, SchemeError
from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs
from soroq.export import onnx_soroq, ort_library
from soroq.export.graph import IR_VERSION, OPSET, SOROQ
from soroq.export.panel_linears import _shape
from soroq.export.session import EVERY, LAST, OnnxDecoder, open_session
from soroq.export.target import ExportRequest, read_export
from soroq.io.checkpoint import open_checkpoint
from soroq.io.stored import StoredWeights
from soroq.kernels import dispatch, panels
from soroq.kernels.cpu.panels import gated_panels, gather_panels, matmul_panels
from soroq.kernels.panels import PanelWeight, pack, pack_pair
from soroq.loading import load
from soroq.models.tiny import write_tiny_model

pytestmark = pytest.mark.skipif(not panels.is_built(), reason="soroq._cpu is not built")

Make = Callable[..., tuple[Path, Path]]
IDS = torch.randint(4, 260, (70,), generator=torch.Generator().manual_seed(0))
INT4 = QuantArgs(bits=4, group_size=32, symmetric=False)
INT8_ROWS = QuantArgs(bits=8, group_size=None)
# Logits relative to their norm, against PyTorch with activations as they are: float32 in another
# order of sums; 15 bits; 8 bits for each chunk of 32 columns, of prompts.
CLOSE = {"exact": 1e-5, "int16": 1e-3, "int8": 5e-2}
SHAPES = [  # M, N, K, group (None: the row), bits
    (1, 64, 128, 128, 4),
    (2, 1, 8, 8, 4),
    (3, 65, 96, 32, 4),
    (17, 130, 320, 64, 4),
    (5, 70, 300, None, 4),
    (65, 33, 36, None, 8),
    (4, 100, 640, 128, 8),
    (300, 65, 96, None, 16),
    (1, 3, 7, None, 16),
]


def _library() -> str:
    """Return '' if libsoroq_ort is there, else why not."""
    try:
        ort_library.find_library("skip these tests")
    except KernelError as error:
        return str(error)
    return ""


needs_library = pytest.mark.skipif(bool(_library()), reason=_library() or "there")


def _weight(N: int, K: int, group: int | None, bits: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if bits == 16:
        return torch.randn(N, K, generator=generator).to(torch.bfloat16)
    half, n_groups = 1 << (bits - 1), K // (group or K)
    codes = torch.randint(-half, half, (N, K), generator=generator).to(torch.int8)
    scales = torch.rand(N, n_groups, generator=generator) * 0.01 + 0.001
    zeros = torch.randint(-half, half, (N, n_groups), generator=generator).to(torch.int8)
    symmetric = bits == 8
    dtype = torch.bfloat16 if (N + K) % 2 else torch.float32
    args = QuantArgs(bits=bits, group_size=group, symmetric=symmetric)
    return QuantizedTensor(codes, scales.to(dtype), None if symmetric else zeros, args)


def _session(
    op: str,
    weight: PanelWeight,
    first: Any,
    *,
    data: Path | None = None,
    offset: int = 0,
    bias: torch.Tensor | None = None,
    **attributes: Any,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of one node: its panels in the model, or at an offset of a file."""
    import onnxruntime

    blob = numpy_helper.from_array(weight.data.numpy(), "panels")
    if data is not None:
        data.write_bytes(bytes(offset) + weight.data.numpy().tobytes())
        blob = TensorProto(name="panels", data_type=TensorProto.UINT8, dims=[weight.nbytes])
        blob.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", offset), ("length", weight.nbytes)):
            blob.external_data.add(key=key, value=str(value))
    tensors, inputs = [blob], ["first", "panels"]
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias.numpy(), "bias"))
        inputs.append("bias")
    node = helper.make_node(op, inputs, ["y"], domain=SOROQ, **_shape(weight), **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("first", first, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(SOROQ, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    ort_library.use_library(options, "1", None)
    where: Any = model.SerializeToString()
    if data is not None:
        where = str(data.with_suffix(".onnx"))
        Path(where).write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"first": x.numpy()})[0])


@needs_library
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"M{s[0]}-N{s[1]}-K{s[2]}-int{s[4]}")
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
def test_products_equal_those_of_soroq_cpu_bit_for_bit(
    shape: tuple[int, int, int, int | None, int], precision: str
) -> None:
    M, N, K, group, bits = shape
    weight, bias = pack(_weight(N, K, group, bits)), torch.randn(N)
    x = torch.randn(M, K)
    how = {"precision": precision, "few_precision": precision}
    y = _session("MatMulPanels", weight, TensorProto.FLOAT, bias=bias, **how)(x)
    assert torch.equal(y, matmul_panels(x, weight, precision=precision, bias=bias))
    y = _session("MatMulPanels", weight, TensorProto.FLOAT, **how)(x.view(M, 1, K))
    assert torch.equal(y, matmul_panels(x, weight, precision=precision).view(M, 1, N))


@needs_library
@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_gated_products_equal_those_of_soroq_cpu_bit_for_bit(bits: int, activation: str) -> None:
    weight = pack_pair(_weight(70, 96, None, bits, 1), _weight(70, 96, None, bits, 2))
    how = {"precision": "int8", "few_precision": "int16", "activation": activation, "rows": 70}
    run = _session("GatedPanels", weight, TensorProto.FLOAT, **how)
    for M in (1, 2, 3, 17):
        x = torch.randn(M, 96)
        used = "int16" if M <= 2 else "int8"
        assert torch.equal(run(x), gated_panels(x, weight, precision=used, activation=activation))


@needs_library
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_gathered_rows_equal_those_of_soroq_cpu_bit_for_bit(bits: int) -> None:
    weight = pack(_weight(130, 36, None, bits))
    run = _session("GatherPanels", weight, TensorProto.INT64, scale=1.5)
    ids = torch.randint(0, 130, (3, 5))
    want = gather_panels(ids.flatten(), weight, torch.float32) * 1.5
    assert torch.equal(run(ids), want.view(3, 5, 36))
    assert torch.equal(run(ids[:1, :1]), want[:1].view(1, 1, 36))
    with pytest.raises(Exception, match=r"row 130 is not in 0\.\.129"):
        run(torch.tensor([[130]]))


@needs_library
@pytest.mark.parametrize("offset", [0, 64, 8, 3])
def test_weights_in_a_file_may_begin_anywhere(offset: int, tmp_path: Path) -> None:
    weight = pack(_weight(130, 256, 64, 4))
    how = {"precision": "int8", "few_precision": "int8"}
    run = _session(
        "MatMulPanels", weight, TensorProto.FLOAT, data=tmp_path / "data", offset=offset, **how
    )
    x = torch.randn(7, 256)
    assert torch.equal(run(x), matmul_panels(x, weight, precision="int8"))


@needs_library
def test_wrong_inputs_are_one_message() -> None:
    weight = pack(_weight(65, 96, 32, 4))
    how = {"precision": "int8", "few_precision": "int8"}
    with pytest.raises(Exception, match="x has 95 columns, must have K = 96"):
        _session("MatMulPanels", weight, TensorProto.FLOAT, **how)(torch.randn(2, 95))
    with pytest.raises(Exception, match=r"bias must be \(N\)"):
        run = _session("MatMulPanels", weight, TensorProto.FLOAT, bias=torch.randn(64), **how)
        run(torch.randn(2, 96))
    with pytest.raises(Exception, match="precision is exact, int8-coarse, int8 or int16, not int4"):
        _session("MatMulPanels", weight, TensorProto.FLOAT, precision="int4", few_precision="int8")
    short = PanelWeight(weight.data[64:], 65, 96, 4, 32, False, weight.scale_dtype)
    with pytest.raises(Exception, match=r"panels of this shape take \d+ bytes, not \d+"):
        _session("MatMulPanels", short, TensorProto.FLOAT, **how)


THREADS = """
import ctypes, sys
import onnxruntime
from soroq.export.ort_library import find_library, use_library
library = ctypes.CDLL(str(find_library("")))
print(library.SoroqNumThreads())
use_library(onnxruntime.SessionOptions(), "1", 2)
print(library.SoroqNumThreads())
print("torch" in sys.modules)
"""


@needs_library
def test_threads_are_those_of_the_variable_then_of_the_session() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**os.environ, "SOROQ_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["3", "2", "False"]


@needs_library
def test_the_library_has_two_names_and_needs_neither_python_nor_torch() -> None:
    """soroq._cpu in the same process has functions of the same names."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("nm and readelf (binutils) are not installed")
    library = str(ort_library.find_library(""))
    lines = _output("nm", "-D", "--defined-only", library).splitlines()
    names = {line.split()[2] for line in lines if line.split()[1] in "TDB"}
    assert names == {"RegisterCustomOps", "SoroqNumThreads"}
    needed = [line for line in _output("readelf", "-d", library).splitlines() if "NEEDED" in line]
    assert needed and not any("python" in line or "torch" in line for line in needed)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _error(a: Any, b: torch.Tensor) -> float:
    return float((torch.as_tensor(a).float() - b).norm() / b.norm())


@needs_library
@pytest.mark.parametrize("precision", ["exact", "int16", "int8"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_logits_and_greedy_tokens_equal_pytorch(
    model_type: str, precision: str, exported: Make
) -> None:
    embed = INT4 if model_type == "gemma3_text" else None
    source, folder = exported(model_type, embed=embed, precision=precision, target="onnx-soroq")
    network = load(source, packed=False)
    with torch.no_grad():
        want = network(IDS[None]).logits[0]
    every = OnnxDecoder(folder, graph=EVERY, capacity=16)
    for pieces in ([70], [1] * 70, [2, 3, 65]):
        every.rewind()
        rows = [every.step(part.tolist()).reshape(len(part), -1) for part in IDS.split(pieces)]
        assert _error(np.concatenate(rows), want) < CLOSE[precision]
    if precision == "int8":
        return
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        tokens = network.generate(IDS[None, :10], max_new_tokens=30, **settings)[0, 10:]
    last = OnnxDecoder(folder)
    assert list(last.generate(IDS[:10].tolist(), max_new_tokens=30)) == tokens.tolist()


@needs_library
@pytest.mark.parametrize(
    ("scheme", "embed"),
    [("int4-rtn", INT8_ROWS), ("int8-rtn", None), ("fp8-rtn", None), ("", None)],
)
def test_all_formats_say_what_the_plain_export_says(
    scheme: str, embed: QuantArgs | None, exported: Make, tmp_path: Path
) -> None:
    source, folder = exported("gemma3_text", scheme, embed=embed, target="onnx-soroq")
    from soroq.export import onnx_cpu

    request = ExportRequest(str(source), tmp_path / "plain", precision="exact")
    onnx_cpu.export(request, lambda line: None)
    want = OnnxDecoder(tmp_path / "plain", graph=EVERY).step(IDS.tolist())
    given = OnnxDecoder(folder, graph=EVERY).step(IDS.tolist())
    assert _error(given, torch.from_numpy(want)) < CLOSE["exact"]


def _nodes(folder: Path) -> tuple[list[Any], dict[str, Any]]:
    model = onnx.load(folder / "onnx" / LAST)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return list(model.graph.node), tensors


def test_the_graph_holds_the_panels_once(exported: Make) -> None:
    source, folder = exported(embed=INT4, precision="int8", target="onnx-soroq")
    nodes, tensors = _nodes(folder)
    own = [node for node in nodes if node.domain == SOROQ]
    assert sum(n.op_type == "CausalAttention" for n in own) == 3  # one a block
    own = [node for node in own if node.op_type != "CausalAttention"]
    assert [n.op_type for n in own[:5]] == [
        "GatherPanels", "MatMulPanels", "MatMulPanels", "GatedPanels", "MatMulPanels",
    ]  # fmt: skip
    assert own[0].input[1] == own[-1].input[1]  # embedding and head
    assert not any("NBits" in n.op_type or "Quantized" in n.op_type for n in nodes)
    stored = StoredWeights(open_checkpoint(source))
    down = pack(stored.open("model.layers.0.mlp.down_proj"))
    assert (tensors[own[4].input[1]] == down.data.numpy()).all()
    gate, up = (stored.open(f"model.layers.0.mlp.{part}_proj") for part in ("gate", "up"))
    assert (tensors[own[3].input[1]] == pack_pair(gate, up).data.numpy()).all()
    qkv = torch.cat([stored.load_quantized(f"model.layers.0.self_attn.{p}_proj")[0].codes
                     for p in "qkv"])  # fmt: skip
    shape = {a.name: helper.get_attribute_value(a) for a in own[1].attribute}
    kept = torch.bfloat16 if shape["bf16_scales"] else torch.float32
    data = torch.from_numpy(tensors[own[1].input[1]].copy())
    weight = PanelWeight(
        data, shape["N"], shape["K"], 4, shape["group_size"], bool(shape["symmetric"]), kept
    )
    assert torch.equal(panels.read_codes(weight)[0].to(torch.int8), qkv)
    precisions = {
        tuple(a.s.decode() for a in n.attribute if "precision" in a.name) for n in own[1:-1]
    }
    assert len(precisions) == 1 and {a.s for a in own[-1].attribute if a.type == 3} == {b"int16"}


def test_a_plain_folder_imports_no_domain_of_ours(exported: Make) -> None:
    model = onnx.load(exported()[1] / "onnx" / LAST, load_external_data=False)
    assert SOROQ not in {opset.domain for opset in model.opset_import}


class TestWithoutTheLibrary:
    @pytest.fixture(autouse=True)
    def hide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ort_library.VARIABLE, "nowhere.so")

    def test_a_folder_says_what_to_do(
        self, exported: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = exported(target="onnx-soroq")[1]
        manifest = read_export(folder)
        assert manifest is not None and manifest.requires["libsoroq_ort"] == "2"
        wanted = "is no file; name libsoroq_ort.*onnx-cpu"
        with pytest.raises(KernelError, match=wanted):
            open_session(folder)
        monkeypatch.setattr("sys.argv", ["soroq", "run", str(folder), "-p", "x"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_an_export_that_is_to_be_checked_writes_nothing(self, tmp_path: Path) -> None:
        source = write_tiny_model(tmp_path / "base")
        request = ExportRequest(str(source), tmp_path / "onnx")
        with pytest.raises(KernelError, match="--no-parity exports without it"):
            onnx_soroq.export(request, lambda line: None, lambda folder: {})
        assert not any(p.name.startswith("onnx") for p in tmp_path.iterdir())

    def test_a_file_that_is_no_library(
        self, exported: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = exported(target="onnx-soroq")[1]
        (tmp_path / "lib.so").write_text("no")
        monkeypatch.setenv(ort_library.VARIABLE, str(tmp_path / "lib.so"))
        with pytest.raises(KernelError, match=r"lib.so can't be loaded: .*; build it anew, or use"):
            open_session(folder)

    def test_newer_operators(self, exported: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = exported(target="onnx-soroq")[1]
        monkeypatch.setattr(ort_library, "OPSET", 1)
        with pytest.raises(KernelError, match="needs libsoroq_ort 2, this soroq's is 1"):
            open_session(folder)


@pytest.mark.parametrize(
    ("compute", "precision", "message"),
    [
        ("float16", "int8", "computes in float32"),
        ("float32", "int8-fine", "not one of int8, int16, exact"),
    ],
)
def test_what_panels_do_not_do_is_refused(
    compute: str, precision: str, message: str, tmp_path: Path
) -> None:
    request = ExportRequest("nowhere", tmp_path / "onnx", compute, precision)
    with pytest.raises(SchemeError, match=message):
        onnx_soroq.export(request)
