"""tokenizer.json as the metadata of a GGUF: the opposite of soroq.io.gguf_tokenizer.

    metadata = tokenizer_metadata(folder, config, rows=262144)

llama.cpp merges SentencePiece tokens by score where tokenizer.json ranks merges, so a token's score
is minus the rank of the first merge that makes it. Token types and keys: the GGUF specification
("Tokenizer") and llama.cpp's llama-vocab.cpp; the names of pre-tokenizers are that file's.
"""

import json
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError
from soroq.io.checkpoint import read_json
from soroq.io.gguf_tokenizer import BYTE, CONTROL, NORMAL, ROLES, UNKNOWN, USER_DEFINED

UNUSED = 5
NO_SCORE = -1000.0  # what llama.cpp's converter gives tokens that no merge makes
END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
# a part of the regular expression that splits text before the merges → llama.cpp's name of it
PRE_TOKENIZERS = {r"\p{N}{1,3}": "llama-bpe", r"\p{N}": "qwen2"}


def tokenizer_metadata(folder: Path, config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the `tokenizer.*` keys for the tokenizer in a folder and an embedding of `rows`.

    Raises CheckpointError when tokenizer.json is missing or of a kind llama.cpp doesn't read.
    """
    raw = read_json(folder / "tokenizer.json")
    settings = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json(folder / "tokenizer_config.json")
    try:
        metadata = _vocabulary(raw, rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'}: unusable: {error!r}") from error
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    for role, name in ROLES.items():
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        index = ids.get(token) if isinstance(token, str) else config.get(f"{role}_token_id")
        if isinstance(index, int):
            metadata[f"tokenizer.ggml.{name}_token_id"] = index
    for token in END_OF_TURN:
        if token in ids:
            metadata["tokenizer.ggml.eot_token_id"] = ids[token]
    metadata["tokenizer.ggml.add_bos_token"] = _starts_with_special(raw.get("post_processor"))
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, str):
        metadata["tokenizer.chat_template"] = template
    return metadata


def _vocabulary(raw: dict[str, Any], rows: int) -> dict[str, Any]:
    model = raw["model"]
    ids = {**model["vocab"], **{a["content"]: a["id"] for a in raw.get("added_tokens") or []}}
    if max(ids.values()) >= rows:
        raise CheckpointError(
            f"the tokenizer has token {max(ids.values())}, the embedding {rows} rows; is it "
            "another model's?"
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]  # rows without a token
    types = [UNUSED] * rows
    for token, index in ids.items():
        tokens[index], types[index] = token, NORMAL
    for added in raw.get("added_tokens") or []:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    text = json.dumps([raw.get("normalizer"), raw.get("pre_tokenizer")])
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        for byte in range(256):
            if (index := ids.get(f"<0x{byte:02X}>")) is not None:
                types[index] = BYTE
        if (unknown := ids.get(model.get("unk_token"))) is not None and types[unknown] == NORMAL:
            types[unknown] = UNKNOWN
        metadata |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": _scores(ids, types, pairs),
            "tokenizer.ggml.add_space_prefix": '"Prepend"' in text or '"Metaspace"' in text,
        }
        return metadata
    if model.get("type") != "BPE" or '"ByteLevel"' not in text:
        raise CheckpointError(
            f"tokenizer.json holds a {model.get('type')} model; GGUF takes SentencePiece's BPE "
            "(byte_fallback) and byte-level BPE"
        )
    found = [name for part, name in PRE_TOKENIZERS.items() if json.dumps(part)[1:-1] in text]
    metadata |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": found[0] if found else "gpt-2",
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
    }
    return metadata


def _scores(ids: dict[str, int], types: list[int], pairs: list[list[str]]) -> list[float]:
    scores = [NO_SCORE] * len(types)
    for index, kind in enumerate(types):
        if kind == BYTE:
            scores[index] = 0.0
    rank = 0
    ranked = set()
    for left, right in pairs:
        index = ids[left + right]
        if index in ranked or types[index] != NORMAL:
            continue
        ranked.add(index)
        scores[index] = -float(rank)
        rank += 1
    return scores


def _starts_with_special(processor: Any) -> bool:
    """Tell whether a post-processor puts a special token (BOS) before a text."""
    if not isinstance(processor, dict):
        return False
    inner = processor.get("processors", [])
    first = (processor.get("single") or [{}])[0]
    return "SpecialToken" in first or any(_starts_with_special(part) for part in inner)
