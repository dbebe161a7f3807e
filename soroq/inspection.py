"""soroq inspect: what is in a checkpoint, without loading its weights."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soroq.io.checkpoint import open_checkpoint
from soroq.manifest import read_manifest
from soroq.models.registry import ARCHITECTURES


@dataclass(frozen=True)
class Description:
    """facts: (what, value) lines; layers: per-layer reports of a soroq output, else empty."""

    path: str
    facts: list[tuple[str, str]]
    layers: list[dict[str, Any]]


def describe(source: str | Path) -> Description:
    """Return what a checkpoint holds. Raises CheckpointError when it can't be read."""
    checkpoint = open_checkpoint(source)
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
        facts.append(
            ("format", f"{quantization.get('quant_method')}, {quantization.get('format')}")
        )
    directory = Path(checkpoint.path)
    manifest = read_manifest(directory) if directory.is_dir() else None
    if manifest is None:
        return Description(str(checkpoint.path), facts, [])
    facts += [
        ("soroq", manifest.soroq_version),
        ("scheme", str(manifest.recipe["scheme"]["name"])),
        ("source", f"{manifest.source} (sha256 {manifest.source_sha256[:12]})"),
    ]
    if manifest.calibration:
        c = manifest.calibration
        facts.append(("calibration", f"{c['name']}, {c['n']} x {c['seq_len']}, {c['mix']}"))
    if manifest.distilled:
        d = manifest.distilled
        told = f"{d['steps']} steps, divergence {d['kl_before']:.4f} to {d['kl_after']:.4f}"
        facts.append(("distilled", told + ("" if d["kept"] else "; not kept")))
    return Description(str(checkpoint.path), facts, manifest.layers)
