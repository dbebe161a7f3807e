"""Records of `soroq bench onnx` as Markdown: a line a contender and number of threads."""

from collections.abc import Mapping, Sequence
from typing import Any

from soroq.bench.peers.race import markdown, spread
from soroq.bench.record import read_records

Entries = Sequence[Mapping[str, Any]]
HEAD = (
    "",
    "threads",
    "model MB",
    "disk MB",
    "prefill",
    "decode",
    "import s",
    "load s",
    "first token s",
    "peak MB",
)
NONE = "–"


def newest_run(decode: str, footprint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of speed and of footprints that the newest run recorded."""
    speeds, footprints = read_records(decode), read_records(footprint)
    last = max((entry["run"] for entry in speeds), default="")
    return (
        [entry for entry in speeds if entry["run"] == last],
        [entry for entry in footprints if entry["run"] == last],
    )


def table(speeds: Entries, footprints: Entries) -> str:
    """Return Markdown: medians (20th–80th percentile); "–" where a run didn't measure."""
    texts = list(dict.fromkeys(text for entry in speeds for text in entry.get("quality", {})))
    head = [*HEAD]
    for text in texts:
        head += [f"ppl {text}", f"KL {text}"]
    alone = {(entry["kernel"], entry["threads"]): entry for entry in footprints}
    raced = {(e["kernel"], e["threads"], e["phase"]): e for e in speeds}
    rows = []
    for threads in sorted({entry["threads"] for entry in (*speeds, *footprints)}):
        names = [e["kernel"] for e in (*speeds, *footprints) if e["threads"] == threads]
        for name in dict.fromkeys(names):
            prefill, decode = (raced.get((name, threads, p)) for p in ("prefill", "decode"))
            facts = alone.get((name, threads))
            either = facts or decode
            row = [
                name,
                str(threads),
                f"{either['bytes'] / 1e6:.0f}" if either else NONE,
                f"{facts['disk_bytes'] / 1e6:.0f}" if facts else NONE,
                spread(prefill, 0) if prefill else NONE,
                spread(decode, 1) if decode else NONE,
                f"{facts['import_s']['median']:.2f}" if facts else NONE,
                spread(facts["load_s"], 2) if facts else NONE,
                spread(facts["first_token_s"], 2) if facts else NONE,
                f"{facts['peak_rss_bytes']['median'] / 1e6:.0f}" if facts else NONE,
            ]
            for text in texts:
                quality = decode["quality"].get(text) if decode else None
                row += [
                    f"{quality['perplexity']:.2f}" if quality else NONE,
                    f"{quality['kl']:.4f}" if quality else NONE,
                ]
            rows.append(row)
    return markdown(head, rows)
