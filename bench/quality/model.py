"""A model that can be checked: log-probabilities in slices, on the CPU, whatever it is stored as.

`find_source` takes what `soroq.load` takes, ONNX models (onnx_model.py) and checkpoints on the C++
kernels (decoder_model.py). It answers everything the checker asks of a model on disk: size, key,
tokenizer, and the model itself.
A model hands out log-probabilities CHUNK positions at a time: whole logits of a window would be
0.5 GB at a vocabulary of 262,144.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import soroq
from soroq.core.errors import CheckError
from soroq.io.checkpoint import open_checkpoint
from soroq.io.writer import sha256_file
from soroq.models.architecture import context_length

CHUNK = 64  # positions whose logits exist at once
BATCH_TOKENS = 2048
TOKENIZER_FILES = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat")


class Model(ABC):
    """A causal model in memory and its tokenizer."""

    source: str
    tokenizer: Any

    @abstractmethod
    def score_windows(self, ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (span, float32 log-probabilities (span, vocabulary)) of windows (n, seq_len).

        Spans run through the n · (seq_len − 1) positions that have a next token, window by window,
        at most CHUNK at a time. The tensor is the caller's to change.
        """

    @abstractmethod
    def score_continuations(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> tuple[float, ...]:
        """Return the summed log-probability, nats, of each continuation behind the context.

        Neither the context nor a continuation may be empty.
        """

    @abstractmethod
    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Return the greedy continuation of a prompt, up to the end token and with it."""

    @property
    def network(self) -> Any:
        """The torch module, for lm-evaluation-harness. Raises CheckError if there is none."""
        raise CheckError(f"{self.source} is no torch model; lm-evaluation-harness can't run it")


class TorchModel(Model):
    """A transformers model."""

    def __init__(self, source: str, network: Any, tokenizer: Any) -> None:
        self.source, self.tokenizer = source, tokenizer
        self._network = network

    @property
    def network(self) -> Any:
        return self._network

    def score_windows(self, ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        yield from self.log_probs(self.hidden(ids)[:, :-1].flatten(0, 1))

    def score_continuations(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> tuple[float, ...]:
        """The context runs once; its keys and values are shared by all continuations."""
        n, longest = len(continuations), max(len(c) for c in continuations)
        ids = torch.zeros(n, longest, dtype=torch.int64)
        for row, continuation in enumerate(continuations):
            ids[row, : len(continuation)] = torch.tensor(continuation)
        with torch.inference_mode():
            first = self._network.model(input_ids=torch.tensor([context]), use_cache=True)
            hidden = first.last_hidden_state[:, -1:].expand(n, -1, -1)
            if longest > 1:  # the last token of a continuation predicts nothing that is scored
                cache = first.past_key_values
                cache.batch_repeat_interleave(n)
                more = self._network.model(
                    input_ids=ids[:, :-1], past_key_values=cache, use_cache=True
                ).last_hidden_state
                hidden = torch.cat([hidden, more], 1)
        wanted = torch.tensor([[i < len(c) for i in range(longest)] for c in continuations])
        targets = ids[wanted]
        scores = torch.empty(len(targets))
        for span, log_p in self.log_probs(hidden[wanted]):
            scores[span] = log_p.gather(1, targets[span, None])[:, 0]
        owner = wanted.nonzero()[:, 0]
        sums = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, scores.double())
        return tuple(float(s) for s in sums)

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            out = self._network.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        tokens: list[int] = out[0, prompt.shape[1] :].tolist()
        return tokens

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the final hidden states (n, seq_len, hidden) of ids (n, seq_len)."""
        with torch.inference_mode():
            out: torch.Tensor = self._network.model(
                input_ids=ids, use_cache=False
            ).last_hidden_state
        return out

    def log_probs(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (span, float32 log-probabilities (span, vocabulary)) of hidden states (p, hidden).

        The tensor is the caller's to change.
        """
        cap = getattr(self._network.config, "final_logit_softcapping", None)
        with torch.inference_mode():
            for start in range(0, len(hidden), CHUNK):
                span = slice(start, min(start + CHUNK, len(hidden)))
                logits = self._network.lm_head(hidden[span]).float()
                if cap:
                    logits = logits.div_(cap).tanh_().mul_(cap)
                logits = logits.log_softmax(-1)
                yield span, logits


class Source(ABC):
    """A model on disk, as the checker sees it; nothing big is read until asked for.

    is_torch: opened as a torch module, so that attention can be chosen and lm-evaluation-harness
    can run it. versions: of the libraries that run it, besides torch and transformers.
    """

    name: str
    path: str  # the name without a runtime in front of it
    config: dict[str, Any]
    is_torch: bool
    versions: dict[str, str]

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """Bytes of its tensors; of its files, where those can't be told apart."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """Return the tokenizer. Raises a SoroqError when there is none."""

    @abstractmethod
    def key(self, dtype: torch.dtype, attention: str) -> str:
        """Return the hash of what decides the model's results, without loading it."""

    @abstractmethod
    def open(self, dtype: torch.dtype, attention: str) -> Model:
        """Load model and tokenizer."""

    @property
    def vocab_size(self) -> int | None:
        """Tokens that the model gives logits for, as config.json says."""
        for config in (self.config, self.config.get("text_config")):
            if isinstance(config, dict) and isinstance(config.get("vocab_size"), int):
                return int(config["vocab_size"])
        return None


def refuse_long_windows(sources: Sequence[Source], seq_len: int) -> None:
    """Raise CheckError for windows of more tokens than one of the models knows."""
    for source in sources:
        most = context_length(source.config)
        if most is not None and seq_len > most:
            raise CheckError(
                f"--seq-len {seq_len} is beyond the context of {source.name}, {most} tokens "
                f"(max_position_embeddings); use at most {most}"
            )


class CheckpointSource(Source):
    """A checkpoint that `soroq.load` opens; weights stay as stored and are converted to the dtype
    asked for as they run (soroq.nn.late)."""

    is_torch = True

    def __init__(self, name: str) -> None:
        self.name = self.path = name
        self._checkpoint = open_checkpoint(name)
        self.config, self.versions = self._checkpoint.config, {}

    @property
    def total_bytes(self) -> int:
        return self._checkpoint.total_bytes

    @property
    def vocab_size(self) -> int | None:
        # a multimodal config.json may leave it out
        for name in self._checkpoint.names():
            if name.endswith(("embed_tokens.weight", "embed_tokens.weight_packed")):
                return self._checkpoint.info(name).shape[0]
        return super().vocab_size

    def tokenizer(self) -> Any:
        from soroq.loading import load_tokenizer

        return share_tokenizer(Path(self._checkpoint.path), lambda: load_tokenizer(self.path))

    def key(self, dtype: torch.dtype, attention: str) -> str:
        # versions are part of it: another soroq or torch may compute other last digits
        weights = [self._checkpoint.sha256(), self.config]
        facts = [*weights, str(dtype), attention, str(torch.__version__), soroq.__version__, CHUNK]
        return hash_facts(facts)

    def open(self, dtype: torch.dtype, attention: str) -> Model:
        from soroq.loading import load

        network = load(self.name, dtype=dtype, packed=False, late=True)
        if attention != "sdpa":
            network.set_attn_implementation(attention)
        return TorchModel(self.name, network, self.tokenizer())


_tokenizers: dict[str, Any] = {}


def share_tokenizer(directory: Path, load: Callable[[], Any]) -> Any:
    """Return the tokenizer in a directory (or of a GGUF), one object for equal files.

    Gemma's takes 0.7 GB, and a model and its quantized copy have the same. The last one is kept.
    """
    files = [] if directory.is_file() else sorted(directory.iterdir())
    kept = [f for f in files if f.is_file() and f.name.lower().startswith(TOKENIZER_FILES)]
    facts = [(f.name, sha256_file(f)) for f in kept]
    key = hash_facts(facts or str(directory.absolute()))
    if key not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[key] = load()
    return _tokenizers[key]


def find_source(source: str) -> Source:
    """Return what lies at a path, or the demo model by its name.

    Raises CheckError or CheckpointError when it is nothing that can be checked.
    """
    from soroq.bench.quality.decoder_model import DecoderSource, split_runtime
    from soroq.bench.quality.onnx_model import OnnxSource, find_onnx

    if split_runtime(source)[0]:
        return DecoderSource(source)
    file = find_onnx(source)
    return CheckpointSource(source) if file is None else OnnxSource(source, file)


def open_model(
    source: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> Model:
    """Load a model and its tokenizer; weights are converted to `dtype` as it runs."""
    return find_source(source).open(dtype, attention)


def model_key(source: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> str:
    """Return the hash of what decides a model's results, without loading it."""
    return find_source(source).key(dtype, attention)


def hash_facts(facts: Any) -> str:
    """Return the hash of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def refuse_other_tokenizer(base: Any, quant: Any, base_name: str, quant_name: str) -> None:
    """Raise CheckError unless two tokenizers have the same vocabulary and cut text alike."""
    if base is quant:
        return
    if len(base) != len(quant):
        raise CheckError(
            f"{quant_name} has a vocabulary of {len(quant)} tokens, {base_name} of {len(base)}; "
            "only models of one tokenizer can be compared token by token"
        )
    probe = "Душанбе — пойтахти Ҷумҳурии Тоҷикистон аст. Ғӯзаро 12,5 кило чиданд! The end."
    unlike = (
        base.get_vocab() != quant.get_vocab()
        or base.bos_token_id != quant.bos_token_id
        or base(probe).input_ids != quant(probe).input_ids
    )
    if unlike:
        raise CheckError(
            f"{quant_name} and {base_name} have different tokenizers; copy the original's "
            "tokenizer files into the quantized directory"
        )


def refuse_other_vocabulary(base: Source, quant: Source) -> None:
    """Raise CheckError if an ONNX model gives logits for other tokens than what it is beside.

    Checkpoints may differ by rows that pad the embedding, which a GGUF leaves out.
    """
    sizes = {base.vocab_size, quant.vocab_size} - {None}
    if (base.is_torch and quant.is_torch) or len(sizes) < 2:
        return
    raise CheckError(
        f"{quant.name} gives logits for {quant.vocab_size} tokens, {base.name} for "
        f"{base.vocab_size}; only models of one vocabulary can be compared"
    )
