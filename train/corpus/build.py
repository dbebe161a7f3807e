"""From files to shards: read, clean, filter, mask, drop doubles, split; then tokenize.

First every document is looked at, in order, and the good ones are written down as text; what has
been done so far is kept every EVERY documents, so a killed build goes on there. Then the texts
become shards, and a killed build goes on behind the last one. Memory holds one document, the
benchmarks' runs and one shard; the same files and seed give the same bytes, killed or not.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soroq.calib.language import LANGUAGES
from soroq.calib.normalize import normalize_tajik, normalize_text
from soroq.core.errors import CalibrationError
from soroq.io.writer import atomic_write, require_empty_dir
from soroq.train.corpus.card import data_card
from soroq.train.corpus.decontaminate import Benchmarks
from soroq.train.corpus.dedup import Seen
from soroq.train.corpus.pii import mask
from soroq.train.corpus.quality import objection
from soroq.train.corpus.shards import CARD, FORMAT, tokenizer_fingerprint
from soroq.train.corpus.sources import Raw, find_files, read_file
from soroq.train.corpus.tokens import PROGRESS, write_shards

MOST_SOURCES = 1000  # that are counted apart: pages of the web have one each
EVERY = 500  # documents between two states on disk
SPLITS = ("train", "valid")
STATE, DROPPED = "state.json", "dropped.jsonl"
Listener = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What to build. texts: (language, file or folder) in order; valid_share: of the documents."""

    texts: tuple[tuple[str, Path], ...]
    benchmarks: tuple[Path, ...] = ()
    valid_share: float = 0.02
    license: str = "unknown"
    seed: int = 0


@dataclass
class _State:
    """How far a build is: documents looked at by file, bytes of what was written, counts."""

    number: int = 0
    done: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)


def build(
    request: Request,
    out: Path,
    tokenizer: Any,
    *,
    resume: bool = False,
    listen: Listener = lambda done, total, what: None,
) -> None:
    """Write a corpus (train.corpus.shards) and its data card into the new directory `out`.

    listen gets bytes of files read, of all, and what is looked at. Raises CalibrationError when a
    language ends without text, or a file can't be read.
    """
    work = out.with_name(f"{out.name}.partial")
    require_empty_dir(out)
    _refuse_unknown(request, tokenizer)
    files = [(lang, file) for lang, path in request.texts for file in find_files(path)]
    benchmarks = Benchmarks(request.benchmarks)
    plan = _plan(request, files)
    if work.exists() and not resume:
        raise CalibrationError(f"{work} is an unfinished build: go on with --resume, or delete it")
    work.mkdir(parents=True, exist_ok=True)
    state = _open_state(work, plan)
    _Sieve(request, work, state, plan, benchmarks).run(files, listen)
    names = {
        (split, language): work / f"{split}-{language}.jsonl"
        for split in SPLITS
        for language in dict.fromkeys(language for language, _ in request.texts)
    }
    for (split, language), name in names.items():
        if split == "train" and not state.sizes[name.name]:
            raise CalibrationError(
                f"no {language} text is left to train on; {work / DROPPED} says why"
            )
    splits, tokens = write_shards(work / "corpus", names, tokenizer, listen=listen)
    for key, entry in state.sources.items():
        entry["tokens"] = tokens.get(key, 0)
    card: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "bos": tokenizer.bos_token_id,
        "seed": request.seed,
        "benchmarks": [path.name for path in request.benchmarks],
        "splits": splits,
        "sources": [state.sources[key] for key in sorted(state.sources)],
    }
    made = work / "corpus"
    atomic_write(made / CARD, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    atomic_write(made / "DATA_CARD.md", data_card(card).encode())
    shutil.copyfile(work / DROPPED, made / DROPPED)
    (made / PROGRESS).unlink()
    if out.exists():
        out.rmdir()  # require_empty_dir saw to it that it is empty
    os.replace(made, out)
    shutil.rmtree(work)


class _Sieve:
    """Looks at every document once; writes the good ones and why the others are not."""

    def __init__(
        self,
        request: Request,
        work: Path,
        state: _State,
        plan: dict[str, Any],
        benchmarks: Benchmarks,
    ) -> None:
        self._request, self._work, self._state, self._plan = request, work, state, plan
        self._benchmarks = benchmarks
        languages = dict.fromkeys(language for language, _ in request.texts)
        names = [f"{split}-{language}.jsonl" for split in SPLITS for language in languages]
        self._files = {}
        for name in (*names, DROPPED):
            self._files[name] = (work / name).open("ab")
            self._files[name].truncate(state.sizes.get(name, 0))
            self._files[name].seek(0, os.SEEK_END)
        self._seen = Seen(work / "seen.sqlite", state.number)

    def run(self, files: list[tuple[str, Path]], listen: Listener) -> None:
        """Go through all files; what the state says is done is skipped."""
        total = sum(file.stat().st_size for _, file in files)
        before = 0
        for index, (language, file) in enumerate(files):
            key = f"{index}"
            done, read = self._state.done.get(key, 0), 0
            listen(before, total, file.name)
            if done >= 0:
                for place, raw in enumerate(read_file(file, language, self._request.license)):
                    if place < done:
                        continue
                    self._look(raw)
                    self._state.done[key] = place + 1
                    read = min(read + len(raw.text.encode()), file.stat().st_size)
                    if self._state.number % EVERY == 0:
                        self._keep()
                        listen(before + read, total, f"{file.name}, document {place + 1}")
                self._state.done[key] = -1
                self._keep()
            before += file.stat().st_size
        self._keep()
        for open_file in self._files.values():
            open_file.close()
        self._seen.close()

    def _look(self, raw: Raw) -> None:
        number = self._state.number
        self._state.number += 1
        key = json.dumps([raw.language, raw.source, raw.license])
        source = raw.source
        if key not in self._state.sources and len(self._state.sources) >= MOST_SOURCES:
            source = "other sources"
            key = json.dumps([raw.language, source, raw.license])
        entry = self._state.sources.setdefault(
            key,
            {
                "source": source,
                "license": raw.license,
                "language": raw.language,
                "documents": 0,
                "characters": 0,
                "tokens": 0,
                "dropped": {},
                "masked": {},
            },
        )
        text = (normalize_tajik if raw.language == "tg" else normalize_text)(raw.text)
        reason, evidence = self._judge(raw, text, number)
        if reason:
            entry["dropped"][reason] = entry["dropped"].get(reason, 0) + 1
            row = {"where": raw.where, "source": raw.source, "reason": reason}
            self._write(DROPPED, row | ({"evidence": evidence} if evidence else {}))
            return
        text, masked = mask(text)
        entry["documents"] += 1
        entry["characters"] += len(text)
        entry["masked"] = dict(sorted((Counter(entry["masked"]) + masked).items()))
        split = "valid" if _is_valid(text, self._request) else "train"
        self._write(
            f"{split}-{raw.language}.jsonl",
            {"text": text, "source": key},
        )

    def _judge(self, raw: Raw, text: str, number: int) -> tuple[str, str]:
        """Return why a document is dropped and what shows it; '' twice if it stays."""
        if raw.dropped:
            return raw.dropped, ""
        if reason := objection(text, raw.language):
            return reason, ""
        if found := self._benchmarks.find(text):
            return "benchmark", f"{found[0]}: {found[1]}"
        twin = self._seen.add(text, number)
        return ("", "") if twin is None else ("near-duplicate", f"of document {twin}")

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write((json.dumps(row, ensure_ascii=False) + "\n").encode())

    def _keep(self) -> None:
        """Put everything so far on disk, the state last."""
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            self._state.sizes[name] = file.tell()
        self._seen.commit()
        text = json.dumps({"plan": self._plan, "state": asdict(self._state)}, ensure_ascii=False)
        atomic_write(self._work / STATE, text.encode())


def _refuse_unknown(request: Request, tokenizer: Any) -> None:
    """Raise CalibrationError for a language that can't be told, or a tokenizer without BOS."""
    for language, _ in request.texts:
        if language not in LANGUAGES:
            raise CalibrationError(
                f"text in {language!r} can't be told from others; known: {', '.join(LANGUAGES)}"
            )
    if tokenizer.bos_token_id is None:
        raise CalibrationError("the tokenizer has no BOS, with which documents begin in a corpus")


def _is_valid(text: str, request: Request) -> bool:
    """Tell, by the text itself, whether a document is kept for validation."""
    digest = hashlib.sha256(f"{request.seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < request.valid_share * 2**64


def _plan(request: Request, files: list[tuple[str, Path]]) -> dict[str, Any]:
    """Return what decides the result, to be compared when a build goes on."""
    return {
        "files": [[language, file.name, file.stat().st_size] for language, file in files],
        "benchmarks": [[path.name, path.stat().st_size] for path in request.benchmarks],
        "valid_share": request.valid_share,
        "license": request.license,
        "seed": request.seed,
    }


def _open_state(work: Path, plan: dict[str, Any]) -> _State:
    path = work / STATE
    if not path.is_file():
        return _State()
    kept = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in plan if kept["plan"].get(key) != plan[key]]
    if changed:
        raise CalibrationError(f"{work} was begun with other {', '.join(changed)}; delete it")
    return _State(**kept["state"])
