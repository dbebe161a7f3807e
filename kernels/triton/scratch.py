"""Memory that split products share: partial sums and counters, one pair for each stream.

It is made once, outside of any CUDA graph, and reused by every call on its stream, so that a call
allocates nothing and clears nothing. A graph is captured on a stream of its own: it takes the spare
pair that every first use leaves behind.
"""

from dataclasses import dataclass

import torch

from soroq.kernels.triton.config import SCRATCH_CELLS, SCRATCH_COUNTERS


@dataclass(frozen=True)
class Scratch:
    """partials float32, and counters int32 that are 0 between launches."""

    partials: torch.Tensor
    counters: torch.Tensor


_by_stream: dict[tuple[torch.device, int], Scratch] = {}
_spare: dict[torch.device, Scratch] = {}


def get(device: torch.device, sms: int) -> Scratch:
    """Return the current stream's scratch.

    Raises RuntimeError inside a CUDA graph's capture when nothing ran on the device before it.
    """
    if device.type != "cuda":
        return _make(device, sms)
    stream = torch.cuda.current_stream(device).cuda_stream
    if found := _by_stream.get((device, stream)):
        return found
    if torch.cuda.is_current_stream_capturing():
        if device not in _spare:
            raise RuntimeError("run the model once before capturing it in a CUDA graph")
        taken = _spare.pop(device)
    else:
        taken = _spare.pop(device) if device in _spare else _make(device, sms)
        _spare[device] = _make(device, sms)
    _by_stream[device, stream] = taken
    return taken


def _make(device: torch.device, sms: int) -> Scratch:
    return Scratch(
        torch.empty(SCRATCH_CELLS * sms, dtype=torch.float32, device=device),
        torch.zeros(SCRATCH_COUNTERS * sms, dtype=torch.int32, device=device),
    )
