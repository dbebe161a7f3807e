"""train corpus, train tokenizer: texts in, shards or a report out."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from soroq import console
from soroq.core.errors import CalibrationError
from soroq.train.corpus.build import Request


def parse_texts(texts: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Parse ("tg=PATH", …). Raises CalibrationError for another form."""
    found = []
    for text in texts:
        language, mark, path = text.partition("=")
        if not mark or not language.isalpha() or not path:
            raise CalibrationError(f"--text {text!r}: give LANGUAGE=PATH, e.g. tg=texts/")
        found.append((language, Path(path)))
    return tuple(found)


def run_corpus(
    out: Path,
    texts: tuple[str, ...],
    model: str,
    benchmarks: tuple[Path, ...],
    valid_share: float,
    license: str,
    seed: int,
    resume: bool,
) -> None:
    """Build a corpus as typed; print what is in it."""
    request = Request(parse_texts(texts), benchmarks, valid_share, license, seed)
    build_corpus(request, out, model, resume)


def build_corpus(request: Request, out: Path, model: str, resume: bool) -> None:
    """Build a corpus with the share done and the time left on the terminal; print its sizes."""
    from soroq.loading import load_tokenizer
    from soroq.train.corpus.build import build
    from soroq.train.corpus.shards import read_corpus

    started = time.monotonic()

    def show(done: int, total: int, what: str) -> None:
        left = (time.monotonic() - started) * (total - done) / done if done else 0.0
        share = f"{100 * done / max(total, 1):.0f} %"
        ending = f", about {left:.0f} s left" if done else ""
        print(f"{share} {what}{ending}", file=sys.stderr, flush=True)

    try:
        build(request, out, load_tokenizer(model), resume=resume, listen=show)
    except KeyboardInterrupt:
        print("soroq: interrupted; go on with the same command and --resume", file=sys.stderr)
        raise
    corpus = read_corpus(out)
    rows = [
        [split, language, str(entry["documents"]), str(entry["tokens"])]
        for split, languages in corpus.card["splits"].items()
        for language, entry in languages.items()
    ]
    console.table(str(out), ["split", "language", "documents", "tokens"], rows)


def run_tokenizer(model: str, texts: tuple[str, ...], parallel: bool, json_out: bool) -> None:
    """Print tokens a word and a byte by language, and what the first one costs against the others.

    parallel: the texts are translations of each other, line by line; what is compared is then the
    same content, not a word. Raises CalibrationError when their lines can't be.
    """
    from soroq.loading import load_tokenizer
    from soroq.train.corpus.sources import find_files, read_file
    from soroq.train.tokenizer_report import report

    tokenizer = load_tokenizer(model)
    read = {
        language: [raw.text for file in find_files(path) for raw in read_file(file, language, "")]
        for language, path in parse_texts(texts)
    }
    if parallel:
        _refuse_other_lines(read)
    found = {language: report(tokenizer, documents) for language, documents in read.items()}
    if json_out:
        print(json.dumps({language: asdict(made) for language, made in found.items()}, indent=2))
        return
    rows = [
        [
            language,
            str(made.words),
            f"{made.tokens_per_word:.2f}",
            f"{made.tokens_per_byte:.3f}",
            f"{made.characters_per_token:.2f}",
            f"{made.words_in_context(8192)}",
            f"{made.whole_words:.2f}",
            f"{made.bytes_alone:.4f}",
        ]
        for language, made in found.items()
    ]
    columns = ["language", "words", "tokens/word", "tokens/byte", "characters/token"]
    columns += ["words in 8192 tokens", "words of one token", "tokens of a byte"]
    console.table(f"{model}: tokenizer", columns, rows)
    first, *rest = found
    for language in rest:
        if parallel:
            times, what = found[first].tokens / found[language].tokens, "what is said in"
        else:
            times = found[first].tokens_per_word / found[language].tokens_per_word
            what = "a word of"
        console.out.print(
            f"{what} {first} takes {times:.2f} times the tokens of {language}'s: so many times as "
            "long to read and write, and as much of the context",
            highlight=False,
        )


def _refuse_other_lines(read: dict[str, list[str]]) -> None:
    counts = {
        language: sum(bool(line.strip()) for text in texts for line in text.splitlines())
        for language, texts in read.items()
    }
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{language} {count}" for language, count in counts.items())
        raise CalibrationError(
            f"--parallel texts are translations line by line, but have {said} lines"
        )
