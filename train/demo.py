"""What `soroq train demo` learns from: the built-in passages as a corpus, and as conversations.

A passage's beginning is the question, its rest the answer: enough to see that training runs, no
data to make a good model of.
"""

import json
from pathlib import Path
from typing import Any

from soroq.calib.sources import builtin_documents
from soroq.io.writer import atomic_write, make_folder
from soroq.train.corpus.shards import CARD, FORMAT, ShardWriter, tokenizer_fingerprint

ASK = "Ин матнро давом диҳед: "
FEW = 40  # conversations


def write_demo_corpus(folder: Path, tokenizer: Any) -> Path:
    """Write the built-in Tajik and English passages as a corpus; return its folder."""
    make_folder(folder)
    splits: dict[str, Any] = {}
    for split in ("train", "valid"):
        splits[split] = {}
        for language in ("tg", "en"):
            writer = ShardWriter(folder, split, language)
            for document in builtin_documents(language, "calib" if split == "train" else "check"):
                writer.add(tokenizer(document.plain)["input_ids"])
            splits[split][language] = writer.finish()
    card = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "bos": tokenizer.bos_token_id,
        "splits": splits,
    }
    atomic_write(folder / CARD, json.dumps(card, indent=1).encode())
    return folder


def write_demo_conversations(path: Path) -> Path:
    """Write some built-in Tajik passages as questions and answers; return the file."""
    rows: list[dict[str, str]] = []
    for document in builtin_documents("tg", "calib"):
        first, dot, rest = document.plain.partition(". ")
        if rest and len(rows) < FEW:
            rows.append({"prompt": f"{ASK}{first}{dot}", "completion": rest[:300]})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(path, text.encode())
    return path
