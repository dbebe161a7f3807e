"""ONNX models under the checker: the torch model's own numbers, with and without a cache."""

import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from soroq.bench.quality.check import CheckRequest, check
from soroq.bench.quality.model import CHUNK, find_source, model_key, open_model
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.tasks.harness import run_harness
from soroq.core.errors import CheckError
from soroq.loading import load
from soroq.models.tiny import write_tiny_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LOG_P_ATOL = 1e-4  # float32, other order of sums: 2e-5 was seen
HALF_ATOL = {"FLOAT16": 0.02, "BFLOAT16": 0.15}  # keys and values rounded: 0.006, 0.04 seen
SIDE = ("config.json", "tokenizer.json", "tokenizer_config.json")
LAYERS, VOCABULARY = 2, 300
TEXT = "Душанбе пойтахти Тоҷикистон аст. Дар мактаб хонандагон китоб мехонанд. "
KINDS = ["plain", "cached"]


class _Plain(torch.nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, use_cache=False).logits
        return logits


class _Cached(_Plain):
    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> Any:
        from transformers import DynamicCache

        out = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(ddp_cache_data=past),
            use_cache=True,
        )
        return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]


def _export(module: torch.nn.Module, inputs: tuple[Any, ...], file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, file, dynamo=True, opset_version=21, verbose=False, **options
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny Gemma 3 as a checkpoint ("torch") and as two ONNX folders."""
    folder = tmp_path_factory.mktemp("onnx")
    base = write_tiny_model(folder / "torch", num_hidden_layers=LAYERS)
    network = load(base)
    network.set_attn_implementation("eager")
    ids = torch.ones(1, 5, dtype=torch.int64)
    _export(
        _Plain(network),
        (ids,),
        folder / "plain" / "model.onnx",
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {1: "s"}},
        external_data=False,
    )
    parts = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    past = [(torch.randn(1, 2, 7, 32), torch.randn(1, 2, 7, 32)) for _ in range(LAYERS)]
    _export(
        _Cached(network),
        (ids, torch.ones(1, 12, dtype=torch.int64), torch.arange(7, 12)[None], past),
        folder / "cached" / "onnx" / "model.onnx",
        input_names=[
            "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{p}" for p in parts)
        ],
        output_names=["logits", *(f"present.{p}" for p in parts)],
        dynamic_shapes={
            "input_ids": {1: "s"},
            "attention_mask": {1: "t"},
            "position_ids": {1: "s"},
            "past": [({2: "p"}, {2: "p"})] * LAYERS,
        },
    )  # fmt: skip
    for kind in KINDS:
        for name in SIDE:
            shutil.copy(base / name, folder / kind / name)
    return {kind: folder / kind for kind in ("torch", *KINDS)}


def _bigrams(
    folder: Path, *, inputs: dict[str, list[Any]] | None = None, output: str = "logits",
    width: int = VOCABULARY, integer: str = "INT64",
) -> Path:  # fmt: skip
    """Write a graph whose logits are a table's rows: token t is followed by t + 1."""
    from onnx import TensorProto, helper, numpy_helper

    write_tiny_model(folder, num_hidden_layers=1)
    (folder / "model.safetensors").unlink()
    table = torch.roll(torch.eye(VOCABULARY), 1, 1)[:, :width].contiguous().numpy()
    given = inputs or {"input_ids": [1, "s"]}
    number = getattr(TensorProto, integer)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", next(iter(given))], [output])],
        "bigrams",
        [helper.make_tensor_value_info(name, number, shape) for name, shape in given.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "s", "v"])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(4, 260, (3, 2 * CHUNK + 22), generator=torch.Generator().manual_seed(1))


def _windows(source: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return all log-probabilities; spans follow one another and are at most CHUNK long."""
    found, stop = [], 0
    for span, log_p in open_model(str(source)).score_windows(ids):
        assert span.start == stop
        assert len(log_p) == span.stop - span.start <= CHUNK
        stop = span.stop
        found.append(log_p.clone())
    assert stop == ids.shape[0] * (ids.shape[1] - 1)
    return torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_torch(
    kind: str, models: dict[str, Path], ids: torch.Tensor
) -> None:
    expected = _windows(models["torch"], ids)
    torch.testing.assert_close(_windows(models[kind], ids), expected, atol=LOG_P_ATOL, rtol=0)
    short = _windows(models[kind], ids[:1, : CHUNK + 2])  # the last slice is one position
    torch.testing.assert_close(short, expected[: CHUNK + 1], atol=LOG_P_ATOL, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_continuations_score_as_with_torch(
    kind: str, models: dict[str, Path], ids: torch.Tensor
) -> None:
    context = ids[0].tolist()
    choices = [[5, 6], [7], ids[1, : CHUNK + 9].tolist(), [5, 6]]
    got = open_model(str(models[kind])).score_continuations(context, choices)
    expected = open_model(str(models["torch"])).score_continuations(context, choices)
    assert got == pytest.approx(expected, abs=LOG_P_ATOL)
    assert got[0] == got[3]  # continuations leave the context's cache alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{"eos_token_id": [1]}, {"eos_token_id": 1, "repetition_penalty": 1.5}]
)
def test_greedy_tokens_are_those_of_torch(
    kind: str, settings: dict[str, Any], models: dict[str, Path], ids: torch.Tensor, tmp_path: Path
) -> None:
    for name in ("torch", kind):
        shutil.copytree(models[name], tmp_path / name)
        (tmp_path / name / "generation_config.json").write_text(json.dumps(settings))
    prompt = ids[2, : CHUNK + 5].tolist()
    got = open_model(str(tmp_path / kind)).generate(prompt, 24)
    assert got == open_model(str(tmp_path / "torch")).generate(prompt, 24)
    assert len(got) == 24


def test_generation_ends_with_the_end_token(tmp_path: Path) -> None:
    folder = _bigrams(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for end, expected in (
        (14, [11, 12, 13, 14]),
        ([13, 12], [11, 12]),
        (None, list(range(11, 17))),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": end}))
        assert open_model(str(folder)).generate([9, 10], 6) == expected


@pytest.mark.parametrize("dtype", HALF_ATOL)
def test_caches_have_the_type_that_the_graph_declares(
    dtype: str, models: dict[str, Path], ids: torch.Tensor, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper

    shutil.copytree(models["cached"], tmp_path / "m")
    file = tmp_path / "m" / "onnx" / "model.onnx"
    model = onnx.load(file)
    graph, number = model.graph, getattr(TensorProto, dtype)
    before, after = [], []
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name.startswith(("past_key_values.", "present.")):
                    names[i] = f"{name}.float"
    for value in (*graph.input, *graph.output):
        name = value.name
        if name.startswith("past"):
            before.append(helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
        elif name.startswith("present"):
            after.append(helper.make_node("Cast", [f"{name}.float"], [name], to=number))
        else:
            continue
        value.type.tensor_type.elem_type = number
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, file)
    got, exact = _windows(tmp_path / "m", ids), _windows(models["cached"], ids)
    difference = (got - exact).abs().max()
    assert 0 < difference < HALF_ATOL[dtype]
    torch.testing.assert_close(got[:CHUNK], exact[:CHUNK], atol=LOG_P_ATOL, rtol=0)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Path]]:
    items = [
        {"question": f"Чанд? {i}", "choices": ["як", "ду", "се"], "answer": i % 3}
        for i in range(12)
    ]
    free = [{"question": f"Чист? {i}", "reference": "х", "metric": "chrf"} for i in range(3)]
    for name, rows in (("items", items), ("free", free)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "text.txt").write_text(TEXT * 12)
    return {
        "texts": {"text": tmp_path / "text.txt"},
        "tasks": {name: tmp_path / f"{name}.jsonl" for name in ("items", "free")},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_of_an_export_finds_no_difference(
    kind: str, models: dict[str, Path], files: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    sources = str(models["torch"]), str(models[kind])
    more: dict[str, Any] = {"windows": 8, "seq_len": 100, "max_tokens": 4, "prompts": 2}
    report = check(CheckRequest(*sources, **files, **more, cache=tmp_path / "c"))
    (text,) = report.texts
    assert text.kl.high < text.kl_max < 1e-6
    assert abs(text.delta_nll.estimate) < 1e-5
    assert [t.difference.estimate for t in report.tasks] == [0.0] * 3
    assert report.generation is not None
    assert report.generation.base == report.generation.quant
    on_disk = [f for f in models[kind].rglob("model.onnx*") if f.is_file()]
    assert len(on_disk) == (2 if kind == "cached" else 1)
    assert report.quant_bytes == sum(f.stat().st_size for f in on_disk)
    assert report.settings["onnxruntime"]
    assert report.layers == []
    other_way = check(CheckRequest(sources[1], sources[1], **files, **more, cache=tmp_path / "c"))
    assert other_way.texts[0].kl_max == 0


def test_files_are_found_where_exporters_put_them(models: dict[str, Path], tmp_path: Path) -> None:
    cached, plain = models["cached"], models["plain"]
    keys = {
        model_key(str(source))
        for source in (cached, cached / "onnx", cached / "onnx" / "model.onnx")
    }
    assert len(keys) == 1
    both = tmp_path / "both"
    shutil.copytree(models["torch"], both)
    shutil.copy(plain / "model.onnx", both / "model.onnx")
    assert find_source(str(both)).is_torch
    assert not find_source(str(both / "model.onnx")).is_torch
    (both / "model.safetensors").unlink()
    (both / "model.onnx").rename(both / "model_q4.onnx")
    with pytest.raises(CheckError, match=r"no model.onnx; give one of its files: .*model_q4.onnx"):
        find_source(str(both))
    assert open_model(str(both / "model_q4.onnx")).generate([5], 1)


def test_a_key_is_of_graph_and_external_data(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models["cached"], tmp_path / "m")
    key = model_key(str(models["cached"]))
    assert model_key(str(tmp_path / "m")) == key
    find = importlib.util.find_spec
    with monkeypatch.context() as without_onnx:
        without_onnx.setattr(
            importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name)
        )
        assert model_key(str(tmp_path / "m")) == key
    data = tmp_path / "m" / "onnx" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert model_key(str(tmp_path / "m")) != key
    data.unlink()
    with pytest.raises(CheckError, match="external data 'model.onnx.data' is not beside it"):
        model_key(str(tmp_path / "m"))
    with pytest.raises(CheckError, match="can't open it"):
        open_model(str(tmp_path / "m"))


def test_int32_inputs_are_fed_as_such(tmp_path: Path) -> None:
    shapes = {"input_ids": ["b", "s"], "attention_mask": ["b", "t"]}
    model = open_model(str(_bigrams(tmp_path / "m", inputs=shapes, integer="INT32")))
    assert model.generate([9, 10], 2) == [11, 12]


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({"inputs": {"tokens": [1, "s"]}}, "its inputs are tokens; soroq check runs graphs with"),
        (
            {"inputs": {"input_ids": [1, "s"], "use_cache_branch": [1]}},
            "inputs are input_ids, use_cache_branch",
        ),
        (
            {"inputs": {"input_ids": [1, "s"], "past_key_values.0.key": [1, 2, "p", 8]}},
            "past_key_values.0.key; .* with their present",
        ),
        ({"output": "scores"}, "its outputs are scores; logits is missing"),
        ({"inputs": {"input_ids": [1, 128]}}, "not fixed"),
        ({"inputs": {"input_ids": [4, "s"]}}, "one at a time"),
        ({"inputs": {"input_ids": ["s"]}}, "matrix"),
        ({"width": 280}, "logits are of 280 tokens, config.json says 300"),
    ],
)
def test_graphs_of_another_kind_are_one_clear_line(
    graph: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = _bigrams(tmp_path / "m", **graph)
    with pytest.raises(CheckError, match=said) as caught:
        open_model(str(folder)).generate([5, 6], 1)
    assert "\n" not in str(caught.value)


def test_what_lies_beside_a_graph_has_to_fit(tmp_path: Path) -> None:
    folder = _bigrams(tmp_path / "a" / "b" / "m")
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"vocab_size": 250}, "logits for 250 tokens, its tokenizer has 260"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"eos_token_id": "x"}, "eos_token_id 'x'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckError, match=said):
            open_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckError, match="has no config.json"):
        open_model(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckError, match="no tokenizer.json beside model.onnx"):
        open_model(str(folder))
    with pytest.raises(CheckError, match="does not exist"):
        open_model(str(folder / "other.onnx"))


def test_a_file_that_is_no_graph_is_one_clear_line(tmp_path: Path) -> None:
    folder = _bigrams(tmp_path / "m")
    (folder / "model.onnx").write_bytes(b"junk " * 10)
    uses: list[Callable[[str], Any]] = [model_key, open_model]
    for use in uses:
        with pytest.raises(CheckError, match="model.onnx is not readable|can't open it") as caught:
            use(str(folder))
        assert "\n" not in str(caught.value)


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = _bigrams(tmp_path / "m")
    model = onnx.load(folder / "model.onnx")
    (table,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(table, "../secret")
    table.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_bytes(bytes(4 * VOCABULARY**2))
    with pytest.raises(CheckError, match="external data '../secret' is not beside it"):
        model_key(str(folder))


def test_without_onnxruntime_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckError, match="pip install onnxruntime"):
        find_source(str(tmp_path / "model.onnx"))


def test_what_needs_torch_is_refused_before_anything_runs(
    models: dict[str, Path], tmp_path: Path
) -> None:
    base, quant = str(models["torch"]), str(models["plain"])
    cache = tmp_path / "c"
    with pytest.raises(CheckError, match="--noise-floor"):
        check(CheckRequest(quant, base, noise_floor=True, cache=cache))
    with pytest.raises(CheckError, match="torch models only"):
        check(CheckRequest(base, quant, harness=("belebele_tgk_Cyrl",), cache=cache))
    other = write_tiny_model(tmp_path / "wider", num_hidden_layers=1, vocab_size=320)
    with pytest.raises(CheckError, match="300 tokens, .*wider for 320"):
        check(CheckRequest(str(other), quant, cache=cache))
    assert not cache.exists()
    with pytest.raises(CheckError, match="own types and attention"):
        model_key(quant, attention="eager")
    if importlib.util.find_spec("lm_eval") is not None:
        with pytest.raises(CheckError, match="is no torch model"):
            run_harness(Scorer(quant, cache=cache), "arc_easy")


def test_nothing_of_onnx_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, soroq.bench.quality.check, soroq.bench.quality.onnx_model\n"
        "assert not {'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
