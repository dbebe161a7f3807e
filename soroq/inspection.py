"""soroq inspect: what is in a checkpoint, without loading its weights."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError, SchemeError
from soroq.export.target import ExportManifest, read_export
from soroq.io.checkpoint import open_stored
from soroq.io.formats.registry import format_of
from soroq.io.formats.serving import gguf_objections, objections
from soroq.io.writer import sha256_file
from soroq.manifest import read_manifest
from soroq.models.registry import ARCHITECTURES


@dataclass(frozen=True)
class Description:
    """facts: (what, value) lines; layers: per-layer reports of a soroq output, else empty."""

    path: str
    facts: list[tuple[str, str]]
    layers: list[dict[str, Any]]


def describe(source: str | Path) -> Description:
    """Return what a checkpoint holds, or an exported folder, whose files' hashes are checked.

    Raises CheckpointError when it can't be read, or a file isn't what the manifest says.
    """
    exported = read_export(Path(source)) if Path(source).is_dir() else None
    if exported is not None:
        return _describe_export(Path(source), exported)
    checkpoint = open_stored(source)
    config = checkpoint.config
    text = config.get("text_config", config)
    sizes: dict[str, int] = defaultdict(int)
    weights = 0
    for name in checkpoint.names():
        info = checkpoint.info(name)
        sizes[str(info.dtype).removeprefix("torch.")] += info.nbytes
        count = 1
        for side in info.shape:
            count *= side
        weights += count
    model_type = str(config.get("model_type"))
    facts = [
        ("architecture", model_type + ("" if model_type in ARCHITECTURES else " (not supported)")),
        ("blocks", str(text.get("num_hidden_layers", "?"))),
        ("hidden, ffn", f"{text.get('hidden_size', '?')}, {text.get('intermediate_size', '?')}"),
        ("vocabulary", str(text.get("vocab_size", "?"))),
        ("tensors", str(len(checkpoint.names()))),
        ("stored elements", f"{weights:,}"),
        ("size", f"{checkpoint.total_bytes / 1e6:.1f} MB"),
    ]
    facts += [(f"  {dtype}", f"{size / 1e6:.1f} MB") for dtype, size in sorted(sizes.items())]
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method")
        told = quantization.get("format") or quantization.get("checkpoint_format")
        told = told or {"awq": "gemm", "hqq": "axis 1"}.get(str(method), "affine")
        if method != "compressed-tensors":
            read_as = format_of(quantization)
            (_, args, _), *_ = read_as.parse(quantization)
            group = "row" if args.group_size is None else args.group_size
            told += f", {args.bits} bits, group {group}"
        facts.append(("format", f"{method}, {told}"))
    directory = Path(checkpoint.path)
    if directory.is_file():  # a GGUF, whose quantization_config is soroq's reading of it
        facts += _told(gguf_objections(model_type))
    elif quantization:
        facts += _servers(quantization)
    manifest = read_manifest(directory) if directory.is_dir() else None
    if manifest is None:
        return Description(str(checkpoint.path), facts, [])
    facts += [
        ("soroq", manifest.soroq_version),
        ("scheme", str(manifest.recipe["scheme"]["name"])),
        ("source", f"{manifest.source} (sha256 {manifest.source_sha256[:12]})"),
    ]
    if manifest.backend:
        b = manifest.backend
        facts.append(("quantized by", f"{b['tool']} {b['version']}, {b['method']}"))
    if manifest.calibration:
        c = manifest.calibration
        facts.append(("calibration", f"{c['name']}, {c['n']} x {c['seq_len']}, {c['mix']}"))
    if manifest.distilled:
        d = manifest.distilled
        told = f"{d['steps']} steps, divergence {d['kl_before']:.4f} to {d['kl_after']:.4f}"
        facts.append(("distilled", told + ("" if d["kept"] else "; not kept")))
    if manifest.reordered is not None:
        facts.append(("channels", "in order of size; the original's adapters don't fit"))
    return Description(str(checkpoint.path), facts, manifest.layers)


def _servers(quantization: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        found = objections(quantization)
    except (CheckpointError, SchemeError):  # numbers that soroq can't read, but describes
        return []
    return _told(found)


def _told(found: dict[str, str | None]) -> list[tuple[str, str]]:
    return [(name, reason or "opens it, by its rules") for name, reason in found.items()]


def _describe_export(folder: Path, manifest: ExportManifest) -> Description:
    verify_files(folder, manifest)
    needed = ", ".join(f"{name} {version}" for name, version in manifest.requires.items())
    size = sum(int(facts["bytes"]) for facts in manifest.files.values())
    facts = [
        ("target", manifest.target),
        ("source", f"{manifest.source} (sha256 {manifest.source_sha256[:12]})"),
        ("soroq", manifest.soroq_version),
        ("needs at least", needed),
        ("opset, IR version", f"{manifest.opset}, {manifest.ir_version}"),
        ("values, activations", f"{manifest.compute}, {manifest.precision}"),
        ("size", f"{size / 1e6:.1f} MB"),
    ]
    for name, told in sorted(manifest.files.items(), key=lambda item: -int(item[1]["bytes"])):
        facts.append((f"  {name}", f"{int(told['bytes']) / 1e6:.1f} MB"))
    facts.append(("files", f"{len(manifest.files)}, as the manifest says (sha256)"))
    facts += [("note", note) for note in manifest.notes]
    parity = manifest.parity
    if parity is None:
        facts.append(("parity", "not compared"))
    else:
        facts.append(("parity", "passed" if parity["passed"] else "FAILED"))
        for part in ("prefill", "at_once", "steps", "batch"):
            told = parity[part]
            text = f"KL {told['kl']:.2g}, top-1 {told['top1']:.3f}, {told['tokens']} tokens"
            facts.append((f"  {part.replace('_', ' ')}", text))
        greedy = parity["greedy"]
        facts.append(("  greedy", f"{greedy['equal']} of {greedy['tokens']} tokens equal"))
    return Description(str(folder), facts, [])


def verify_files(folder: Path, manifest: ExportManifest) -> None:
    """Raise CheckpointError when a file of an export is missing or has other bytes."""
    wrong = []
    for name, told in manifest.files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != told["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, not {told['bytes']}")
        elif sha256_file(path) != told["sha256"]:
            wrong.append(f"{name} has other bytes than were written")
    if wrong:
        raise CheckpointError(f"{folder}: {'; '.join(wrong)}; export it again")
