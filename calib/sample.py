"""Build a CalibrationSet: normalize, check the language, deduplicate, sample by stratum, tokenize.

Windows are BOS and seq_len − 1 tokens of documents joined by an empty line; each language gets its
share of the windows, and within a language the kinds (news, school, …) take turns, so that a large
kind doesn't crowd out a small one. Everything is decided by the seed.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.calib.language import guess_language
from soroq.calib.normalize import normalize_tajik, normalize_text
from soroq.calib.sources import Document
from soroq.core.errors import CalibrationError

Encode = Callable[[Document], list[int]]
SHINGLE_WORDS = 5
NEAR_DUPLICATE = 0.6  # share of a document's 5-word shingles already seen


@dataclass(frozen=True)
class Filtered:
    """Documents of one language that passed, and how many were dropped and why."""

    documents: list[Document]
    dropped: dict[str, int]


def filter_documents(documents: Iterable[Document], language: str) -> Filtered:
    """Normalize documents, keep those in `language`, drop exact and near duplicates.

    A document that names another language itself is skipped; one that names none is guessed.
    """
    kept: list[Document] = []
    dropped: dict[str, int] = defaultdict(int)
    seen: set[bytes] = set()
    shingles: set[int] = set()
    clean = normalize_tajik if language == "tg" else normalize_text
    for document in documents:
        if document.language is not None and document.language != language:
            continue
        text = clean(document.text)
        turns = tuple((role, clean(content)) for role, content in document.messages)
        plain = text or "\n\n".join(content for _, content in turns)
        if document.language is None or language == "tg":
            guess = guess_language(plain).language
            if guess != language and not (turns and document.language == language):
                dropped[f"language:{guess}"] += 1
                continue
        digest = hashlib.sha256(" ".join(plain.lower().split()).encode()).digest()
        if digest in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(digest)
        own = _shingles(plain)
        if own and len(own & shingles) / len(own) > NEAR_DUPLICATE:
            dropped["near duplicate"] += 1
            continue
        shingles |= own
        kept.append(
            Document(text, turns, language, document.kind, document.source, document.license)
        )
    return Filtered(kept, dict(dropped))


def build_calibration(
    documents: Mapping[str, Iterable[Document]],
    encode: Encode,
    *,
    bos: int | None,
    n_samples: int,
    seq_len: int,
    mix: Mapping[str, float],
    seed: int,
    name: str,
    tokenizer: str = "",
) -> CalibrationSet:
    """Return n_samples windows of seq_len tokens, shared between languages by `mix`.

    documents: language → its documents. Raises CalibrationError when a language has too little
    text (saying how many windows it gives) or none that passes the language check.
    """
    shares = share_windows(mix, n_samples)
    rows: list[list[int]] = []
    languages: list[str] = []
    sources: dict[tuple[str, str, str], list[Document]] = defaultdict(list)
    dropped: dict[str, dict[str, int]] = {}
    head = [] if bos is None else [bos]
    body = seq_len - len(head)
    for language, count in shares.items():
        if count == 0:
            continue
        filtered = filter_documents(documents[language], language)
        dropped[language] = filtered.dropped
        if not filtered.documents:
            reasons = ", ".join(f"{k} {v}" for k, v in filtered.dropped.items()) or "nothing read"
            raise CalibrationError(f"no calibration text in {language!r} is left ({reasons})")
        stream: list[int] = []
        used: list[Document] = []
        separator = encode(Document("\n\n", (), None, "", "", ""))
        for document in take_turns(filtered.documents, seed):
            if len(stream) >= count * body:
                break
            stream += (separator if stream else []) + encode(document)
            used.append(document)
        if len(stream) < count * body:
            raise CalibrationError(
                f"calibration text in {language!r} gives {len(stream) // body} windows of "
                f"{seq_len} tokens, {count} were asked for; use --samples "
                f"{n_samples * (len(stream) // body) // count} or more text"
            )
        rows += [head + stream[i * body : (i + 1) * body] for i in range(count)]
        languages += [language] * count
        for document in used:
            sources[(document.source, document.license, language)].append(document)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    ids = torch.tensor([rows[i] for i in order], dtype=torch.int64)
    manifest = {
        "name": name,
        "n": len(rows),
        "seq_len": seq_len,
        "seed": seed,
        "mix": dict(mix),
        "tokenizer": tokenizer,
        "sha256": ids_sha256(ids),
        "dropped": dropped,
        "sources": [
            {
                "source": source,
                "license": license,
                "language": language,
                "documents": len(items),
                "sha256": hashlib.sha256("\0".join(d.plain for d in items).encode()).hexdigest(),
            }
            for (source, license, language), items in sorted(sources.items())
        ],
    }
    return CalibrationSet(ids, tuple(languages[i] for i in order), manifest)


def share_windows(mix: Mapping[str, float], n_samples: int) -> dict[str, int]:
    """Split n_samples by share (largest remainder). Raises CalibrationError for bad shares."""
    total = sum(mix.values())
    if not mix or total <= 0 or min(mix.values()) < 0:
        raise CalibrationError(f"mix {dict(mix)} is not a set of shares, e.g. tg=0.75,en=0.25")
    exact = {language: share / total * n_samples for language, share in mix.items()}
    counts = {language: int(value) for language, value in exact.items()}
    missing = n_samples - sum(counts.values())
    for language in sorted(exact, key=lambda k: (counts[k] - exact[k], k))[:missing]:
        counts[language] += 1
    return counts


def take_turns(documents: list[Document], seed: int) -> list[Document]:
    """Return all documents in a seeded order in which their kinds alternate."""
    strata: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        strata[document.kind].append(document)
    generator = random.Random(seed)
    queues = []
    for kind in sorted(strata):
        generator.shuffle(strata[kind])
        queues.append(strata[kind])
    ordered = []
    while any(queues):
        for queue in queues:
            if queue:
                ordered.append(queue.pop())
    return ordered


def _shingles(text: str) -> set[int]:
    words = text.lower().split()
    return {
        int.from_bytes(
            hashlib.blake2b(" ".join(words[i : i + SHINGLE_WORDS]).encode(), digest_size=8).digest()
        )
        for i in range(len(words) - SHINGLE_WORDS + 1)
    }
