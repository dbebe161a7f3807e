"""From kept texts to shards, a shard at a time: what a killed build wrote is not written again."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from soroq.io.writer import atomic_write
from soroq.train.corpus.shards import SHARD_TOKENS, ShardWriter, tokenizer_fingerprint

PROGRESS = "progress.json"
EVERY = 500  # documents between two calls of `listen`
Listener = Callable[[int, int, str], None]


def write_shards(
    folder: Path,
    files: Mapping[tuple[str, str], Path],
    tokenizer: Any,
    *,
    shard_tokens: int = SHARD_TOKENS,
    listen: Listener = lambda done, total, what: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Tokenize files of rows {"text", "source"}; return corpus.json's `splits`, tokens by source.

    files: (split, language) → file. How far it is stays in `folder`/progress.json, for a run that
    goes on; one with another tokenizer begins anew.
    """
    fresh: dict[str, Any] = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "finished": {},
        "offset": 0,
        "shards": [],
        "tokens": {},
    }
    path = folder / PROGRESS
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else fresh
    if state["tokenizer"] != fresh["tokenizer"]:
        shutil.rmtree(folder)
        state = fresh
    folder.mkdir(exist_ok=True)
    tokens = Counter(state["tokens"])

    def keep() -> None:
        state["tokens"] = dict(tokens)
        atomic_write(path, json.dumps(state, ensure_ascii=False).encode())

    total, before = sum(file.stat().st_size for file in files.values()), 0
    for (split, language), file in files.items():
        name = f"{split}-{language}"
        if name not in state["finished"]:
            writer = ShardWriter(folder, split, language, shard_tokens, state["shards"])
            for count, (offset, text, source) in enumerate(_rows(file, state["offset"])):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                shards = len(writer.shards)
                writer.add([tokenizer.bos_token_id, *ids])
                if len(writer.shards) > shards:  # without this document
                    state["shards"], state["offset"] = writer.shards, offset
                    keep()
                tokens[source] += len(ids) + 1
                if count % EVERY == 0:
                    listen(before + offset, total, f"{split} {language}: tokens")
            state["finished"][name] = writer.finish()
            state["shards"], state["offset"] = [], 0
            keep()
        before += file.stat().st_size
    splits: dict[str, dict[str, Any]] = {split: {} for split, _ in files}
    for split, language in files:
        if state["finished"][f"{split}-{language}"]["documents"]:
            splits[split][language] = state["finished"][f"{split}-{language}"]
    return splits, dict(tokens)


def _rows(path: Path, offset: int) -> Iterator[tuple[int, str, str]]:
    """Yield (where its line begins, text, source) of the rows from byte `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            row = json.loads(line)
            yield offset, row["text"], row["source"]
            offset += len(line)
