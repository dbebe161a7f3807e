"""Exported folders under ONNX Runtime say what transformers says, and hold what soroq stored."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from soroq.bench.quality.model import open_model
from soroq.core.errors import CheckpointError, OutputError, SchemeError
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.export import onnx_cpu
from soroq.export.onnx_cpu import export
from soroq.export.session import EVERY, LAST, OnnxDecoder, open_session
from soroq.export.target import ExportRequest, read_export
from soroq.io.checkpoint import open_checkpoint
from soroq.io.stored import StoredWeights
from soroq.io.writer import sha256_file
from soroq.loading import load
from soroq.models.tiny import write_tiny_model
from soroq.nn.linear import RoundedLinear

Make = Callable[..., tuple[Path, Path]]

# Logits relative to their norm: float32 in another order of sums; int8 activations in blocks of 32;
# float16 between nodes and in the cache; float8 weights rounded to int8, 1 % of a tiny model's.
CLOSE = {"exact": 1e-5, "int8": 5e-2, "float16": 1e-2, "fp8": 8e-2}
IDS = torch.randint(4, 260, (70,), generator=torch.Generator().manual_seed(0))
TYPES = ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"]
WINDOWS: dict[str, dict[str, Any]] = {
    "gemma3_text": {},  # its window is 16
    "mistral": {"sliding_window": 16},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
}
ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
INT8_ROWS = QuantArgs(bits=8, group_size=None)
INT4 = QuantArgs(bits=4, group_size=32, symmetric=False)


def _error(a: Any, b: torch.Tensor) -> float:
    return float((torch.as_tensor(a).float() - b).norm() / b.norm())


def _want(source: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return transformers' logits, with inputs of linears as they are."""
    network = load(source, packed=False)
    for module in network.modules():
        if isinstance(module, RoundedLinear):
            module.forward = functools.partial(linear, weight=module.weight, bias=module.bias)
    with torch.no_grad():
        logits: torch.Tensor = network(ids[None]).logits[0]
    return logits


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("scheme", ["int4-rtn", ""])
def test_logits_equal_transformers_in_any_pieces(
    model_type: str, scheme: str, exported: Make
) -> None:
    embed = INT4 if model_type == "gemma3_text" and scheme else None
    source, folder = exported(model_type, scheme, embed=embed, **WINDOWS.get(model_type, {}))
    want = _want(source)
    every = OnnxDecoder(folder, graph=EVERY, capacity=16)  # its buffers must grow
    for pieces in ([70], [1] * 70, [2, 3, 4, 5, 6, 50], [69, 1]):
        every.rewind()
        rows = [every.step(part.tolist()).reshape(len(part), -1) for part in IDS.split(pieces)]
        assert _error(np.concatenate(rows), want) < CLOSE["exact"]
    last = OnnxDecoder(folder, capacity=16)
    assert _error(last.step(IDS[:20].tolist()), want[19]) < CLOSE["exact"]
    for at in range(20, 70):
        assert _error(last.step([int(IDS[at])]), want[at]) < CLOSE["exact"]
    last.rewind(30)
    assert _error(last.step(IDS[30:50].tolist()), want[49]) < CLOSE["exact"]


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_greedy_tokens_equal_transformers(model_type: str, exported: Make) -> None:
    source, folder = exported(model_type)
    network = load(source, packed=False)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        want = network.generate(IDS[None, :10], max_new_tokens=30, **settings)[0, 10:]
    decoder = OnnxDecoder(folder)
    assert list(decoder.generate(IDS[:10].tolist(), max_new_tokens=30)) == want.tolist()


@pytest.mark.parametrize("front", [True, False], ids=["padded-in-front", "padded-behind"])
@pytest.mark.parametrize("graph", [EVERY, LAST])
@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3"])
def test_a_batch_of_unequal_lengths_is_its_rows(
    model_type: str, graph: str, front: bool, exported: Make
) -> None:
    source, folder = exported(model_type)
    lengths, width = [40, 23, 7], 40
    ids, mask = np.full((3, width), 299, np.int64), np.zeros((3, width), np.int64)
    for row, n in enumerate(lengths):
        place = slice(width - n, width) if front else slice(0, n)
        ids[row, place], mask[row, place] = IDS[row : row + n].numpy(), 1
    session = open_session(folder, graph)
    names = [node.name for node in session.get_outputs()]
    caches = {
        node.name: np.zeros((3, node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past")
    }
    for step in range(4):
        feed = {"input_ids": ids, "attention_mask": mask, **caches}
        values = dict(zip(names, session.run(names, feed), strict=True))
        logits = values.pop("logits")
        for row, n in enumerate(lengths):
            want = _want(source, IDS[row : row + n + step])
            if graph == LAST or step:
                assert _error(logits[row, 0], want[-1]) < CLOSE["exact"]
            else:
                place = slice(width - n, width) if front else slice(0, n)
                assert _error(logits[row, place], want) < CLOSE["exact"]
        caches = {k.replace("present", "past_key_values"): v for k, v in values.items()}
        ids = np.array([[int(IDS[row + n + step])] for row, n in enumerate(lengths)])
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], 1)


@pytest.mark.parametrize(
    ("scheme", "numbers", "tolerance"),
    [
        pytest.param("int4-rtn", {"symmetric": True}, "exact", id="int4-symmetric"),
        pytest.param("int4-rtn", {"group_size": 64}, "exact", id="int4-g64"),
        pytest.param("int4-rtn", {"group_size": None}, "exact", id="int4-rows"),
        pytest.param("int4-rtn", {"embed": INT8_ROWS}, "exact", id="int8-rows-embedding"),
        pytest.param("int4-rtn", {"precision": "int8"}, "int8", id="int8-activations"),
        pytest.param(
            "int4-rtn", {"precision": "int8-fine", "group_size": 64}, "int8", id="int8-fine"
        ),
        pytest.param("int4-rtn", {"compute": "float16"}, "float16", id="float16"),
        pytest.param("", {"compute": "float16"}, "float16", id="float16-unquantized"),
        pytest.param("int8-rtn", {}, "exact", id="int8"),
        pytest.param("fp8-rtn", {}, "fp8", id="fp8"),
    ],
)
@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_all_numbers_export(
    model_type: str, scheme: str, numbers: dict[str, Any], tolerance: str, exported: Make
) -> None:
    if model_type == "llama" and "embed" in numbers:
        pytest.skip("llama's head is not tied")
    source, folder = exported(model_type, scheme, **numbers)
    decoder = OnnxDecoder(folder, graph=EVERY)
    assert _error(decoder.step(IDS.tolist()), _want(source)) < CLOSE[tolerance]


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param("llama", {"tie_word_embeddings": True}, id="tied"),
        pytest.param("llama", {"num_key_value_heads": 4}, id="no-groups"),
        pytest.param("llama", {"num_key_value_heads": 1, "head_dim": 16}, id="one-head"),
        pytest.param("qwen3", {"rope_parameters": ROPE | {"rope_type": "linear"}}, id="linear"),
        pytest.param("qwen2", {"rope_parameters": ROPE | {"rope_type": "yarn"}}, id="yarn"),
        pytest.param("llama", {"rope_parameters": LLAMA3}, id="llama3"),
        pytest.param("gemma3_text", {"query_pre_attn_scalar": 77}, id="attention-scale"),
        pytest.param("gemma3_text", {"hidden_size": 96, "intermediate_size": 160}, id="odd-sizes"),
        pytest.param("gemma3_text", {"tie_word_embeddings": False}, id="untied"),
    ],
)
def test_kinds_of_models_export(model_type: str, changes: dict[str, Any], exported: Make) -> None:
    source, folder = exported(model_type, **changes)
    decoder = OnnxDecoder(folder, graph=EVERY)
    rows = [decoder.step(part.tolist()).reshape(len(part), -1) for part in IDS.split([60, 1, 9])]
    assert _error(np.concatenate(rows), _want(source)) < CLOSE["exact"]


def test_the_decoder_of_a_multimodal_checkpoint_exports(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "base")
    tensors = load_file(source / "model.safetensors")
    inside = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(inside, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    export(ExportRequest(str(source), tmp_path / "onnx", precision="exact"), lambda line: None)
    decoder = OnnxDecoder(tmp_path / "onnx", graph=EVERY)
    assert _error(decoder.step(IDS.tolist()), _want(source)) < CLOSE["exact"]
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["vocab_size"] == 300


def test_the_checker_reads_it(exported: Make) -> None:
    source, folder = exported()
    want = _want(source).log_softmax(-1)
    for span, log_p in open_model(str(folder)).score_windows(IDS[None]):
        assert torch.allclose(log_p, want[span], atol=1e-4)


def test_fp8_says_that_it_became_int8(exported: Make) -> None:
    manifest = read_export(exported("llama", "fp8-rtn")[1])
    assert manifest is not None
    assert "no float8 products" in manifest.notes[0] and "21 float8" in manifest.notes[0]


def _initializers(folder: Path) -> dict[str, Any]:
    model = onnx.load(folder / "onnx" / LAST)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_weights_are_the_stored_codes_bit_for_bit(exported: Make) -> None:
    source, folder = exported(embed=INT4)
    stored = StoredWeights(open_checkpoint(source))
    found = _initializers(folder)
    parts = {
        "layers.1/attention/qkv": [f"model.layers.1.self_attn.{p}_proj" for p in "qkv"],
        "layers.2/mlp/down/down_proj": ["model.layers.2.mlp.down_proj"],
        "embedding": ["model.embed_tokens"],
    }
    parts["layers.2/mlp/down"] = parts.pop("layers.2/mlp/down/down_proj")
    for name, modules in parts.items():
        quantized = [stored.load_quantized(module)[0] for module in modules]
        names = [n for n in found if n.startswith(name) and n.endswith("/codes")]
        assert len(names) == 1
        prefix = names[0].removesuffix("/codes")
        words = found[f"{prefix}/codes"]
        N, blocks, width = words.shape
        codes = np.stack([words & 15, words >> 4], -1).reshape(N, blocks * width * 2)
        assert (codes.astype(int) - 8 == torch.cat([q.codes for q in quantized]).numpy()).all()
        scales = torch.cat([q.scales for q in quantized]).float().numpy()
        assert (found[f"{prefix}/scales"].astype(np.float32) == scales).all()
        zeros = found[f"{prefix}/zeros"]
        zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(N, -1)[:, :blocks]
        parts_of_zeros = [q.zeros for q in quantized if q.zeros is not None]
        assert (zeros.astype(int) - 8 == torch.cat(parts_of_zeros).numpy()).all()


def test_embedding_and_head_are_one_place_in_the_file(exported: Make) -> None:
    folder = exported(embed=INT4)[1]
    model = onnx.load(folder / "onnx" / LAST, load_external_data=False)
    nodes = {node.op_type: node for node in model.graph.node if "embedding" in node.input[0]}
    head = [n for n in model.graph.node if n.op_type == "MatMulNBits"][-1]
    gather = nodes["GatherBlockQuantized"]
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in model.graph.initializer
        if t.external_data
    }
    assert places[gather.input[0]] == places[head.input[1]]
    assert gather.input[2] == head.input[2] and gather.input[3] == head.input[3]
    total = sum(int(p["length"]) for p in {p["offset"]: p for p in places.values()}.values())
    assert (folder / "onnx" / f"{EVERY}_data").stat().st_size < total + 64 * len(places)


def test_both_graphs_share_their_weights(exported: Make) -> None:
    folder = exported()[1]
    assert sorted(p.name for p in (folder / "onnx").iterdir()) == [
        EVERY,
        f"{EVERY}_data",
        LAST,
    ]


def test_the_same_export_gives_the_same_bytes(exported: Make, tmp_path: Path) -> None:
    source, folder = exported()
    export(ExportRequest(str(source), tmp_path / "again", precision="exact"), lambda line: None)
    for path in folder.rglob("*"):
        if path.is_file():
            other = tmp_path / "again" / path.relative_to(folder)
            assert other.read_bytes() == path.read_bytes(), path.name


def test_data_files_stay_below_the_limit(exported: Make, tmp_path: Path) -> None:
    source, _ = exported()
    request = ExportRequest(str(source), tmp_path / "split", precision="exact")
    export(request, lambda line: None, None, 50_000)
    files = sorted((tmp_path / "split" / "onnx").glob("*_data*"))
    assert len(files) > 2 and files[1].name == f"{EVERY}_data_1"
    assert all(file.stat().st_size <= 50_000 for file in files)
    config = json.loads((tmp_path / "split" / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {EVERY: len(files)}
    decoder = OnnxDecoder(tmp_path / "split", graph=EVERY)
    assert _error(decoder.step(IDS.tolist()), _want(source)) < CLOSE["exact"]


def test_manifest_has_every_file(exported: Make) -> None:
    folder = exported()[1]
    manifest = read_export(folder)
    assert manifest is not None
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest.files) == files - {"soroq.json"}
    for name, facts in manifest.files.items():
        assert facts["sha256"] == sha256_file(folder / name)
    assert (manifest.opset, manifest.ir_version) == (21, 10)


class TestRefusals:
    def _request(self, tmp_path: Path, **changes: Any) -> ExportRequest:
        source = write_tiny_model(tmp_path / "base", **changes)
        return ExportRequest(str(source), tmp_path / "onnx")

    def _no_folder(self, tmp_path: Path) -> bool:
        return not any(p.name.startswith("onnx") for p in tmp_path.iterdir())

    def test_bfloat16(self, tmp_path: Path) -> None:
        request = self._request(tmp_path)
        with pytest.raises(SchemeError, match="no attention in bfloat16"):
            export(ExportRequest(request.source, request.out, compute="bfloat16"))

    def test_a_folder_that_is_not_empty(self, tmp_path: Path) -> None:
        request = self._request(tmp_path)
        request.out.mkdir()
        (request.out / "mine").write_text("x")
        with pytest.raises(OutputError, match="not empty"):
            export(request)
        assert (request.out / "mine").read_text() == "x"

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        request = self._request(tmp_path)
        (Path(request.source) / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"no tokenizer.json; copy it"):
            export(request)
        assert self._no_folder(tmp_path)

    def test_a_tensor_larger_than_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="--embed int8"):
            export(self._request(tmp_path), lambda line: None, None, 30_000)
        assert self._no_folder(tmp_path)

    def test_capped_logits(self, tmp_path: Path) -> None:
        request = self._request(tmp_path, final_logit_softcapping=30.0)
        with pytest.raises(CheckpointError, match="final_logit_softcapping"):
            export(request)

    def test_a_group_without_blocks(self, tmp_path: Path) -> None:
        from soroq.export.blocks import _block_size

        with pytest.raises(CheckpointError, match="--group-size 32, 64 or 128"):
            _block_size("m", 200, QuantArgs(bits=4, group_size=100))
        assert get_scheme("int4-rtn").weight.group_size == 128

    def test_an_interrupted_export_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(onnx_cpu, "write_layouts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(self._request(tmp_path), lambda line: None)
        assert self._no_folder(tmp_path)

    def test_what_a_kill_left_is_written_anew(self, tmp_path: Path) -> None:
        request = self._request(tmp_path)
        left = tmp_path / "onnx.partial" / "onnx"
        left.mkdir(parents=True)
        (left / "model.onnx_data_7").write_bytes(b"half")
        export(request, lambda line: None)
        assert not list(request.out.rglob("*_7")) and not left.exists()
