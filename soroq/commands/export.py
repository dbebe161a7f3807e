"""export and run."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soroq.core.errors import KernelError, SchemeError
from soroq.export import TARGETS

if TYPE_CHECKING:
    from soroq.export.target import ExportRequest

WINDOWS = 2
SHORTEST = 96  # tokens of a window for parity
BEHIND = 32  # tokens behind the sliding window's boundary
LONGEST = 4096 + BEHIND  # longer sliding windows are not crossed
PARITY_LANGUAGE = "tg"


def run_export(
    source: str,
    out: Path,
    target: str,
    compute: str,
    precision: str,
    parity: bool,
    bisect: bool,
) -> int:
    """Export and compare; return 0, or 1 if the folder does not speak as PyTorch does."""
    if target not in TARGETS:
        raise SchemeError(f"unknown target {target!r}; known: {', '.join(sorted(TARGETS))}")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise KernelError(f"{package} is not installed; pip install 'soroq[onnx]'")
    from soroq.export.target import ExportRequest

    module, _, function = TARGETS[target].partition(":")
    export = getattr(importlib.import_module(module), function)
    request = ExportRequest(source, out, compute, precision)
    check = None
    if parity:

        def check(folder: Path) -> dict[str, Any]:
            return check_parity(folder, request, bisect)

    manifest = export(request, say, check)
    for name, facts in manifest.files.items():
        if name.startswith("onnx/"):
            say(f"{name}: {facts['bytes'] / 1e6:.1f} MB")
    say(f"wrote {out}; try: soroq run {out} -p 'Душанбе'")
    if manifest.parity is not None and not manifest.parity["passed"]:
        where = "" if bisect else "; --bisect names the first layer that differs"
        print(f"soroq: parity failed, nothing was deleted{where}", file=sys.stderr)
        return 1
    return 0


def check_parity(folder: Path, request: "ExportRequest", bisect: bool) -> dict[str, Any]:
    """Compare an exported folder with the PyTorch model on the built-in Tajik text."""
    import torch

    from soroq.export import parity
    from soroq.export.target import read_export
    from soroq.loading import load

    model = load(request.source)
    boundary = _boundary(model)
    windows = parity_windows(request.source, boundary, int(model.config.vocab_size))
    manifest = read_export(folder)
    as_stored = manifest is None or not manifest.notes  # they tell what was rounded anew
    with torch.no_grad():
        report = parity.compare(
            folder,
            model,
            windows,
            compute=request.compute,
            precision=request.precision,
            boundary=boundary,
            as_stored=as_stored,
            say=say,
        )
        if bisect:
            ids = windows[0][: 2 * SHORTEST]
            found = parity.bisect(folder, model, ids, compute=request.compute, as_stored=as_stored)
            report["block_errors"] = list(found.errors)
            for index, error in enumerate(found.errors):
                say(f"block {index}: relative error {error:.2g}")
            report["first_diverging"] = None if found.first is None else f"layers.{found.first}"
            first = "no block diverges" if found.first is None else f"block {found.first} is first"
            say(f"{first} (limit {found.limit:g})")
    return report


def parity_windows(source: str, boundary: int, vocabulary: int) -> Any:
    """Return windows (n, seq_len) of BOS and Tajik text that cross the sliding window."""
    import torch

    from soroq.calib.sources import builtin_documents
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(source)
    text = "\n".join(doc.text for doc in builtin_documents(PARITY_LANGUAGE, "check"))
    length = min(max(SHORTEST, boundary + BEHIND), LONGEST)
    ids = tokenizer(text[: 16 * WINDOWS * length], return_tensors="pt")["input_ids"][0]
    first = ids[:1]  # BOS, or a plain token where a tokenizer adds none
    body = ids[1 : 1 + WINDOWS * (length - 1)].view(WINDOWS, -1)
    windows: torch.Tensor = torch.cat([first.expand(WINDOWS, 1), body], 1)
    return windows.clamp(max=vocabulary - 1)


def run_chat(
    folder: Path,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    raw: bool,
    threads: int | None,
) -> None:
    """Answer one prompt, or all that stdin gives, a line each, keeping the conversation."""
    from soroq.export.chat import Chat

    chat = Chat(folder, raw=raw, threads=threads)
    messages: list[dict[str, str]] = []
    for line in [prompt] if prompt is not None else _lines():
        assert line is not None
        messages.append({"role": "user", "content": line})
        answer = ""
        for piece in chat.answer(
            messages, max_new_tokens=max_tokens, temperature=temperature, seed=seed
        ):
            answer += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        messages.append({"role": "assistant", "content": answer})


def _lines() -> Any:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _boundary(model: Any) -> int:
    """Return how many tokens the model's sliding windows hold, 0 without one."""
    from soroq.decoder_facts import window_of

    windows = [window_of(model.config, layer.self_attn) for layer in model.model.layers]
    return min((window for window in windows if window), default=0)


def say(line: str) -> None:
    """Print a line at once, to stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)
