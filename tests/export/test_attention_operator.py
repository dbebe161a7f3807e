"""soroq's CausalAttention for ONNX Runtime against float64 and the stock operator."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from soroq.core.errors import KernelError
from soroq.export import ort_library
from soroq.export.graph import IR_VERSION, MICROSOFT, OPSET, SOROQ

LIMIT = 1e-5  # float32 in another order of sums; outputs are means of values near 1
D = 32


def _why_not() -> str:
    try:
        ort_library.find_library("skip these tests")
    except KernelError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "there")


@dataclass(frozen=True)
class Case:
    batch: int
    tokens: int
    before: int
    heads: int
    kv_heads: int
    window: int  # 0: none

    @property
    def name(self) -> str:
        return (
            f"B{self.batch}-S{self.tokens}-past{self.before}-heads{self.heads}to{self.kv_heads}"
            f"-window{self.window}"
        )


CASES = [
    Case(1, 1, 0, 4, 1, 0),
    Case(1, 3, 0, 4, 4, 2),
    Case(1, 67, 0, 4, 1, 0),
    Case(1, 67, 0, 4, 1, 5),
    Case(1, 67, 0, 4, 4, 500),
    Case(1, 1, 129, 4, 1, 16),
    Case(1, 5, 131, 4, 1, 0),
    Case(1, 37, 141, 6, 2, 130),
    Case(2, 33, 0, 4, 2, 7),
    Case(3, 1, 19, 4, 1, 0),
    Case(1, 290, 0, 2, 1, 129),  # blocks of 128 keys, begun and left in the middle
]


def _session(case: Case, own: bool) -> onnxruntime.InferenceSession:
    attributes: dict[str, Any] = {"local_window_size": case.window or (0 if own else -1)}
    if not own:
        attributes["do_rotary"] = 0
    names = ["q", "k", "v", "past_key", "past_value", "last", "total"]
    kinds = [TensorProto.FLOAT] * 5 + [TensorProto.INT32] * 2
    node = helper.make_node(
        "CausalAttention" if own else "GroupQueryAttention",
        names,
        ["y", "key", "value"],
        domain=SOROQ if own else MICROSOFT,
        num_heads=case.heads,
        kv_num_heads=case.kv_heads,
        scale=0.3,
        **attributes,
    )
    ranks = [3, 3, 3, 4, 4, 1, 0]
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(n, k, [None] * r)
            for n, k, r in zip(names, kinds, ranks, strict=True)
        ],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * r)
            for n, r in (("y", 3), ("key", 4), ("value", 4))
        ],
    )
    domains = [("", OPSET), (MICROSOFT, 1), (SOROQ, 1)]
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(*domain) for domain in domains],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(ort_library.find_library("skip these tests")))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _feeds(case: Case) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    B, S, P = case.batch, case.tokens, case.before
    return {
        "q": draw(B, S, case.heads * D),
        "k": draw(B, S, case.kv_heads * D),
        "v": draw(B, S, case.kv_heads * D),
        "past_key": draw(B, case.kv_heads, P, D),
        "past_value": draw(B, case.kv_heads, P, D),
        "last": np.full(B, P + S - 1, np.int32),
        "total": np.array(P + S, np.int32),
    }


def _expect(case: Case, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    B, S, P = case.batch, case.tokens, case.before

    def split(x: NDArray[Any], heads: int) -> NDArray[np.float64]:
        return x.astype(np.float64).reshape(B, S, heads, D).transpose(0, 2, 1, 3)

    keys, values = (
        np.concatenate([feeds[f"past_{long}"], split(feeds[short], case.kv_heads)], axis=2)
        for long, short in (("key", "k"), ("value", "v"))
    )
    share = case.heads // case.kv_heads
    q = split(feeds["q"], case.heads)
    scores = 0.3 * q @ keys.repeat(share, 1).transpose(0, 1, 3, 2)
    i, j = np.arange(P, P + S)[:, None], np.arange(P + S)[None]
    seen = (j <= i) & ((i - j < case.window) if case.window else True)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (p / p.sum(-1, keepdims=True)) @ values.repeat(share, 1)
    return [mixed.transpose(0, 2, 1, 3).reshape(B, S, -1), keys, values]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_is_that_of_float64(case: Case) -> None:
    feeds = _feeds(case)
    y, keys, values = _session(case, own=True).run(None, feeds)
    expected, all_keys, all_values = _expect(case, feeds)
    assert np.abs(y - expected).max() < LIMIT
    assert np.array_equal(keys, all_keys.astype(np.float32))
    assert np.array_equal(values, all_values.astype(np.float32))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention_is_that_of_the_stock_operator(case: Case) -> None:
    feeds = _feeds(case)
    own = _session(case, own=True).run(None, feeds)
    stock = _session(case, own=False).run(None, feeds)
    for ours, theirs in zip(own, stock, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < LIMIT


def test_one_buffer_may_be_past_and_present() -> None:
    case = Case(1, 2, 5, 4, 1, 0)
    feeds = _feeds(case)
    expected, keys, values = _expect(case, feeds)
    session = _session(case, own=True)
    binding = session.io_binding()
    room = {}
    for name in ("key", "value"):
        buffer = np.full((1, 1, 16, D), 7, np.float32)
        buffer[:, :, :5] = feeds.pop(f"past_{name}")
        room[name] = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
        binding.bind_ortvalue_input(f"past_{name}", room[name])
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("y")
    for name in ("key", "value"):
        binding.bind_ortvalue_output(name, room[name])
    session.run_with_iobinding(binding)
    assert np.abs(binding.get_outputs()[0].numpy() - expected).max() < LIMIT
    for name, whole in (("key", keys), ("value", values)):
        assert np.array_equal(room[name].numpy()[:, :, :7], whole.astype(np.float32))
        assert (room[name].numpy()[:, :, 7:] == 7).all()


def test_a_length_beyond_the_cache_is_refused() -> None:
    case = Case(1, 2, 5, 4, 1, 0)
    feeds = _feeds(case) | {"last": np.array([40], np.int32)}
    with pytest.raises(Exception, match="last and total don't fit"):
        _session(case, own=True).run(None, feeds)
