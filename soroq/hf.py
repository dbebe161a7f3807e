"""transformers opens what soroq wrote and keeps its weights packed, once soroq.hf is imported.

    import soroq.hf
    model = AutoModelForCausalLM.from_pretrained(
        "OUT", quantization_config=soroq.hf.SoroqConfig(), dtype=torch.bfloat16, device_map="cuda"
    )

transformers builds the model and reads what isn't quantized; every quantized weight goes from the
file into panels (CPU) or tiles (GPU) as `soroq.load` puts it there, and is never dense. Checkpoints
whose config.json says `"quant_method": "soroq"` need no `quantization_config`.

Importing this module registers "soroq" with transformers and lets a SoroqConfig stand for the
configuration of a compressed-tensors, GPTQ or AWQ checkpoint, which transformers refuses otherwise
(`AutoHfQuantizer.merge_quantization_configs` demands the class that config.json names).
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AutoHfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from soroq.core.errors import CheckpointError, SchemeError
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.formats.registry import FORMATS
from soroq.io.stored import StoredWeights
from soroq.kernels.dispatch import PRECISIONS
from soroq.kernels.panels import is_built
from soroq.loading import place_packed
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout
from soroq.nn.rounded import fuse_rounding
from soroq.nn.tiled import put, tile_model

METHOD = "soroq"
COMPRESSED = "compressed-tensors"


@register_quantization_config(METHOD)
class SoroqConfig(QuantizationConfigMixin):
    """How a quantized checkpoint is run: what to give `from_pretrained` as quantization_config.

    precision: what activations are multiplied as on a CPU: "exact", "int16", "int8", "int8-coarse";
    None keeps the stored words. write_as: the quant_method that save_pretrained names,
    "compressed-tensors" (everybody reads it) or "soroq" (opens packed without a SoroqConfig);
    default: what the checkpoint has. Raises SchemeError for other values.
    """

    def __init__(
        self,
        *,
        precision: str | None = "exact",
        write_as: str | None = None,
        stored: dict[str, Any] | None = None,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # an enumeration of their own
        if precision is not None and precision not in PRECISIONS:
            raise SchemeError(f"precision {precision!r} is not {', '.join(PRECISIONS)} or None")
        if write_as not in (None, METHOD, COMPRESSED):
            raise SchemeError(f"write_as {write_as!r} is not {METHOD} or {COMPRESSED}")
        self.precision, self.write_as = precision, write_as
        self.stored: dict[str, Any] = stored or {}

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the configuration for the `quantization_config` of a config.json."""
        config = cls(stored=dict(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    def over(self, stored: Any) -> "SoroqConfig":
        """Return a copy of this configuration for a checkpoint that says `stored`."""
        raw = stored if isinstance(stored, dict) else stored.to_dict()
        return SoroqConfig(precision=self.precision, write_as=self.write_as, stored=dict(raw))

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in config.json: the fields of compressed-tensors."""
        method = self.write_as or self.stored.get("quant_method", METHOD)
        return {**self.stored, "quant_method": method}


class Placeholder(nn.Module):
    """Stands for a linear or an embedding whose weight transformers must not look for.

    shape: of the weight that will come, (N, K). A linear's bias is here, transformers fills it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        self.shape = tuple(weight.shape)
        self.bias = getattr(module, "bias", None)
        scale = getattr(module, "scalar_embed_scale", None)
        if scale is not None:
            self.embed_scale = float(scale)


@register_quantizer(METHOD)
class SoroqQuantizer(HfQuantizer):
    """Puts soroq's modules in the place of quantized linears, embedding and head."""

    quantization_config: SoroqConfig

    def __init__(self, quantization_config: SoroqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._checkpoint: Checkpoint | None = None
        self._paths: dict[str, str] = {}  # stored module → path in the model
        self._kept: set[str] = set()  # tensors of the model that transformers reads and writes
        self._layout: DecoderLayout | None = None
        self._decoder = ""
        self._dtype: torch.dtype | None = None
        self._read: dict[str, tuple[int, int]] = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raise CheckpointError for a model that isn't quantized, SchemeError for two devices."""
        if not self.pre_quantized:
            raise CheckpointError(
                "the model is not quantized and SoroqConfig only opens what is; "
                "run `soroq quantize MODEL --out OUT` and open OUT"
            )
        device_map = kwargs.get("device_map")
        if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
            places = ", ".join(sorted(set(map(str, device_map.values()))))
            raise SchemeError(
                f"device_map names several devices ({places}); soroq keeps a model on one, "
                "e.g. device_map='cuda:0' or 'cpu'"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember what is computed in, as asked for."""
        self._dtype = dtype
        return dtype

    def update_device_map(self, device_map: Any) -> Any:
        """Return one device for transformers' "auto" and its like."""
        if isinstance(device_map, str):
            return {"": torch.device("cuda", 0) if torch.cuda.is_available() else "cpu"}
        return device_map

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Put placeholders where the checkpoint has quantized weights; the model is on meta."""
        files = kwargs.get("checkpoint_files")
        if not files:
            raise CheckpointError("soroq reads weights from files; state_dict can't be given")
        folder = Path(files[0]).parent
        self._checkpoint = open_checkpoint(folder)
        self._read = _stamps(folder)
        stored = StoredWeights(self._checkpoint)
        layout = find_layout(self._checkpoint.config, set(self._checkpoint.names()))
        decoder = model.get_decoder()
        self._decoder = next(name for name, module in model.named_modules() if module is decoder)
        self._layout = layout
        for module in sorted(stored.quantized):
            path = _path_of(module, layout.prefix, self._decoder)
            if path == "lm_head" and not hasattr(model, "lm_head"):
                continue  # a decoder alone is built
            try:
                old = model.get_submodule(path)
            except AttributeError as error:
                raise CheckpointError(
                    f"{module}: quantized, but {type(model).__name__} has no {path}"
                ) from error
            self._paths[module] = path
            put(model, path, Placeholder(old))
            if module + ".weight" == layout.embedding and hasattr(model, "lm_head"):
                put(model, "lm_head", Placeholder(model.lm_head))
        if isinstance(getattr(model, "lm_head", None), Placeholder):
            model._tied_weights_keys = {}
            model.all_tied_weights_keys = {}
        self._kept = set(model.state_dict())
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            _names_of(stored, layout.prefix),
        }

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Read the quantized weights into the modules that run them, one at a time."""
        assert self._checkpoint is not None and self._layout is not None
        device = next(model.parameters()).device
        on_gpu = runs_in_tiles(device)
        dtype = self._dtype or model.dtype
        if not model._get_dtype_plan(dtype):  # nothing is to stay in float32
            for parameter in model.parameters():
                # transformers leaves what it renamed (another prefix) in the stored dtype
                parameter.data = parameter.data.to(dtype)
        stored = StoredWeights(self._checkpoint)
        precision = None if on_gpu or not is_built() else self.quantization_config.precision
        for module, path in self._paths.items():
            old = model.get_submodule(path)
            bias = None if old.bias is None else old.bias.data.to("cpu")
            place_packed(
                model, path, stored, module, old.shape, bias=bias, dtype=dtype, precision=precision
            )
        if on_gpu:
            known = self._layout.architecture
            tile_model(model, known.linear_groups, dtype, decoder=self._decoder)
            fuse_rounding(model, known.norms, offset=known.norm_offset, decoder=self._decoder)
            nn.Module.to(model, device)
        if stored.format.name != COMPRESSED:
            numbers = {module: stored.arguments(module) for module in self._paths}
            rest = [n for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]
            self.quantization_config.stored = FORMATS[COMPRESSED].config(numbers, rest)
        return model.requires_grad_(False)

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return what save_pretrained writes: compressed-tensors' names, the stored words.

        Quantized weights come from the files they were read from, whatever layout they lie in now.
        Raises CheckpointError when those files have changed or are gone.
        """
        assert self._checkpoint is not None
        if _stamps(self._checkpoint.path) != self._read:
            raise CheckpointError(
                f"{self._checkpoint.path} has changed since the model was opened, and packed "
                "weights are saved from there; open it again"
            )
        state = {n: t for n, t in model.state_dict().items() if n in self._kept}
        stored = StoredWeights(self._checkpoint)
        for module, path in self._paths.items():
            if f"{path}.bias" in self._kept and f"{path}.bias" not in state:
                state[f"{path}.bias"] = self._checkpoint.load(f"{module}.bias", dtype=model.dtype)
            for name, tensor in stored.compressed(module).items():
                state[path + name.removeprefix(module)] = tensor
        return state, {}

    def is_serializable(self) -> bool:
        """Whether save_pretrained works: yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients reach the weights: no, they are integers."""
        return False


def runs_in_tiles(device: torch.device) -> bool:
    """Whether weights on `device` are run by the Triton kernels."""
    return device.type != "cpu"


def _path_of(module: str, prefix: str, decoder: str) -> str:
    """Return where a stored module lies in the model.

    Raises CheckpointError for one that is neither the head nor part of the text decoder.
    """
    if module.startswith(prefix):
        return ".".join(filter(None, (decoder, module.removeprefix(prefix))))
    if module.rpartition(".")[2] == "lm_head":
        return "lm_head"
    raise CheckpointError(
        f"{module}: quantized, but not part of the text decoder, which is all that soroq runs "
        "packed; open it without SoroqConfig"
    )


def _names_of(stored: StoredWeights, prefix: str) -> str:
    """Return a pattern of the tensors of quantized weights, in whatever spelling of the decoder."""
    inside = sorted(module.removeprefix(prefix) for module in stored.quantized)
    paths = "|".join(re.escape(path) for path in inside)
    return rf"(?:^|\.)(?:{paths})\.(?:{'|'.join(stored.format.parts)})$"


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of the files with weights."""
    stats = {file.name: file.stat() for file in folder.glob("*.safetensors")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


_merge_configs = AutoHfQuantizer.merge_quantization_configs


def _merge(stored: Any, given: Any) -> Any:
    """Let a SoroqConfig stand for what config.json says; the rest is transformers' own."""
    return given.over(stored) if isinstance(given, SoroqConfig) else _merge_configs(stored, given)


setattr(AutoHfQuantizer, "merge_quantization_configs", staticmethod(_merge))  # noqa: B010
