"""Gemma 3 text decoders, alone (270M, 1B) or inside the multimodal model (4B and larger).

RMSNorm multiplies by (1 + w); each block has four norms, of which the two post-norms stand between
a linear and the residual, so nothing folds through them; q_norm and k_norm stand behind q and k.
Facts: Gemma 3 technical report (arXiv 2503.19786), section 2, and transformers' `gemma3`.
"""

from soroq.models.architecture import LLAMA_GROUPS, Architecture, decoder_edges

GEMMA3 = Architecture(
    model_types=("gemma3_text", "gemma3"),
    linear_groups=LLAMA_GROUPS,
    edges=decoder_edges("pre_feedforward_layernorm"),
    norm_offset=1.0,
    text_prefixes=("model.language_model.", "language_model.model.", "model."),
)
