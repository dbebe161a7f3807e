"""A checkpoint under the checker as it runs on a school's computer: through the C++ kernels.

    soroq check gemma3-270m cpu:out              # activations in 8 bits, what is far off apart
    soroq check gemma3-270m cpu-exact:out        # activations as they are
    soroq check cpu-exact:out cpu-int8:out       # what activations in 8 bits cost

Windows go through `soroq.decoder` CHUNK positions at a time, with its cache, as text that is
generated does.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

import soroq
from soroq.bench.quality.model import CHUNK, CheckpointSource, Model, hash_facts
from soroq.core.errors import CheckError
from soroq.decoder import CONTEXT, DEFAULT_PRECISION, Decoder, build, end_tokens, isa, load
from soroq.decoder import PRECISIONS as DECODER_PRECISIONS

PRECISIONS = {"cpu": DEFAULT_PRECISION} | {f"cpu-{name}": name for name in DECODER_PRECISIONS}


def split_runtime(source: str) -> tuple[str, str]:
    """Return the runtime that `source` names, '' without one, and the model's path."""
    runtime, colon, path = source.partition(":")
    return (runtime, path) if colon and runtime in PRECISIONS else ("", source)


class DecoderSource(CheckpointSource):
    """A checkpoint behind the name of a runtime. Raises what `CheckpointSource` raises."""

    is_torch = False

    def __init__(self, source: str) -> None:
        runtime, path = split_runtime(source)
        super().__init__(path)
        self.name, self._precision = source, PRECISIONS[runtime]
        self.versions = {"kernels": f"{isa()}, {self._precision}"}

    def key(self, dtype: torch.dtype, attention: str) -> str:
        if dtype != torch.float32 or attention != "sdpa":
            raise CheckError(f"{self.name}: the C++ kernels fix their own types and attention")
        weights = [self._checkpoint.sha256(), self.config, end_tokens(self.path)]
        versions = [self.versions, str(torch.__version__), soroq.__version__, build()]
        return hash_facts(["decoder", weights, *versions, CHUNK])

    def open(self, dtype: torch.dtype, attention: str) -> Model:
        return DecoderModel(self.name, self.path, self._precision, self.tokenizer())


class DecoderModel(Model):
    """A decoder that is loaded anew when a window needs a longer context."""

    def __init__(self, source: str, path: str, precision: str, tokenizer: Any) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._path, self._precision = path, precision
        self._decoder = load(path, precision=precision, context=CONTEXT)
        self._end = end_tokens(path)

    def _room(self, tokens: int) -> Decoder:
        """Return the empty decoder, with room for so many tokens."""
        if tokens > self._decoder.context:
            self._decoder = load(self._path, precision=self._precision, context=2 * tokens)
        self._decoder.rewind(0)
        return self._decoder

    def score_windows(self, ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        scored = ids.shape[1] - 1
        for row, window in enumerate(ids):
            decoder = self._room(scored)
            for start in range(0, scored, CHUNK):
                part = window[start : min(start + CHUNK, scored)]
                span = slice(row * scored + start, row * scored + start + len(part))
                yield span, decoder.prefill(part, all_logits=True).log_softmax(-1)

    def score_continuations(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> tuple[float, ...]:
        """The context runs once; its keys and values are shared by all continuations."""
        decoder = self._room(len(context) + max(len(c) for c in continuations))
        first = decoder.prefill(torch.tensor(context)).log_softmax(-1)
        sums = []
        for continuation in continuations:
            total = float(first[continuation[0]])
            if len(continuation) > 1:
                decoder.rewind(len(context))
                rest = decoder.prefill(torch.tensor(continuation[:-1]), all_logits=True)
                targets = torch.tensor(continuation[1:])
                scores = rest.log_softmax(-1).gather(1, targets[:, None])
                total += float(scores.double().sum())
            sums.append(total)
        return tuple(sums)

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        decoder = self._room(len(ids) + max_tokens)
        tokens: list[int] = []
        for token in decoder.generate(torch.tensor(ids), max_new_tokens=max_tokens):
            tokens.append(token)
            if token in self._end:
                break
        return tokens
