"""Facts of a decoder that graphs need, read off transformers' own modules."""

import torch

from soroq.core.errors import CheckpointError
from soroq.io.checkpoint import Checkpoint
from soroq.models.runner import DecoderRunner
from soroq.nn.panels import name_activation

CHECKED_POSITIONS = 64  # where a block's own tables are compared with what a graph computes
TABLE_TOLERANCE = 1e-5  # float32 cosines of equal angles, by two libraries


def rotary_frequencies(
    runner: DecoderRunner, checkpoint: Checkpoint
) -> list[tuple[str, torch.Tensor, float]]:
    """Return for each block a name, frequencies float32 (head_dim / 2,) and the tables' factor.

    They are buffers of transformers' rotary module, and for each block those are taken that give
    the tables that the model itself makes. Raises CheckpointError where none do: angles that aren't
    position times frequency, or frequencies that change with the length.
    """
    module = runner.model.model.rotary_emb
    known = {
        name: buffer.float()
        for name, buffer in module.named_buffers()
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
    }
    positions = torch.arange(CHECKED_POSITIONS).float()[:, None]
    found = []
    for cosines, sines in runner.rotary_tables(CHECKED_POSITIONS):
        scaling = float(cosines[0, 0])
        half = cosines.shape[1] // 2
        for name, frequencies in known.items():
            angles = positions * frequencies
            if len(frequencies) == half and all(
                torch.allclose(table, (part * scaling).repeat(1, 2), atol=TABLE_TOLERANCE)
                for table, part in ((cosines, angles.cos()), (sines, angles.sin()))
            ):
                found.append((name.removesuffix("_inv_freq"), frequencies, scaling))
                break
        else:
            raise CheckpointError(
                f"{checkpoint.path}: rotary embeddings that aren't position times frequency "
                "can't be exported"
            )
    return found


def refuse_unknown(checkpoint: Checkpoint, runner: DecoderRunner) -> None:
    """Raise CheckpointError when the model needs something that the graph doesn't have."""
    config = runner.model.config
    reasons = []
    for kind in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, kind, None):
            reasons.append(f"logits are capped ({kind})")
    if getattr(config, "use_bidirectional_attention", None):
        reasons.append("attention looks ahead")
    kinds = getattr(module := runner.model.model.rotary_emb, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if kind in ("dynamic", "longrope"):
            reasons.append(f"{type(module).__name__} of type {kind} changes with the length")
    if name_activation(runner.model.model.layers[0].mlp.act_fn) is None:
        reasons.append("the MLP's activation is neither GELU (tanh) nor SiLU")
    if runner.layout.head_dim % 8:
        reasons.append(f"head_dim {runner.layout.head_dim} is no multiple of 8")
    if reasons:
        raise CheckpointError(f"{checkpoint.path}: can't be exported: {', '.join(reasons)}")
