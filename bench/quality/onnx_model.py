"""ONNX causal language models under the checker, run by onnxruntime on the CPU.

    soroq check gemma3-270m exported/            # model.onnx or onnx/model.onnx in it
    soroq check gemma3-270m exported/onnx/model_q4.onnx

Read are graphs as optimum, transformers.js and torch.onnx.export write them: input_ids, perhaps
attention_mask, position_ids and past_key_values.* with their present.*; the output logits. A window
goes through alone. With a cache it goes in slices of CHUNK positions; without one, a window's
logits exist whole. Needs onnxruntime (pip install 'soroq[onnx]'), which is imported only here.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

import soroq
from soroq.bench.quality.model import CHUNK, Model, Source, hash_facts, share_tokenizer
from soroq.core.errors import CheckError
from soroq.export.ort_library import add_operators
from soroq.io.checkpoint import read_json
from soroq.io.writer import sha256_file

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST = ("past_key_values", "past")
PRESENT = ("present_key_values", "present")
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
# a cache's type → numpy's type of the same width, ONNX's number of it (TensorProto.DataType)
CACHES = {
    "tensor(float)": (np.float32, 1),
    "tensor(float16)": (np.float16, 10),
    "tensor(bfloat16)": (np.uint16, 16),
}


def find_onnx(source: str) -> Path | None:
    """Return the .onnx file that `source` means, None if it is no ONNX model.

    A directory with safetensors is a checkpoint, whatever else lies in it. Raises CheckError for a
    directory of .onnx files of which none is model.onnx.
    """
    path = Path(source)
    if not path.is_dir():
        return path if path.suffix == ".onnx" else None
    if any(path.glob("*.safetensors")):
        return None
    for file in (path / "model.onnx", path / "onnx" / "model.onnx"):
        if file.is_file():
            return file
    others = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    if others:
        names = ", ".join(str(file) for file in others)
        raise CheckError(f"{source} has no model.onnx; give one of its files: {names}")
    return None


class OnnxSource(Source):
    """A .onnx file, its external data, and tokenizer and config.json beside it or one folder up.

    Raises CheckError when onnxruntime is missing, or one of the files.
    """

    is_torch = False

    def __init__(self, name: str, file: Path) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise CheckError(
                f"{name} is an ONNX model and needs onnxruntime: pip install onnxruntime"
            )
        import onnxruntime

        if not file.is_file():
            raise CheckError(f"{file} does not exist")
        self.name = self.path = name
        self._file = file.absolute()
        self.versions = {"onnxruntime": str(onnxruntime.__version__)}
        self._folder = self._find_folder()
        self.config = read_json(self._folder / "config.json")
        if self.vocab_size is None:
            raise CheckError(f"{self._folder / 'config.json'}: no vocab_size")

    def _find_folder(self) -> Path:
        wanted = ("tokenizer.json", "tokenizer.model")
        for folder in (self._file.parent, self._file.parent.parent):
            if any((folder / name).is_file() for name in wanted):
                if not (folder / "config.json").is_file():
                    raise CheckError(f"{folder} has no config.json; copy it from the original")
                return folder
        raise CheckError(
            f"{self.name}: no tokenizer.json beside {self._file.name} or one folder up; copy the "
            "original's tokenizer files and config.json there"
        )

    @cached_property
    def files(self) -> list[Path]:
        """The .onnx file and its external data."""
        if importlib.util.find_spec("onnx") is None:
            beside = self._file.parent.glob(f"{self._file.name}*")
            others = sorted(path for path in beside if path != self._file and path.is_file())
        else:
            others = [self._beside(location) for location in _external_data(self._file)]
        return [self._file, *others]

    def _beside(self, location: str) -> Path:
        """Return an external data file. Raises CheckError unless it is inside the folder."""
        path = self._file.parent / location
        inside = not PurePath(location).is_absolute() and ".." not in PurePath(location).parts
        if not inside or not path.is_file():
            raise CheckError(f"{self._file}: its external data {location!r} is not beside it")
        return path

    @property
    def total_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def tokenizer(self) -> Any:
        from soroq.loading import read_tokenizer

        return share_tokenizer(self._folder, lambda: read_tokenizer(self._folder))

    def key(self, dtype: torch.dtype, attention: str) -> str:
        self._refuse_choices(dtype, attention)
        weights = [[file.name, sha256_file(file)] for file in self.files]
        versions = [self.versions, str(torch.__version__), soroq.__version__]
        return hash_facts(["onnx", weights, self.config, self._ending(), *versions, CHUNK])

    def open(self, dtype: torch.dtype, attention: str) -> Model:
        import onnxruntime

        self._refuse_choices(dtype, attention)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised, and needs no log beside it
        add_operators(options, self._folder, torch.get_num_threads())
        try:
            session = onnxruntime.InferenceSession(
                str(self._file), options, providers=["CPUExecutionProvider"]
            )
        except _runtime_errors() as error:
            raise CheckError(f"{self.name}: onnxruntime can't open it: {_line(error)}") from error
        end, penalty = self._ending()
        tokenizer, vocab_size = self.tokenizer(), self.vocab_size
        assert vocab_size is not None
        # added tokens are not counted: Gemma 3's text models have none of the image token's row
        if tokenizer.vocab_size > vocab_size:
            raise CheckError(
                f"{self.name} gives logits for {vocab_size} tokens, its tokenizer has "
                f"{tokenizer.vocab_size}; copy the original's tokenizer files"
            )
        return OnnxModel(self.name, Graph(self.name, session, vocab_size), tokenizer, end, penalty)

    def _refuse_choices(self, dtype: torch.dtype, attention: str) -> None:
        if dtype != torch.float32 or attention != "sdpa":
            raise CheckError(f"{self.name}: an ONNX graph fixes its own types and attention")

    def _ending(self) -> tuple[list[int], float]:
        """Return the tokens that end a text, and the repetition penalty (1: none)."""
        file = self._folder / "generation_config.json"
        config = {**(self.config.get("text_config") or {}), **self.config}
        settings = read_json(file) if file.is_file() else config
        end, penalty = settings.get("eos_token_id"), settings.get("repetition_penalty")
        ids = end if isinstance(end, list) else [] if end is None else [end]
        penalty = 1.0 if penalty is None else penalty
        if not all(isinstance(i, int) for i in ids) or not isinstance(penalty, int | float):
            raise CheckError(
                f"{self._folder}: eos_token_id {end!r} or repetition_penalty {penalty!r} in "
                "generation_config.json or config.json is no number"
            )
        return ids, float(penalty)


def _external_data(file: Path) -> list[str]:
    """Return the names of the files that a graph's tensors lie in, other than its own."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise CheckError(f"{file} is not readable as ONNX: {_line(error)}") from error
    nodes = [node for function in model.functions for node in function.node]
    tensors = [*_tensors_of_graph(model.graph), *_tensors_of_nodes(nodes)]
    entries = [e for t in tensors for e in t.external_data if t.data_location == t.EXTERNAL]
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _tensors_of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Sequence[Any]) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors_of_graph(graph)


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises; it has no common base, and a version may lack some."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    names = (
        "Fail InvalidArgument InvalidGraph InvalidProtobuf NoModel NoSuchFile NotFound "
        "NotImplemented RuntimeException EPFail"
    ).split()
    found = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*found, RuntimeError, ValueError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class Graph:
    """A session whose inputs and outputs are known to be those of a causal language model.

    vocab_size: width that its logits must have. Raises CheckError for a graph of another kind.
    """

    def __init__(self, source: str, session: Any, vocab_size: int) -> None:
        self._source, self._session, self._vocab_size = source, session, vocab_size
        inputs = {node.name: node for node in session.get_inputs()}
        outputs = {node.name: node for node in session.get_outputs()}
        self._integers = {name: inputs[name] for name in (IDS, MASK, POSITIONS) if name in inputs}
        present = {_part(name, PRESENT): name for name in outputs}
        self._present_of = {
            name: present[part]
            for name in inputs
            if (part := _part(name, PAST)) is not None and part in present
        }
        known = {*self._integers, *self._present_of}
        unknown = [name for name in inputs if name not in known]
        if IDS not in inputs or unknown:
            raise CheckError(
                f"{source}: its inputs are {', '.join(inputs)}; soroq check runs graphs with "
                f"{IDS}, and perhaps {MASK}, {POSITIONS} and past_key_values.* with their "
                "present.*, and no others"
            )
        if LOGITS not in outputs:
            raise CheckError(
                f"{source}: its outputs are {', '.join(outputs)}; {LOGITS} is missing, so it is no "
                "causal language model"
            )
        for node in self._integers.values():
            if node.type not in INTEGERS or len(node.shape) != 2:
                raise self._odd(node, "an int64 or int32 matrix (1, tokens) is needed")
            if node.shape[0] not in (1, None) and isinstance(node.shape[0], int):
                raise self._odd(node, "windows are run one at a time")
            if isinstance(node.shape[1], int):
                raise self._odd(node, "a number of tokens that is not fixed is needed")
        logits = outputs[LOGITS]
        if logits.type not in ("tensor(float)", "tensor(float16)"):
            raise self._odd(logits, "float32 or float16 is needed")
        if len(logits.shape) == 3 and isinstance(logits.shape[2], int):
            self._check_width(logits.shape[2])
        self._empty = {name: self._empty_cache(inputs[name]) for name in self._present_of}

    @property
    def has_cache(self) -> bool:
        return bool(self._present_of)

    def empty_cache(self) -> dict[str, Any]:
        """Return the cache in front of the first token: input → OrtValue."""
        return {name: value for name, (value, _) in self._empty.items()}

    def run(
        self, ids: Sequence[int], before: int, cache: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return logits (len(ids), vocabulary), as stored, and the cache behind ids.

        before: tokens that `cache` holds.
        """
        from onnxruntime import OrtValue

        whole = before + len(ids)
        values = {IDS: ids, MASK: [1] * whole, POSITIONS: range(before, whole)}
        feeds = dict(cache)
        for name, node in self._integers.items():
            array = np.array([values[name]], dtype=INTEGERS[node.type])
            feeds[name] = OrtValue.ortvalue_from_numpy(array)
        try:
            logits, *present = self._session.run_with_ort_values(
                [LOGITS, *self._present_of.values()], feeds
            )
        except _runtime_errors() as error:
            raise CheckError(
                f"{self._source}: onnxruntime stopped at {len(ids)} tokens behind {before}: "
                f"{_line(error)}"
            ) from error
        shape = logits.shape()
        if len(shape) != 3 or shape[:2] != [1, len(ids)]:
            raise CheckError(
                f"{self._source}: logits of {len(ids)} tokens have the shape {shape}; one row a "
                "token is needed"
            )
        self._check_width(shape[2])
        after = dict(zip(self._present_of, present, strict=True))
        for name, value in after.items():
            held = value.shape()[self._empty[name][1]]
            if held != whole:
                raise CheckError(
                    f"{self._source}: {self._present_of[name]} holds {held} of {whole} tokens; "
                    "caches that keep all tokens are needed"
                )
        return torch.from_numpy(logits.numpy())[0], after

    def _empty_cache(self, node: Any) -> tuple[Any, int]:
        """Return a cache of no tokens, and the axis along which it grows."""
        from onnxruntime import OrtValue

        free = [i for i, n in enumerate(node.shape) if i > 0 and not isinstance(n, int)]
        if node.type not in CACHES or len(free) != 1:
            raise self._odd(
                node, "float32, float16 or bfloat16 is needed, and one axis that is not fixed"
            )
        shape = [n if isinstance(n, int) else 1 for n in node.shape]
        shape[free[0]] = 0
        dtype, number = CACHES[node.type]
        value = OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(shape, dtype), number)
        return value, free[0]

    def _check_width(self, width: int) -> None:
        if width != self._vocab_size:
            raise CheckError(
                f"{self._source}: its logits are of {width} tokens, config.json says "
                f"{self._vocab_size}; copy the config.json of the model that was exported"
            )

    def _odd(self, node: Any, wanted: str) -> CheckError:
        return CheckError(f"{self._source}: {node.name} is {node.type} {node.shape}; {wanted}")


def _part(name: str, prefixes: tuple[str, ...]) -> str | None:
    """Return what a cache's input and output have in common: ".0.key", "_key_0"."""
    return next((name.removeprefix(p) for p in prefixes if name.startswith(p)), None)


@dataclass
class Sequel:
    """Tokens that were fed to a graph, and its cache behind them."""

    cache: dict[str, Any]
    tokens: list[int] = field(default_factory=list)

    def fork(self) -> "Sequel":
        """Return a copy that can be continued on its own; caches are never written to."""
        return Sequel(dict(self.cache), list(self.tokens))


class OnnxModel(Model):
    """A graph and its tokenizer; end: tokens that end a text."""

    def __init__(
        self, source: str, graph: Graph, tokenizer: Any, end: Sequence[int], penalty: float
    ) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._graph, self._end, self._penalty = graph, frozenset(end), penalty

    def score_windows(self, ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        positions = ids.shape[1] - 1
        for row, window in enumerate(ids.tolist()):
            start = row * positions
            for span, logits in self._feed(self._begin(), window[:-1]):
                yield slice(start + span.start, start + span.stop), logits.log_softmax(-1)

    def score_continuations(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> tuple[float, ...]:
        """With a cache the context runs once, and the continuations one after the other."""
        sequel = self._begin()
        first = self._last_logits(sequel, context).log_softmax(-1)
        sums = []
        for continuation in continuations:
            total = float(first[continuation[0]])
            targets = torch.tensor(continuation[1:])
            for span, logits in self._feed(sequel.fork(), continuation[:-1]):
                log_p = logits.log_softmax(-1).gather(1, targets[span, None])
                total += float(log_p.double().sum())
            sums.append(total)
        return tuple(sums)

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Repetition is penalized as generation_config.json asks, which transformers does too."""
        sequel, found = self._begin(), list[int]()
        logits = self._last_logits(sequel, ids)
        while True:
            if self._penalty != 1:
                seen = torch.tensor(sorted({*ids, *found}))
                scores = logits[seen]
                logits[seen] = torch.where(
                    scores < 0, scores * self._penalty, scores / self._penalty
                )
            found.append(int(logits.argmax()))
            if found[-1] in self._end or len(found) >= max_tokens:
                return found
            logits = self._last_logits(sequel, found[-1:])

    def _begin(self) -> Sequel:
        return Sequel(self._graph.empty_cache())

    def _last_logits(self, sequel: Sequel, ids: Sequence[int]) -> torch.Tensor:
        """Feed ids; return the logits (vocabulary) behind the last, the caller's to change."""
        last = torch.empty(0)
        for _, logits in self._feed(sequel, ids):
            last = logits[-1].clone()
        return last

    def _feed(self, sequel: Sequel, ids: Sequence[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Put ids behind a sequel; yield (span of ids, float32 logits (span, vocabulary)).

        A graph without a cache gets all tokens again and gives all logits at once; they are still
        handed out CHUNK at a time.
        """
        step = CHUNK if self._graph.has_cache else max(len(ids), 1)
        for start in range(0, len(ids), step):
            piece = list(ids[start : start + step])
            if self._graph.has_cache:
                logits, sequel.cache = self._graph.run(piece, len(sequel.tokens), sequel.cache)
            else:
                logits, _ = self._graph.run([*sequel.tokens, *piece], 0, {})
                logits = logits[-len(piece) :]
            sequel.tokens += piece
            for at in range(0, len(piece), CHUNK):
                part = logits[at : at + CHUNK].float()
                yield slice(start + at, start + at + len(part)), part
