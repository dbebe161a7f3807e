"""Decoding with a whole step in one CUDA graph: a launch a token, however small the kernels.

    decoder = GraphDecoder(soroq.load("OUT", device="cuda"), max_length=2048)
    tokens = decoder.generate(ids, max_new_tokens=100, ends={1, 106})

Everything that a step needs lies in place: the cache is as long as it will ever be, masks are made
on the device from the position, the token chosen goes back to where it is read. On a CPU the same
steps run without a graph.
"""

from collections.abc import Collection
from typing import Any

import torch

CHECK_EVERY = 16  # tokens between two looks at whether all sequences have ended
WARM_STEPS = 2  # that run before a step is captured, beyond the prompt
# Columns come in sixteens: torch's attention copies a mask of other rows than multiples of 8 (2.0:
# 16) elements, in every layer (aten/native/transformers/attention.cpp, preprocess_mask).
ROOM = 16


class GraphDecoder:
    """Greedy or sampled decoding of `batch` sequences of equal length by a causal model.

    model: a transformers decoder (Gemma 3, Llama, Mistral, Qwen); max_length: prompt and new tokens
    at most; graph: whether a GPU captures a step. Layers with a sliding window keep the whole
    length too and are masked.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_length: int,
        batch: int = 1,
        temperature: float = 0.0,
        graph: bool = True,
    ) -> None:
        from transformers.cache_utils import Cache, StaticLayer

        self.model, self.max_length, self.temperature = model, max_length, temperature
        self.config = model.config.get_text_config()
        self.device = next(iter(model.buffers())).device
        kinds = getattr(self.config, "layer_types", None)
        self._kinds = sorted(set(kinds)) if kinds else []
        layers = self.config.num_hidden_layers
        room = -(-(max_length + WARM_STEPS) // ROOM) * ROOM
        self._layers: list[Any] = [StaticLayer(room) for _ in range(layers)]
        self._cache = Cache(layers=self._layers)
        new = {"dtype": torch.long, "device": self.device}
        self.token = torch.zeros(batch, 1, **new)
        self.tokens = torch.zeros(batch, room, **new)
        self.position = torch.zeros(1, **new)
        self._columns = torch.arange(room, device=self.device)
        self._captures = graph and self.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def generate(
        self, ids: torch.Tensor, *, max_new_tokens: int, ends: Collection[int] = ()
    ) -> torch.Tensor:
        """Return the tokens (batch, n) behind ids (batch, S), n ≤ max_new_tokens.

        A sequence stops at the first of `ends`, which is kept and repeated until all have stopped.
        Raises ValueError for another batch or more tokens than max_length.
        """
        batch, length = ids.shape
        if batch != self.token.shape[0] or length + max_new_tokens > self.max_length:
            raise ValueError(
                f"{batch} × {length} tokens and {max_new_tokens} new ones don't fit "
                f"{self.token.shape[0]} × {self.max_length}; make a larger GraphDecoder"
            )
        self.start(ids)
        made = 1
        while made < max_new_tokens:
            self.step()
            made += 1
            if ends and made % CHECK_EVERY == 0 and bool(self._ended(length, made, ends).all()):
                break
        new = self.tokens[:, length : length + made].clone()
        for row, end in zip(new, self._first_ends(new, ends), strict=True):
            row[end:] = row[min(end, made - 1)]
        longest = max(self._first_ends(new, ends)) + 1
        return new[:, : min(longest, made)]

    @torch.no_grad()
    def start(self, ids: torch.Tensor) -> None:
        """Read the prompts ids (batch, S) and choose the token behind each."""
        for layer in self._layers:
            layer.cumulative_length.zero_()
        rows = torch.arange(ids.shape[1], device=self.device)
        self.position.fill_(ids.shape[1] - 1)
        self._choose(self._forward(ids.to(self.device), rows))
        if self._captures and self._graph is None:
            self._capture()

    def step(self) -> None:
        """Read the last token and choose the next."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    @torch.no_grad()
    def _run(self) -> None:
        self._choose(self._forward(self.token, self.position))

    def _forward(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, V) of the last of ids (batch, S) at positions rows (S,)."""
        mask: Any = {kind: self._mask(rows, "sliding" in kind) for kind in self._kinds}
        output = self.model(
            input_ids=ids,
            attention_mask=mask or self._mask(rows, bool(self._window())),
            position_ids=rows[None].expand(ids.shape[0], -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _window(self) -> int | None:
        return getattr(self.config, "sliding_window", None)

    def _mask(self, rows: torch.Tensor, slides: bool) -> torch.Tensor:
        """Return what is added to scores (1, 1, S, columns): 0 for what a row may see."""
        seen = self._columns <= rows[:, None]
        window = self._window()
        if slides and window:
            seen &= self._columns > rows[:, None] - window
        dtype = self.model.dtype
        return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]

    def _choose(self, logits: torch.Tensor) -> None:
        """Put the next token where it is read, and go on a position."""
        if self.temperature:
            uniform = torch.rand_like(logits, dtype=torch.float32).clamp_min_(1e-20)
            logits = logits / self.temperature - (-uniform.log()).log()  # Gumbel-max
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.add_(1)
        self.tokens.index_copy_(1, self.position, self.token)

    def _capture(self) -> None:
        """Record a step; steps run first, as kernels and scratch memory need, and are undone."""
        length = int(self.position)
        first = self.token.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.rewind(length, first)
        with torch.cuda.graph(graph):
            self._run()
        self.rewind(length, first)
        self._graph = graph

    def rewind(self, length: int, token: torch.Tensor) -> None:
        """Go back to where `token` (batch, 1) was chosen, behind `length` tokens."""
        self.position.fill_(length)
        self.token.copy_(token)
        for layer in self._layers:
            layer.cumulative_length.fill_(length)

    def _ended(self, length: int, made: int, ends: Collection[int]) -> torch.Tensor:
        new = self.tokens[:, length : length + made]
        return torch.isin(new, torch.tensor(sorted(ends), device=self.device)).any(1)

    def _first_ends(self, new: torch.Tensor, ends: Collection[int]) -> list[int]:
        """Return where each sequence first ends; behind its last token when it doesn't."""
        found = []
        for row in new.tolist():
            found.append(next((i for i, token in enumerate(row) if token in ends), len(row)))
        return found
