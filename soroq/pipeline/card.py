"""The model card (README.md) of an output: what was done, what it cost, how to open it."""

from soroq.manifest import Manifest

CARD = """# {source}, quantized with soroq: {scheme}

{summary}. Made by soroq {version}; every decision is in `soroq.json`.

| | |
| --- | --- |
| scheme | `{scheme}` ({numbers}) |
| quantized linears | {n_layers}, {bits:.2f} bits a weight with scales |
| size on disk | {output_mb:.0f} MB, was {source_mb:.0f} MB |
| calibration | {calibration} |
| mean relative output error | {error} |
| distillation | {distillation} |
| channels | {channels} |
| trained since | {trained} |

## Open it

{opening}

The licence and terms of the original model apply to this one.
"""

ANYWHERE = """    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("this directory", dtype="bfloat16")

needs `compressed-tensors` beside transformers and nothing of soroq. vLLM and SGLang read the same
format. With soroq installed, `soroq.load("this directory")` keeps the weights packed in memory."""
WITH_SOROQ = """    import soroq
    model = soroq.load("this directory")

Embedding and head share one quantized tensor, which transformers alone can't open (tried: 5.17)."""


def model_card(manifest: Manifest) -> str:
    """Return the README.md text for a manifest."""
    scheme = manifest.recipe["scheme"]
    weight = scheme["weight"]
    group = f"groups of {weight['group_size']}" if weight["group_size"] else "one scale a row"
    if weight["block"]:
        group = f"tiles of {weight['block'][0]}×{weight['block'][1]}"
    symmetric = "symmetric" if weight["symmetric"] else "with zero points"
    errors = [layer["error"] for layer in manifest.layers if layer["error"] is not None]
    rounding = [layer["error_rtn"] for layer in manifest.layers if layer["error_rtn"] is not None]
    bits = [layer["bits_per_weight"] for layer in manifest.layers]
    distillation = "none"
    if manifest.distilled is not None:
        d = manifest.distilled
        distillation = (
            f"{d['steps']} steps; divergence on held-out calibration windows, in nats a token: "
            f"{d['kl_before']:.4f} → {d['kl_after']:.4f}"
            + ("" if d["kept"] else ", so the start was kept")
        )
    trained = "no"
    if manifest.trained is not None:
        t = manifest.trained
        gains = ", ".join(
            f"{language} {before:.4f} → {t['kl_after'][language]:.4f}"
            for language, before in t["kl_before"].items()
        )
        trained = (
            f"{t['config']['train']['steps']} steps, {t['codes_changed'] / t['codes']:.2%} of the "
            f"codes changed; divergence on validation text, in nats a token: {gains}"
        )
    calibration = "none"
    if manifest.calibration is not None:
        c = manifest.calibration
        calibration = f"{c['n']} × {c['seq_len']} tokens, {c['name']} (sha256 {c['sha256'][:12]})"
    return CARD.format(
        source=manifest.source,
        scheme=scheme["name"],
        summary=scheme["summary"][:1].upper() + scheme["summary"][1:],
        version=manifest.soroq_version,
        numbers=f"{weight['dtype']}{weight['bits']}, {group}, {symmetric}",
        n_layers=len(manifest.layers),
        bits=sum(bits) / max(len(bits), 1),
        output_mb=manifest.output_bytes / 1e6,
        source_mb=manifest.source_bytes / 1e6,
        calibration=calibration,
        distillation=distillation,
        channels=(
            "as in the original"
            if manifest.reordered is None
            else "in order of size: what was made for the original's (adapters) doesn't fit"
        ),
        trained=trained,
        opening=ANYWHERE if manifest.recipe["embed"] is None else WITH_SOROQ,
        error=(
            f"{sum(errors) / len(errors):.5f} (plain rounding: {sum(rounding) / len(rounding):.5f})"
            if errors
            else "not measured"
        ),
    )
