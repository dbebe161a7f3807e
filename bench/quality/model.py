"""A model that can be checked: log-probabilities in slices, on the CPU, whatever it is stored as.

`open_model` takes what `soroq.load` takes. A model hands out log-probabilities CHUNK positions at
a time: whole logits of a window would be 0.5 GB at a vocabulary of 262,144.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import soroq
from soroq.core.errors import CheckError
from soroq.io.checkpoint import open_checkpoint

CHUNK = 64  # positions whose logits exist at once
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Model:
    """A causal model in memory and its tokenizer."""

    source: str
    network: Any
    tokenizer: Any

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the final hidden states (n, seq_len, hidden) of ids (n, seq_len)."""
        with torch.inference_mode():
            out: torch.Tensor = self.network.model(input_ids=ids, use_cache=False).last_hidden_state
        return out

    def log_probs(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (span, float32 log-probabilities (span, vocabulary)) of hidden states (p, hidden).

        The tensor is the caller's to change.
        """
        cap = getattr(self.network.config, "final_logit_softcapping", None)
        with torch.inference_mode():
            for start in range(0, len(hidden), CHUNK):
                span = slice(start, min(start + CHUNK, len(hidden)))
                logits = self.network.lm_head(hidden[span]).float()
                if cap:
                    logits = (logits / cap).tanh_().mul_(cap)
                yield span, logits.log_softmax(-1)


def open_model(
    source: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> Model:
    """Load a model and its tokenizer; weights are dequantized to `dtype`."""
    from soroq.loading import load, load_tokenizer

    network = load(source, dtype=dtype, packed=False)
    if attention != "sdpa":
        network.set_attn_implementation(attention)
    return Model(source, network, load_tokenizer(source))


def model_key(source: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> str:
    """Return the hash of what decides a model's results, without loading it.

    The versions are part of it: another soroq or torch may compute other last digits.
    """
    checkpoint = open_checkpoint(source)
    weights = [checkpoint.sha256(), checkpoint.config]
    facts = [*weights, str(dtype), attention, str(torch.__version__), soroq.__version__, CHUNK]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def refuse_other_tokenizer(base: Any, quant: Any, base_name: str, quant_name: str) -> None:
    """Raise CheckError unless two tokenizers have the same vocabulary and cut text alike."""
    if len(base) != len(quant):
        raise CheckError(
            f"{quant_name} has a vocabulary of {len(quant)} tokens, {base_name} of {len(base)}; "
            "only models of one tokenizer can be compared token by token"
        )
    probe = "Душанбе — пойтахти Ҷумҳурии Тоҷикистон аст. Ғӯзаро 12,5 кило чиданд! The end."
    if base.get_vocab() != quant.get_vocab() or base(probe).input_ids != quant(probe).input_ids:
        raise CheckError(
            f"{quant_name} and {base_name} have different tokenizers; copy the original's "
            "tokenizer files into the quantized directory"
        )
