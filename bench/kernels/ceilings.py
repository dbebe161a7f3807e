"""Kernels that only bound others: one that reads and one that does nothing."""

import torch
import triton
import triton.language as tl

BLOCK = 2048
PROGRAMS_PER_SM = 4


@triton.jit
def read_kernel(words, out, PER_PROGRAM: tl.constexpr, BLOCK: tl.constexpr):
    """Find the largest of PER_PROGRAM int32 words: nothing but loads."""
    start = tl.program_id(0).to(tl.int64) * PER_PROGRAM
    largest = tl.zeros([BLOCK], tl.int32)
    for step in tl.range(0, PER_PROGRAM, BLOCK, num_stages=4):
        at = start + step + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(words + at, eviction_policy="evict_first"))
    tl.store(out + tl.program_id(0), tl.max(largest))


@triton.jit
def empty_kernel(out):
    """Do nothing."""


def words_to_read(nbytes: int, sms: int, device: torch.device) -> torch.Tensor:
    """Return random int32 (programs, words) of about `nbytes`, a row for each program of `read`."""
    n_words = nbytes // 4
    programs = max(1, min(PROGRAMS_PER_SM * sms, n_words // BLOCK))
    size = (programs, n_words // programs // BLOCK * BLOCK)
    return torch.randint(0, 2**31 - 1, size, dtype=torch.int32, device=device)


def read(words: torch.Tensor) -> torch.Tensor:
    """Read int32 (programs, words); return each row's largest."""
    programs, per_program = words.shape
    out = torch.empty(programs, dtype=torch.int32, device=words.device)
    read_kernel[(programs,)](words, out, PER_PROGRAM=per_program, BLOCK=BLOCK, num_warps=8)
    return out


def launch_nothing(device: torch.device) -> None:
    """Launch one program that does nothing."""
    empty_kernel[(1,)](torch.empty(1, device=device))
