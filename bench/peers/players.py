"""Whoever takes part in an end-to-end race: one model in one program, behind four methods.

    contender = Contender("soroq-onnx out", "onnx", "soroq", "out-onnx")
    player = open_player(contender, threads=2, window=640)
    player.feed(ids)                      # go on with ids, up to the last one's logits
    player.rewind()                       # forget them
    player.logits(ids)                    # float32 (n, V) of ids that begin anew

Nothing heavy is imported before `open_player`, or the memory of a program that needs no torch could
not be measured (`alone`). Everybody gets the same tokens whatever they would have said.
"""

import importlib
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from soroq.bench.peers.llama import Llama

    Array = np.ndarray[Any, Any]

TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "chat_template", "added_tokens")
TEXTS = (".html", ".md", ".txt", ".jinja")  # licences and cards: no program reads them


@dataclass(frozen=True)
class Contender:
    """kind: how it is opened, see PLAYERS; path: the file or folder that holds the model."""

    name: str
    kind: str
    peer: str
    path: str

    def model_bytes(self) -> int:
        """Return the bytes of graphs and weights; a GGUF's vocabulary is in its one file."""
        return sum(file.stat().st_size for file in self._files() if _is_model(file))

    def disk_bytes(self) -> int:
        """Return the bytes of all that lies there."""
        return sum(file.stat().st_size for file in self._files())

    def _files(self) -> list[Path]:
        path = Path(self.path)
        return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def _is_model(file: Path) -> bool:
    aside = file.name.startswith((*TOKENIZER, "openvino_tokenizer", "openvino_detokenizer"))
    return not aside and file.suffix not in TEXTS and not file.name.startswith("soroq")


class Player(ABC):
    """A loaded model and one sequence of tokens."""

    @abstractmethod
    def rewind(self) -> None:
        """Forget all tokens."""

    @abstractmethod
    def feed(self, ids: Sequence[int]) -> None:
        """Go on with ids; what generation needs of the last one's logits is there afterwards."""

    def logits(self, ids: Sequence[int], *, stepwise: bool = False) -> "Array":
        """Return float32 logits (n, V) of ids that begin anew, valid until the next call.

        stepwise: a call a token, the path of decoding instead of prefill's.
        """
        self._begin()
        if not stepwise:
            return self._rows(ids)
        import numpy as np

        return np.concatenate([np.array(self._rows([token])) for token in ids])

    @abstractmethod
    def close(self) -> None:
        """Give the memory back."""

    def _begin(self) -> None:
        """Forget what `_rows` went on from."""
        self.rewind()

    @abstractmethod
    def _rows(self, ids: Sequence[int]) -> "Array":
        """Go on with ids; return the logits (n, V) of all."""


class OnnxPlayer(Player):
    """An exported folder through soroq.export.session; all tokens' logits by the other graph."""

    def __init__(self, path: Path, threads: int, window: int) -> None:
        from soroq.export.session import EVERY, OnnxDecoder

        open_graph = partial(OnnxDecoder, path, threads=threads, capacity=window)
        self._decoder: Any = open_graph()
        self._open_every = partial(open_graph, graph=EVERY)
        self._every: Any = None

    def rewind(self) -> None:
        self._decoder.rewind()

    def feed(self, ids: Sequence[int]) -> None:
        self._decoder.step(ids)

    def _begin(self) -> None:
        if self._every is None:
            self._every = self._open_every()
        self._every.rewind()

    def _rows(self, ids: Sequence[int]) -> "Array":
        found: Array = self._every.step(ids)
        return found.reshape(len(ids), -1)

    def close(self) -> None:
        self._decoder = self._every = None


class SoroqPlayer(Player):
    """soroq's C++ decoder; a step hands back the likeliest token, as generation has it."""

    def __init__(self, path: Path, threads: int, window: int) -> None:
        from soroq import _cpu, decoder

        _cpu.set_num_threads(threads)  # of the one team that all decoders share
        self._decoder: Any = decoder.load(path, context=window)

    def rewind(self) -> None:
        self._decoder.rewind()

    def feed(self, ids: Sequence[int]) -> None:
        import torch

        tokens = torch.tensor(ids)
        if len(ids) == 1:
            self._decoder.best(tokens)
        else:
            self._decoder.prefill(tokens)

    def _rows(self, ids: Sequence[int]) -> "Array":
        import torch

        found: Array = self._decoder.prefill(torch.tensor(ids), all_logits=True).numpy()
        return found

    def close(self) -> None:
        self._decoder = None


class LlamaPlayer(Player):
    """llama.cpp or ik_llama.cpp; a step leaves all logits behind."""

    def __init__(self, flavour: str, path: Path, threads: int, window: int) -> None:
        self._model = open_llama(flavour, threads).open(path, window)

    def rewind(self) -> None:
        self._model.clear()

    def feed(self, ids: Sequence[int]) -> None:
        self._model.evaluate(ids)

    def _rows(self, ids: Sequence[int]) -> "Array":
        return self._model.evaluate(ids, every=True)

    def close(self) -> None:
        self._model.close()


@cache
def open_llama(flavour: str, threads: int) -> "Llama":
    """Return a flavour's libraries with one pool of threads. Raises OSError."""
    from soroq.bench.kernels.ggml import directory
    from soroq.bench.peers.llama import Llama

    where = directory(flavour)
    if where is None:
        raise OSError(f"{flavour}: not here, see bench/peers/README.md")
    return Llama(flavour, where, threads)


class GenaiPlayer(Player):
    """A folder of onnxruntime-genai's layout through its own generator."""

    def __init__(self, path: Path, threads: int, window: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(path))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._og, self._window = og, window
        self._model: Any = og.Model(config)
        self._generator: Any = self._new()

    def rewind(self) -> None:
        self._generator.rewind_to(0)

    def feed(self, ids: Sequence[int]) -> None:
        self._generator.append_tokens(ids)

    def _rows(self, ids: Sequence[int]) -> "Array":
        import numpy as np

        rows = []
        for token in ids:  # the graph hands out the last token's logits
            self.feed([token])
            rows.append(np.array(self._generator.get_output("logits"), np.float32).reshape(-1))
        return np.stack(rows)

    def close(self) -> None:
        self._generator = self._model = None

    def _new(self) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._window, do_sample=False)
        return self._og.Generator(self._model, parameters)


class OpenVinoPlayer(Player):
    """A stateful model as optimum-intel writes it, by OpenVINO's runtime.

    As in openvino-genai the head sees the last token alone; a second model gives all logits.
    """

    def __init__(self, path: Path, threads: int, window: int) -> None:
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        file = path / "openvino_model.xml"

        def compiled(last: bool) -> Any:
            model = core.read_model(file)
            if last:
                _slice_before_head(model)
            return core.compile_model(model, "CPU", options).create_infer_request()

        self._open_every = partial(compiled, False)
        self._request: Any = compiled(True)
        self._every: Any = None
        self._length = self._seen = 0

    def rewind(self) -> None:
        self._request.reset_state()
        self._length = 0

    def feed(self, ids: Sequence[int]) -> None:
        self._infer(self._request, ids, self._length)
        self._length += len(ids)

    def _begin(self) -> None:
        if self._every is None:
            self._every = self._open_every()
        self._every.reset_state()
        self._seen = 0

    def _rows(self, ids: Sequence[int]) -> "Array":
        self._infer(self._every, ids, self._seen)
        self._seen += len(ids)
        found: Array = self._every.get_tensor("logits").data[0]
        return found

    def close(self) -> None:
        self._request = self._every = None

    def _infer(self, request: Any, ids: Sequence[int], length: int) -> None:
        import numpy as np

        total = length + len(ids)
        given = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(length, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for node in request.model_inputs for name in node.get_names()}
        request.infer({name: value for name, value in given.items() if name in names})


def _slice_before_head(model: Any) -> None:
    """Let the head of an OpenVINO model see the last token's hidden state alone."""
    import numpy as np
    from openvino import opset13 as ops

    head = model.output("logits").get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    one, end = np.array([-1], np.int64), np.array([np.iinfo(np.int64).max], np.int64)
    step, axis = np.array([1], np.int64), np.array([1], np.int64)
    sliced = ops.slice(head.input_value(0), one, end, step, axis)
    head.input(0).replace_source_output(sliced.output(0))
    model.validate_nodes_and_infer_types()


class TransformersPlayer(Player):
    """transformers' forward with its own cache; dtype "": a packed checkpoint by soroq.load."""

    def __init__(self, dtype: str, path: Path, threads: int, window: int) -> None:
        import torch

        torch.set_num_threads(threads)
        if not dtype:
            from soroq import _cpu
            from soroq.loading import load

            _cpu.set_num_threads(threads)
            self._model: Any = load(path)
        else:
            from transformers import AutoModelForCausalLM

            self._model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        self._torch = torch
        self._model.eval()
        self._past: Any = None

    def rewind(self) -> None:
        self._past = None

    def feed(self, ids: Sequence[int]) -> None:
        self._forward(ids, keep=1)

    def _rows(self, ids: Sequence[int]) -> "Array":
        found: Array = self._forward(ids, keep=0).float().numpy()
        return found

    def close(self) -> None:
        self._model = self._past = None

    def _forward(self, ids: Sequence[int], keep: int) -> Any:
        with self._torch.inference_mode():
            out = self._model(
                input_ids=self._torch.tensor([ids]),
                past_key_values=self._past,
                use_cache=True,
                logits_to_keep=keep,
            )
        self._past = out.past_key_values
        return out.logits[0]


@dataclass(frozen=True)
class Kind:
    """open(path, threads, window); modules: what its program imports before it opens a model."""

    open: Any
    modules: tuple[str, ...]
    needs: str = ""  # the package without which it can't run


_TRANSFORMERS = ("torch", "transformers.models.gemma3.modeling_gemma3")
PLAYERS: dict[str, Kind] = {
    "onnx": Kind(OnnxPlayer, ("numpy", "onnxruntime", "soroq.export.session"), "onnxruntime"),
    "soroq": Kind(SoroqPlayer, ("torch", "soroq.decoder", "soroq._cpu")),
    "llama.cpp": Kind(partial(LlamaPlayer, "llama.cpp"), ("numpy", "soroq.bench.peers.llama")),
    "ik_llama.cpp": Kind(
        partial(LlamaPlayer, "ik_llama.cpp"), ("numpy", "soroq.bench.peers.llama")
    ),
    "genai": Kind(GenaiPlayer, ("numpy", "onnxruntime_genai"), "onnxruntime_genai"),
    "openvino": Kind(OpenVinoPlayer, ("numpy", "openvino"), "openvino"),
    "transformers": Kind(partial(TransformersPlayer, "bfloat16"), _TRANSFORMERS),
    "original": Kind(partial(TransformersPlayer, "float32"), _TRANSFORMERS),
    "packed": Kind(
        partial(TransformersPlayer, ""), (*_TRANSFORMERS, "soroq.loading", "soroq._cpu")
    ),
}


def objection(contender: Contender) -> str:
    """Return why a contender can't run here, '' if it may."""
    needed = PLAYERS[contender.kind].needs
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed"
    return "" if Path(contender.path).exists() else f"{contender.path} does not exist"


def import_modules(contender: Contender) -> None:
    """Import what the contender's program imports before it opens a model."""
    for module in PLAYERS[contender.kind].modules:
        importlib.import_module(module)


def open_player(contender: Contender, *, threads: int, window: int) -> Player:
    """Load a contender's model, with room for `window` tokens."""
    player: Player = PLAYERS[contender.kind].open(Path(contender.path), threads, window)
    return player
