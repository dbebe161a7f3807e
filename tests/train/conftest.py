"""A tiny Gemma 3, its tokenizer, and a corpus of two languages in its tokens."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from soroq.loading import load_tokenizer
from soroq.models.tiny import write_tiny_model
from soroq.train.config import Config, make_config
from soroq.train.corpus.shards import CARD, FORMAT, ShardWriter, tokenizer_fingerprint

TAJIK = "Тоҷикистон кишвари кӯҳӣ аст ва дар он дарёҳои зиёд ҳаст. "
ENGLISH = "The country is mountainous and it has many rivers, which is good for it. "


def write_corpus(folder: Path, tokenizer: Any, texts: dict[str, list[str]]) -> Path:
    """Write texts, by language, as the training and the validation split of a corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, Any] = {}
    for split in ("train", "valid"):
        splits[split] = {}
        for language, documents in texts.items():
            writer = ShardWriter(folder, split, language, shard_tokens=1000)
            for text in documents:
                writer.add(tokenizer(text)["input_ids"])
            splits[split][language] = writer.finish()
    card = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "bos": tokenizer.bos_token_id,
        "splits": splits,
    }
    (folder / CARD).write_text(json.dumps(card))
    return folder


@dataclass(frozen=True)
class Tiny:
    """A model's directory, its tokenizer, a corpus, and a configuration that trains on it."""

    model: Path
    tokenizer: Any
    corpus: Path
    tajik: str = TAJIK
    english: str = ENGLISH

    def config(self, **changes: dict[str, Any]) -> Config:
        """Return a short float32 run; `changes` are tables of keys."""
        given: dict[str, dict[str, Any]] = {
            "model": {"source": str(self.model)},
            "data": {
                "corpus": str(self.corpus),
                "seq_len": 48,
                "shares": {"tg": 0.75, "en": 0.25},
            },
            "train": {
                "steps": 6,
                "batch": 4,
                "micro_batch": 2,
                "learning_rate": 1e-3,
                "compute": "float32",
            },
            "run": {
                "checkpoint_every": 2,
                "validate_every": 3,
                "validation": 4,
                "peak_tflop_s": 0.1,
                "tensorboard": False,
            },
        }
        for table, values in changes.items():
            given[table] = given.get(table, {}) | values
        return make_config(given, "test")

    def with_corpus(self, folder: Path, texts: dict[str, list[str]]) -> "Tiny":
        """Return the same with a corpus of these texts, by language."""
        return replace(self, corpus=write_corpus(folder, self.tokenizer, texts))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    model = write_tiny_model(root / "model")
    tokenizer = load_tokenizer(model)
    texts = {
        "tg": [TAJIK * k for k in range(1, 9)],
        "en": [ENGLISH * k for k in range(1, 9)],
    }
    return Tiny(model, tokenizer, write_corpus(root / "corpus", tokenizer, texts))


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Tiny:
    """The tiny model with Gemma's marks in its vocabulary, and no template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny.model, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    )
    tokenizer.save_pretrained(folder)
    return replace(tiny, model=folder, tokenizer=load_tokenizer(folder))
