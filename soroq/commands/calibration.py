"""Calibration sets from built-in text or files of one's own; `soroq calib build`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soroq import console
from soroq.calib.dataset import CalibrationSet
from soroq.calib.sample import build_calibration
from soroq.calib.sources import Document, builtin_documents, read_documents
from soroq.core.errors import CalibrationError

DEFAULT_MIX = {"tg": 0.7, "en": 0.3}


def parse_mix(text: str) -> dict[str, float]:
    """Parse 'tg=0.8,en=0.2'; '' is the default mix. Raises CalibrationError."""
    if not text:
        return dict(DEFAULT_MIX)
    shares: dict[str, float] = {}
    for part in text.split(","):
        language, _, share = part.partition("=")
        try:
            shares[language.strip()] = float(share)
        except ValueError as error:
            raise CalibrationError(f"mix {text!r} is not like tg=0.8,en=0.2") from error
    return shares


def build_set(
    documents: Mapping[str, Sequence[Document]],
    mix: dict[str, float],
    model: str,
    samples: int,
    seq_len: int,
    seed: int,
    name: str,
) -> CalibrationSet:
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return build_calibration(
        documents,
        document_encoder(tokenizer),
        bos=tokenizer.bos_token_id,
        n_samples=samples,
        seq_len=seq_len,
        mix=mix,
        seed=seed,
        name=Path(name).name,
        tokenizer=type(tokenizer).__name__,
    )


def document_encoder(tokenizer: Any) -> Callable[[Document], list[int]]:
    """Return document → token ids; conversations go through the chat template, if there is one."""

    def encode(document: Document) -> list[int]:
        text = document.plain
        if document.messages and tokenizer.chat_template:
            turns = [{"role": role, "content": content} for role, content in document.messages]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            text = text.removeprefix(tokenizer.bos_token or "")
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return encode


def run_calib_build(
    out: Path,
    model: str,
    texts: Sequence[str],
    mix: str,
    samples: int,
    seq_len: int,
    seed: int,
    license: str,
) -> None:
    given: dict[str, Sequence[Document]] = {}
    for text in texts:
        language, equals, path = text.partition("=")
        if not equals:
            raise CalibrationError(f"--text {text!r} is not language=FILE, e.g. tg=news.jsonl")
        own = list(read_documents(Path(path), license=license))
        given[language] = [*given.get(language, ()), *own]
    shares = parse_mix(mix) if mix or not given else dict.fromkeys(given, 1.0)
    for language in shares:
        if language not in given:
            given[language] = list(builtin_documents(language, "calib"))
    calibration = build_set(given, shares, model, samples, seq_len, seed, out.name)
    calibration.save(out)
    for source in calibration.manifest["sources"]:
        console.out.print(
            f"{source['language']}  {source['documents']:>4} documents  {source['source']} "
            f"({source['license']})",
            highlight=False,
        )
    console.out.print(f"wrote {out}: {samples} x {seq_len} tokens", highlight=False)
