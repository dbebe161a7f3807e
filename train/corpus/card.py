"""DATA_CARD.md: what a corpus holds, from where, under which licence, and what was left out."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

MOST_ROWS = 40  # of sources; beyond, those of one collection are counted together


def data_card(card: dict[str, Any]) -> str:
    """Return the card of `corpus.json` as Markdown."""
    lines = ["# Data card", "", "| split | language | documents | tokens | shards |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for split, languages in card["splits"].items():
        for language, entry in languages.items():
            lines.append(
                f"| {split} | {language} | {entry['documents']} | {entry['tokens']} "
                f"| {len(entry['shards'])} |"
            )
    lines += ["", "| licence | language | documents | tokens |", "| --- | --- | ---: | ---: |"]
    by_licence: dict[tuple[str, str], list[int]] = {}
    for source in card["sources"]:
        total = by_licence.setdefault((source["license"], source["language"]), [0, 0])
        total[0] += source["documents"]
        total[1] += source["tokens"]
    for (licence, language), (documents, tokens) in by_licence.items():
        lines.append(f"| {_cell(licence)} | {language} | {documents} | {tokens} |")
    lines += ["", "| source | language | licence | documents | characters | tokens | dropped |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    for source in card["sources"]:
        dropped.update(source["dropped"])
        masked.update(source["masked"])
    for row in _collections(card["sources"]):
        lines.append(
            f"| {_cell(row['source'])} | {row['language']} | {_cell(row['license'])} "
            f"| {row['documents']} | {row['characters']} | {row['tokens']} | {row['dropped']} |"
        )
    lines += ["", "Left out (`dropped.jsonl` names each):", ""]
    lines += [f"- {reason}: {count}" for reason, count in dropped.most_common()] or ["- nothing"]
    lines += ["", "Masked:", ""]
    lines += [f"- {kind}: {count}" for kind, count in masked.most_common()] or ["- nothing"]
    lines += [
        "",
        f"Compared with benchmarks: {', '.join(card['benchmarks']) or 'none'}. Tokenizer "
        f"{card['tokenizer_sha256'][:16]}, {card['vocab_size']} tokens. A licence that no file "
        "named is what the builder was told.",
    ]
    return "\n".join(lines) + "\n"


def _collections(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a source; of many, one a collection: what a name has before its first /."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for source in sources:
        name = source["source"]
        if len(sources) > MOST_ROWS:
            name = name.partition("/")[0]
        key = (name, source["language"], source["license"])
        row = rows.setdefault(
            key,
            {"source": name, "language": key[1], "license": key[2], "files": 0}
            | dict.fromkeys(("documents", "characters", "tokens", "dropped"), 0),
        )
        row["files"] += 1
        for count in ("documents", "characters", "tokens"):
            row[count] += source[count]
        row["dropped"] += sum(source["dropped"].values())
    for row in rows.values():
        if row["files"] > 1:
            row["source"] += f" ({row['files']} sources)"
    return list(rows.values())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
