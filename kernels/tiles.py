"""`soroq-w4-t64`: int4 weights in tiles that a GPU reads in whole, one copy for every M.

    tiles   int16 (N′/64, K′/128, 64, 32): bits 4j…4j+3 of tiles[a, b, r, c] hold the code, plus 8,
            of row 64·a + r and column 128·b + 32·j + c, j = 0…3
    scales  (S, N′), S the groups along K
    zeros   uint8 (S, N′): zero point plus 8, or None for symmetric codes (a zero point of 0)

N′ and K′ are N and K rounded up to multiples of 128. A tile is 4 KiB in one piece and a K step of
128 for all group sizes: with groups of 32, bits 4j…4j+3 are the tile's j-th group. Padded codes are
8 (0 before the offset), padded scales 0.
"""

from dataclasses import dataclass

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs

TILE_N, TILE_K = 64, 128
ALIGN_N = 128  # rows are padded to whole program blocks, so that no weight load needs a mask
LAYOUT = "soroq-w4-t64"


@dataclass(frozen=True)
class TiledWeight:
    """W (N, K) in the layout above; `group` is the group's length along K (K for the row)."""

    tiles: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    N: int
    K: int
    group: int

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of the weight."""
        parts = (self.tiles, self.scales, self.zeros)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    def to(self, device: torch.device | str) -> "TiledWeight":
        """Return the same weight on `device`."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return TiledWeight(
            self.tiles.to(device), self.scales.to(device), zeros, self.N, self.K, self.group
        )


def objection(K: int, group_size: int | None) -> str:
    """Return why a weight can't lie in tiles, '' if it can."""
    group = group_size or K
    if group in (32, 64) or group == K or group % TILE_K == 0:
        return ""
    return f"{LAYOUT} takes groups of 32, 64, multiples of 128 or the row, not {group}"


def tile(weight: QuantizedTensor) -> TiledWeight:
    """Return an int4 weight in tiles. Raises ValueError when it isn't int4 or doesn't fit."""
    args = weight.args
    N, K = weight.shape
    if args.dtype != "int" or args.bits != 4:
        raise ValueError(f"{LAYOUT} holds int4, not {args.dtype}{args.bits}")
    if why := objection(K, args.group_size):
        raise ValueError(why)
    group = args.group_size or K
    rows, columns = -(-N // ALIGN_N) * ALIGN_N, -(-K // TILE_K) * TILE_K
    codes = torch.nn.functional.pad(weight.codes, (0, columns - K, 0, rows - N)).to(torch.int32) + 8
    # (a, r, b, j, c) → (a, b, r, c, j)
    parts = codes.view(rows // TILE_N, TILE_N, columns // TILE_K, 4, TILE_K // 4)
    parts = parts.permute(0, 2, 1, 4, 3)
    words = (parts << torch.arange(0, 16, 4, device=codes.device)).sum(-1)
    tiles = torch.where(words >= 2**15, words - 2**16, words).to(torch.int16).contiguous()
    n_groups = columns // group if group < TILE_K else K // group
    spare = (0, rows - N, 0, n_groups - K // group)
    scales = torch.nn.functional.pad(weight.scales.t(), spare).contiguous()
    zeros = None
    if weight.zeros is not None:
        offset = (weight.zeros.t().to(torch.int32) + 8).to(torch.uint8)
        zeros = torch.nn.functional.pad(offset, spare).contiguous()
    return TiledWeight(tiles, scales, zeros, N, K, group)


def untile(weight: TiledWeight) -> QuantizedTensor:
    """Invert `tile`."""
    rows = slice(0, -(-weight.N // TILE_N) * TILE_N)
    codes = _codes(weight.tiles[: rows.stop // TILE_N])[: weight.N, : weight.K]
    n_groups = weight.K // weight.group
    scales = weight.scales[:n_groups, : weight.N].t().contiguous()
    zeros = None
    if weight.zeros is not None:
        zeros = (weight.zeros[:n_groups, : weight.N].t().to(torch.int16) - 8).to(torch.int8)
        zeros = zeros.contiguous()
    group_size = None if weight.group == weight.K else weight.group
    args = QuantArgs(bits=4, group_size=group_size, symmetric=zeros is None)
    return QuantizedTensor(codes.contiguous(), scales, zeros, args)


def _codes(tiles: torch.Tensor) -> torch.Tensor:
    """Return codes int8 (64·A, 128·B) of tiles (A, B, 64, 32)."""
    shifts = torch.arange(0, 16, 4, device=tiles.device)
    parts = ((tiles.to(torch.int32)[..., None] >> shifts) & 15) - 8
    A, B = tiles.shape[:2]
    return parts.permute(0, 2, 1, 4, 3).reshape(A * TILE_N, B * TILE_K).to(torch.int8)
