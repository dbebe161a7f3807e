"""The same function with weights on nobody's grid: a fair original for comparing quantizers.

    python -m soroq.bench.peers.off_grid gemma3-270m OUT

The demo model was expanded from a Q4_K_M file, so its weights lie on llama.cpp's grids: rounding
them to such a grid again is either exact or hits the middle between two codes, and neither says
anything about other models. Here each input channel of each linear is multiplied by a random
factor in [0.8, 1.25] which what stands before it (norm, v_proj, up_proj) is divided by. The
function stays, to bfloat16's rounding; neighbours in a block have no common step any more. Gemma 3
only.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.io.writer import ShardedWriter, require_empty_dir
from soroq.methods.awq import fold_norm

LIMIT = 1.25
NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
LINEARS = {"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"}


def factors(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return n factors in [1 / 1.25, 1.25], their logarithms uniform; float32."""
    span = torch.rand(n, generator=generator) * 2 - 1
    return torch.exp(span * torch.log(torch.tensor(LIMIT)))


def scaled_block(
    load: Callable[[str], torch.Tensor], heads_per_kv: int, head_dim: int, seed: int
) -> dict[str, torch.Tensor]:
    """Return the changed tensors of one block, by their names in it, in their stored dtype.

    load: name → tensor. Raises KeyError where `load` has no such tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"{n}.weight" for n in (*NORMS, *LINEARS, *LINEARS.values())]
    names += [f"{n}.weight" for group in NORMS.values() for n in group]
    tensors = {name: load(name) for name in dict.fromkeys(names)}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    for norm, linears in NORMS.items():
        old = tensors[f"{norm}.weight"]
        stored, exact = fold_norm(old, factors(len(old), generator), offset=1.0)
        tensors[f"{norm}.weight"] = stored
        for linear in linears:
            tensors[f"{linear}.weight"] = tensors[f"{linear}.weight"].float() * exact
    for first, second in LINEARS.items():
        rows = tensors[f"{first}.weight"].float()
        scale = factors(len(rows), generator)
        tensors[f"{first}.weight"] = rows / scale[:, None]
        if first == "self_attn.v_proj":  # one kv head's rows feed the columns of several heads
            scale = scale.view(-1, 1, head_dim).expand(-1, heads_per_kv, -1).reshape(-1)
        tensors[f"{second}.weight"] = tensors[f"{second}.weight"].float() * scale
    return {name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}


def write_off_grid(source: Checkpoint, out: Path, seed: int = 0) -> None:
    """Write a copy of a Gemma 3 text checkpoint with scaled channels."""
    config = source.config
    require_empty_dir(out)
    out.mkdir(parents=True, exist_ok=True)
    heads = int(config["num_attention_heads"]) // int(config["num_key_value_heads"])
    changed: dict[str, torch.Tensor] = {}
    for block in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{block}."

        def load(name: str, prefix: str = prefix) -> torch.Tensor:
            return source.load(prefix + name)

        found = scaled_block(load, heads, int(config["head_dim"]), seed + block)
        changed |= {prefix + name: tensor for name, tensor in found.items()}
    writer = ShardedWriter(out)
    for name in source.names():
        if name in changed:
            writer.add(name, changed[name])
        else:
            writer.add_lazy(name, source.info(name), partial(source.load, name))
    writer.finish(config, {"format": "pt"})
    source.copy_side_files(out)


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_off_grid(open_checkpoint(args.source), args.out)


if __name__ == "__main__":
    main()
