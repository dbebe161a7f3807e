"""Run models over evaluation sets once, and keep what they said.

    base = Scorer("gemma3-270m")
    table = base.base_table(eval_set)                       # run, or read from the cache
    rows = Scorer("gemma3-270m-int4").quant_table(eval_set, base, table)

Finished parts lie in the cache under the hash of model, windows and settings: five quantizations
evaluate the original once, and a run that was stopped goes on where it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch

from soroq.bench.quality.model import (
    BATCH_TOKENS,
    Model,
    hash_facts,
    model_key,
    open_model,
)
from soroq.bench.quality.sets import EvalSet
from soroq.bench.quality.tables import (
    TAIL,
    TOP,
    BaseTable,
    QuantTable,
    base_rows,
    join_base,
    join_quant,
    quant_rows,
    rows_of,
)
from soroq.core.cache import cache_root
from soroq.core.memory import release_memory
from soroq.io.writer import atomic_write, make_folder

PART = 4  # windows in a part: what is lost when a run is stopped
Listen = Callable[[int, int, str], None]  # windows done, of how many, what


class Scorer:
    """One model: loaded when something has to be computed, never if all is in the cache.

    threads: compute tables with so many, and keep them apart (None: as torch is set, which is not
    part of the key: it moves the last digits only).
    """

    def __init__(
        self,
        source: str,
        *,
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        threads: int | None = None,
        cache: Path | None = None,
        listen: Listen = lambda done, total, what: None,
    ) -> None:
        self.source, self._dtype, self._attention = source, dtype, attention
        self._threads = threads
        self._cache = cache or cache_root() / "check"
        self._listen = listen
        self._model: Model | None = None

    @cached_property
    def key(self) -> str:
        key = model_key(self.source, self._dtype, self._attention)
        return key if self._threads is None else hash_facts([key, "threads", self._threads])

    @property
    def model(self) -> Model:
        if self._model is None:
            self._model = open_model(self.source, dtype=self._dtype, attention=self._attention)
            release_memory()
        return self._model

    def close(self) -> None:
        """Let the model go; it is loaded again when it is wanted."""
        self._model = None
        release_memory()

    def base_table(self, eval_set: EvalSet) -> BaseTable:
        """Return this model's own table on all positions of a set (n · (seq_len − 1), …)."""
        folder = self._folder("base", eval_set)

        def compute(ids: torch.Tensor, first: int) -> BaseTable:
            generator = torch.Generator().manual_seed(first)
            targets = ids[:, 1:].flatten()
            return join_base(
                [
                    base_rows(log_p, targets[span], generator)
                    for span, log_p in self.model.score_windows(ids)
                ]
            )

        parts = [BaseTable(**part) for part in self._parts(folder, eval_set, compute)]
        return join_base(parts)

    def quant_table(self, eval_set: EvalSet, base: "Scorer", table: BaseTable) -> QuantTable:
        """Return this model's table beside `table`, which `base` made on the same set."""
        folder = self._folder(f"against-{base.key[:16]}", eval_set)
        positions = eval_set.ids.shape[1] - 1

        def compute(ids: torch.Tensor, first: int) -> QuantTable:
            start = first * positions
            targets = ids[:, 1:].flatten()
            return join_quant(
                [
                    quant_rows(
                        log_q,
                        targets[span],
                        rows_of(table, slice(start + span.start, start + span.stop)),
                    )
                    for span, log_q in self.model.score_windows(ids)
                ]
            )

        parts = [QuantTable(**part) for part in self._parts(folder, eval_set, compute)]
        return join_quant(parts)

    def item_file(self, key: str) -> Path:
        """Return where this model's scores of a group of items are kept."""
        return self._cache / self.key[:32] / f"{key}.json"

    def _folder(self, kind: str, eval_set: EvalSet) -> Path:
        name = f"{kind}-{TOP}-{TAIL}-{eval_set.sha256[:16]}"
        return self._cache / self.key[:32] / name

    def _parts(
        self,
        folder: Path,
        eval_set: EvalSet,
        compute: Callable[[torch.Tensor, int], BaseTable | QuantTable],
    ) -> list[dict[str, torch.Tensor]]:
        from safetensors.torch import load_file, save

        n = len(eval_set.ids)
        batch = max(1, BATCH_TOKENS // eval_set.ids.shape[1])
        parts = []
        make_folder(folder)
        for first in range(0, n, PART):
            file = folder / f"{first:06d}.safetensors"
            if not file.exists():
                self._listen(first, n, f"{self.source} {eval_set.name}")
                rows = eval_set.ids[first : min(first + PART, n)]
                with _threads(self._threads):
                    found = [
                        asdict_of(compute(rows[i : i + batch], first + i))
                        for i in range(0, len(rows), batch)
                    ]
                whole = {name: torch.cat([f[name] for f in found]) for name in found[0]}
                atomic_write(file, save({k: v.contiguous() for k, v in whole.items()}), shared=True)
            parts.append(load_file(file))
        self._listen(n, n, f"{self.source} {eval_set.name}")
        return parts


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Run torch with n threads meanwhile; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def asdict_of(table: BaseTable | QuantTable) -> dict[str, torch.Tensor]:
    """Return a table's columns by name (dataclasses.asdict would copy them)."""
    return {field.name: getattr(table, field.name) for field in fields(table)}
