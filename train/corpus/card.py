"""DATA_CARD.md: what a corpus holds, from where, under which licence, and what was left out."""

from collections import Counter
from typing import Any


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
        lines.append(
            f"| {_cell(source['source'])} | {source['language']} | {_cell(source['license'])} "
            f"| {source['documents']} | {source['characters']} | {source['tokens']} "
            f"| {sum(source['dropped'].values())} |"
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
