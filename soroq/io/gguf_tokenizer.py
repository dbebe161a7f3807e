"""The tokenizer inside a GGUF, written as tokenizer.json.

`tokenizer.ggml.model` 'llama' is SentencePiece BPE (Gemma 3): merges are not stored, but follow
from the vocabulary and its scores: every split of a token into two known tokens is a merge, ranked
by the token's score; user-defined tokens come first. 'gpt2' is byte-level BPE with its merges
(Qwen, Llama 3). transformers' own conversion makes a Unigram model of Gemma's and splits '▁cat'
into '▁c', 'at'.
"""

import json
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def write_tokenizer(metadata: dict[str, Any], out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to `out`.

    Raises CheckpointError for a tokenizer kind that isn't supported or is incomplete.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError("the GGUF has no tokenizer; give a directory that has one")
    if kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, types)
    elif kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    else:
        raise CheckpointError(f"GGUF tokenizer {kind!r} is not supported; llama and gpt2 are")
    _finish(tokenizer, metadata, tokens, types)
    tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for role, name in ROLES.items():
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            settings[f"{role}_token"] = tokens[index]
    if isinstance(metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")


def merges_from_scores(
    tokens: list[str], scores: list[float], types: list[int]
) -> list[tuple[str, str]]:
    """Return BPE merges in rank order for a SentencePiece vocabulary.

    Splits of one token keep the order of their parts' ids; user-defined tokens rank first.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    ranked: list[tuple[float, int, int]] = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if kind not in (NORMAL, USER_DEFINED):
            continue
        splits = []
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                splits.append((left, right))
        rank = 0.0 if kind == USER_DEFINED else -score
        ranked += [(rank, left, right) for left, right in sorted(splits)]
    ranked.sort(key=lambda item: item[0])  # stable: equal ranks stay in vocabulary order
    return [(tokens[left], tokens[right]) for _, left, right in ranked]


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError("the GGUF's tokenizer has no scores")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges_from_scores(tokens, scores, types),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=tokens[unknown],
        )
    )
    replace: Any = normalizers.Replace(" ", "▁")
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        replace = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    tokenizer.normalizer = replace
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise CheckpointError("the GGUF's tokenizer has no merges")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges if " " in merge]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finish(tokenizer: Any, metadata: dict[str, Any], tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken, processors

    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and isinstance(bos, int):
        name = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, bos)]
        )
