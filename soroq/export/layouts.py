"""Files beside a graph that tools read: config.json for transformers.js and optimum,
genai_config.json for onnxruntime-genai."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError
from soroq.export.session import EVERY, FOLDER, LAST
from soroq.io.checkpoint import Checkpoint, read_json

GENERATION = "generation_config.json"
DEFAULT_CONTEXT = 4096


def write_layouts(
    folder: Path,
    checkpoint: Checkpoint,
    config: dict[str, Any],
    head_dim: int,
    n_data: int,
    library: str = "",
) -> None:
    """Write tokenizer, licences and the configurations of all tools into `folder`.

    config: the decoder's own; n_data: how many data files the graphs share; library: the operators
    that the graphs need, by the name of a file which onnxruntime-genai loads from `folder` alone.
    Raises CheckpointError when there is no tokenizer.
    """
    checkpoint.copy_side_files(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer.json; copy it there from the original model"
        )
    _name_inputs(folder / "tokenizer_config.json")
    _write(folder / "config.json", _hub_config(config, n_data))
    if not (folder / GENERATION).is_file():
        _write(folder / GENERATION, _generation(config))
    genai = _genai_config(folder, config, head_dim)
    if library:
        genai["model"]["decoder"]["session_options"]["custom_ops_library"] = library
    _write(folder / "genai_config.json", genai)


def end_tokens(folder: Path) -> list[int]:
    """Return the tokens that end a text, as generation_config.json has them."""
    end = read_json(folder / GENERATION).get("eos_token_id")
    return list(end) if isinstance(end, list) else [] if end is None else [int(end)]


def _name_inputs(path: Path) -> None:
    """Say which inputs there are: an unnamed tokenizer would give token_type_ids to optimum too."""
    settings = read_json(path) if path.is_file() else {}
    _write(path, {"model_input_names": ["input_ids", "attention_mask"], **settings})


def _hub_config(config: dict[str, Any], n_data: int) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    own = {"use_external_data_format": {EVERY: n_data}, "dtype": "fp32"}
    return {**kept, "transformers.js_config": own}


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config.get(key) is not None}


def _genai_config(folder: Path, config: dict[str, Any], head_dim: int) -> dict[str, Any]:
    generation = {**_generation(config), **_generation(read_json(folder / GENERATION))}
    end: Any = generation.get("eos_token_id", 0)
    pad = generation.get("pad_token_id")
    first_end = end[0] if isinstance(end, Sequence) else end
    context = int(config.get("max_position_embeddings") or DEFAULT_CONTEXT)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": f"{FOLDER}/{LAST}",
        "head_size": head_dim,
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": config["model_type"],
            "bos_token_id": generation.get("bos_token_id", 0),
            "eos_token_id": end,
            "pad_token_id": first_end if pad is None else pad,
            "context_length": context,
            "vocab_size": config["vocab_size"],
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": min(context, DEFAULT_CONTEXT),
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
