"""Run a decoder block by block, with the masks and positions that the model itself makes.

The transformers model is built once with its parameters on the meta device (no memory). Its
forward is run with the blocks replaced by recorders, so every block's real keyword arguments
(attention mask, rotary embeddings of its kind, position ids) are captured, never rebuilt here.
A block is then a copy of its empty module, filled with one block's tensors.

    runner = DecoderRunner(layout)
    block = runner.build_block(0, tensors)
    y = runner.run_block(block, 0, x)          # x (n, seq_len, hidden)
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from soroq.core.errors import CheckpointError
from soroq.models.architecture import DecoderLayout

_PIECE = 512  # positions whose rotary tables are asked for at a time


class DecoderRunner:
    """Empty modules and captured arguments of one decoder."""

    def __init__(self, layout: DecoderLayout) -> None:
        self.layout = layout
        self._model = build_skeleton(layout.text_config)
        self._decoder: Any = self._model.model
        self._arguments: dict[tuple[int, int], list[dict[str, Any]]] = {}

    @property
    def hidden_size(self) -> int:
        return int(self._decoder.config.hidden_size)

    def embed(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the decoder's input (n, seq_len, hidden) for ids (n, seq_len).

        rows are the embedding weights of ids.flatten() (n · seq_len, hidden); the model's own
        embedding module is applied to them (Gemma multiplies by √hidden).
        """
        module = copy.deepcopy(self._decoder.embed_tokens)
        module.weight = nn.Parameter(rows.float(), requires_grad=False)
        module.padding_idx = None
        index = torch.arange(ids.numel()).view(ids.shape)
        out: torch.Tensor = module(index)
        return out

    def build_final_norm(self, weight: torch.Tensor) -> nn.Module:
        """Return the norm between the last block and the head, in float32."""
        module: nn.Module = copy.deepcopy(self._decoder.norm)
        module.weight = nn.Parameter(weight.float(), requires_grad=False)
        return module

    def build_block(self, index: int, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return block `index` in float32, filled with tensors named relative to the block."""
        block: nn.Module = copy.deepcopy(self._decoder.layers[index])
        state = {name: tensor.float() for name, tensor in tensors.items()}
        wanted = {name: parameter.shape for name, parameter in block.named_parameters()}
        for name in wanted.keys() & state.keys():
            if wanted[name] != state[name].shape:
                raise CheckpointError(
                    f"{self.layout.block(index)}.{name}: shape {tuple(state[name].shape)} does not "
                    f"fit config.json, which says {tuple(wanted[name])}"
                )
        missing, unexpected = block.load_state_dict(state, strict=False, assign=True)
        if missing or unexpected:
            raise CheckpointError(
                f"{self.layout.block(index)}: missing {sorted(missing)}, unexpected "
                f"{sorted(unexpected)}; the checkpoint does not fit its config.json"
            )
        return block.requires_grad_(False).eval()

    def run_block(self, block: nn.Module, index: int, x: torch.Tensor) -> torch.Tensor:
        """Return block(x) for x (n, seq_len, hidden), float32."""
        key = (x.shape[0], x.shape[1])
        if key not in self._arguments:
            self._arguments[key] = self._capture(*key)
        result = block(x, **self._arguments[key][index])
        hidden: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return hidden

    def rotary_tables(self, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return for each block the cosines and sines (n, head_dim) of positions 0 to n − 1."""
        pieces: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for start in range(0, n, _PIECE):
            positions = torch.arange(start, min(start + _PIECE, n))[None]
            captured = self._capture(1, positions.shape[1], position_ids=positions)
            pieces.append([kwargs["position_embeddings"] for kwargs in captured])
        tables: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        found = []
        for block in zip(*pieces, strict=True):
            key = tuple(id(part) for pair in block for part in pair)  # blocks share their tables
            if key not in tables:
                cosines, sines = (torch.cat([pair[i][0] for pair in block]) for i in (0, 1))
                tables[key] = (cosines.float(), sines.float())
            found.append(tables[key])
        return found

    @property
    def model(self) -> Any:
        """The transformers causal model, its parameters on the meta device."""
        return self._model

    def _capture(self, n: int, seq_len: int, **kwargs: Any) -> list[dict[str, Any]]:
        captured: list[dict[str, Any]] = []

        def record(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            kwargs.pop("past_key_values", None)
            captured.append(kwargs)
            return hidden_states

        decoder = copy.copy(self._decoder)
        decoder._modules = dict(self._decoder._modules)
        decoder.layers = nn.ModuleList(_Recorder(layer, record) for layer in self._decoder.layers)
        decoder.norm = nn.Identity()
        with torch.no_grad():
            embeds = torch.zeros(n, seq_len, self.hidden_size)
            decoder(inputs_embeds=embeds, use_cache=False, **kwargs)
        return captured


class _Recorder(nn.Module):
    """Stands in for a block: hands the arguments it is called with to `record`."""

    def __init__(self, layer: nn.Module, record: Any) -> None:
        super().__init__()
        self._record = record
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = self._record(hidden_states, **kwargs)
        return out


def build_skeleton(text_config: Mapping[str, Any]) -> Any:
    """Return the transformers causal model of a text config, parameters on the meta device."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(text_config)
    model_type = values.pop("model_type", None)
    values.pop("quantization_config", None)
    values.pop("dtype", None)
    values.pop("torch_dtype", None)
    try:
        config = AutoConfig.for_model(model_type, **values)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except Exception as error:  # whatever a wrong value makes transformers or torch stumble over
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"config.json does not describe a {model_type} model: {reason}"
        ) from error
    return model.eval()
