"""What a run learns from: a corpus as packed sequences, and a fixed set of them to validate on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soroq.calib.language import LANGUAGES, guess_language
from soroq.core.errors import CalibrationError
from soroq.train.config import Config
from soroq.train.corpus.shards import Corpus, read_corpus, tokenizer_fingerprint
from soroq.train.packing import Packed, Packer, Stream

SAMPLE = 64  # documents whose language is looked at


@dataclass(frozen=True)
class Data:
    """packer: what is learned; validation: language → sequences; record: for soroq-train.json."""

    packer: Packer
    validation: Mapping[str, Sequence[Packed]]
    record: Mapping[str, Any]


def read_pretraining_data(config: Config, tokenizer: Any) -> Data:
    """Return the data of `soroq train pretrain`.

    Raises CalibrationError for a corpus that is missing, empty, of another tokenizer, or in another
    language than it says.
    """
    if not config.data.corpus:
        raise CalibrationError("data.corpus is missing: a directory of `soroq train corpus`")
    corpus = read_corpus(Path(config.data.corpus))
    refuse_other_tokenizer(corpus, tokenizer)
    shares = dict(config.data.shares) or {
        language: float(corpus.tokens("train", language)) for language in corpus.languages("train")
    }
    if not any(shares.values()):
        raise CalibrationError(f"{corpus.path} has no text to train on; build the corpus anew")
    seq_len, seed = config.data.seq_len, config.train.seed
    streams = {}
    for language in (name for name, share in shares.items() if share > 0):
        documents = corpus.documents("train", language)
        _refuse_other_language(corpus, language, documents, tokenizer)
        streams[language] = Stream(documents, seq_len, seed)
    validation = {}
    for language in corpus.languages("valid"):
        if not corpus.tokens("valid", language):
            continue
        stream = Stream(corpus.documents("valid", language), seq_len, seed)
        whole = max(1, corpus.tokens("valid", language) // seq_len)
        validation[language] = [stream.next() for _ in range(min(whole, config.run.validation))]
    record = {
        "corpus": corpus.path.name,
        "shards": {
            split: {
                language: [shard["sha256"] for shard in entry["shards"]]
                for language, entry in languages.items()
            }
            for split, languages in corpus.card["splits"].items()
        },
        "tokenizer_sha256": corpus.tokenizer_sha256,
        "shares": shares,
    }
    return Data(Packer(streams, shares), validation, record)


def refuse_other_tokenizer(corpus: Corpus, tokenizer: Any) -> None:
    """Raise CalibrationError unless the corpus was made with this tokenizer."""
    given = tokenizer_fingerprint(tokenizer)
    if given != corpus.tokenizer_sha256:
        raise CalibrationError(
            f"{corpus.path} was made with another tokenizer ({corpus.tokenizer_sha256[:12]}…, the "
            f"model's is {given[:12]}…); build the corpus with this model's"
        )


def _refuse_other_language(
    corpus: Corpus, language: str, documents: Sequence[torch.Tensor], tokenizer: Any
) -> None:
    """Raise CalibrationError if most of a sample of the documents is in another language."""
    if language not in LANGUAGES:
        return
    found: dict[str, int] = {}
    for index in range(0, len(documents), max(1, len(documents) // SAMPLE)):
        text = tokenizer.decode(documents[index][:400].tolist(), skip_special_tokens=True)
        guess = guess_language(text).language
        if guess in LANGUAGES:
            found[guess] = found.get(guess, 0) + 1
    others = sum(found.values()) - found.get(language, 0)
    if others > found.get(language, 0):
        worst = max((name for name in found if name != language), key=lambda name: found[name])
        raise CalibrationError(
            f"{corpus.path}: text called {language} is mostly in {worst} ({others} of "
            f"{sum(found.values())} documents looked at are not {language})"
        )
