"""Several processes: each takes its part of a batch, and of the weights (FSDP2).

    torchrun --nproc-per-node 8 --no-python soroq train pretrain --config FILE -o OUT

A checkpoint holds whole tensors, so a run may go on with another number of processes: which
sequences are in a batch doesn't depend on it. (PyTorch: torch.distributed.fsdp.fully_shard)
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class World:
    """This process's number, how many there are, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def join_world() -> World:
    """Return this process's place among those that torchrun started."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return World(rank, size, device)


def shard(model: Any, world: World) -> None:
    """Spread a LossModel's weights over all processes: a block at a time, and the rest together.

    FSDP2 divides gradients by the number of processes: the loop multiplies the loss by it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its parts, on the CPU; every process must call it."""
    detached = tensor.detach()
    if isinstance(detached, DTensor):
        detached = detached.full_tensor()
    return detached.cpu()


@torch.no_grad()
def put_(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Write a whole tensor into a parameter that may be spread."""
    parameter.copy_(like(parameter, value))


def like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor spread as `parameter` is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements
        )
    return value.to(parameter.device)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state_dict with whole tensors."""
    given = optimizer.state_dict()
    state = {
        index: {k: whole(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for index, values in given["state"].items()
    }
    return {"state": state, "param_groups": given["param_groups"]}


def restore_optimizer_(optimizer: torch.optim.Optimizer, given: Mapping[str, Any]) -> None:
    """Give an optimizer the state of `optimizer_state`."""
    parameters: list[nn.Parameter] = [
        p for group in optimizer.param_groups for p in group["params"]
    ]
    state = {
        index: {
            k: like(parameters[index], v)
            if isinstance(v, torch.Tensor) and v.shape == parameters[index].shape
            else v
            for k, v in values.items()
        }
        for index, values in given["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": given["param_groups"]})
