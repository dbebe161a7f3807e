"""`soroq-t64`: int4 and int8 weights in tiles that a GPU reads in whole, one copy for every M.

    tiles   int16 (N′/64, P · K′/128, 64, 32): bits 4j…4j+3 of tiles[a, P·b + p, r, c] hold plane p
            of the code of row 64·a + r and column 128·b + 32·j + c, j = 0…3
    scales  (S, N′), S the groups along K
    zeros   uint8 (S, N′), offset like the codes, or None for symmetric codes (a zero point of 0)

int4: one plane (P = 1), the code plus 8. int8: two planes, the upper and the lower half of the code
plus 128, so that 8 bits are two int4 products: W = (16 · upper + lower − 128 − zero) · scale.

N′ and K′ are N and K rounded up to multiples of 128. A tile is 4 KiB in one piece and a K step of
128 for all group sizes: with groups of 32, bits 4j…4j+3 are the tile's j-th group. Padded codes are
0 before the offset, padded scales 0.
"""

from dataclasses import dataclass, replace

import torch

from soroq.core.qtensor import QuantizedTensor
from soroq.core.scheme import QuantArgs

TILE_N, TILE_K = 64, 128
ALIGN_N = 128  # rows are padded to whole program blocks, so that no weight load needs a mask
LAYOUT = "soroq-t64"


@dataclass(frozen=True)
class TiledWeight:
    """W (N, K) in the layout above; `group` is the group's length along K (K for the row)."""

    tiles: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    N: int
    K: int
    group: int
    bits: int

    @property
    def span(self) -> int:
        """Columns that share a scale, padding counted as the row's when the row is one group."""
        return self.group if self.group != self.K else -(-self.K // TILE_K) * TILE_K

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of the weight."""
        parts = (self.tiles, self.scales, self.zeros)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    def to(self, device: torch.device | str) -> "TiledWeight":
        """Return the same weight on `device`."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        tiles, scales = self.tiles.to(device), self.scales.to(device)
        return replace(self, tiles=tiles, scales=scales, zeros=zeros)

    def rows(self, start: int, stop: int) -> "TiledWeight":
        """Return rows start to stop (multiples of 128, or N), without a copy of the tiles."""
        if start % ALIGN_N or (stop % ALIGN_N and stop != self.N):
            raise ValueError(
                f"rows {start} to {stop} don't begin and end with a block of {ALIGN_N}"
            )
        end = -(-stop // ALIGN_N) * ALIGN_N
        zeros = None if self.zeros is None else self.zeros[:, start:end].contiguous()
        return replace(
            self,
            tiles=self.tiles[start // TILE_N : end // TILE_N],
            scales=self.scales[:, start:end].contiguous(),
            zeros=zeros,
            N=stop - start,
        )


def objection(K: int, group_size: int | None) -> str:
    """Return why a weight can't lie in tiles, '' if it can."""
    group = group_size or K
    if group in (32, 64) or group == K or group % TILE_K == 0:
        return ""
    return f"{LAYOUT} takes groups of 32, 64, multiples of 128 or the row, not {group}"


def tile(weight: QuantizedTensor) -> TiledWeight:
    """Return an int4 or int8 weight in tiles. Raises ValueError when it is neither or won't fit."""
    args = weight.args
    N, K = weight.shape
    if args.dtype != "int" or args.bits not in (4, 8):
        raise ValueError(f"{LAYOUT} holds int4 and int8, not {args.dtype}{args.bits}")
    if why := objection(K, args.group_size):
        raise ValueError(why)
    group = args.group_size or K
    rows, columns = -(-N // ALIGN_N) * ALIGN_N, -(-K // TILE_K) * TILE_K
    half = 1 << (args.bits - 1)
    tiles = torch.empty(
        (rows // TILE_N, args.bits // 4 * columns // TILE_K, TILE_N, TILE_K // 4),
        dtype=torch.int16,
        device=weight.codes.device,
    )
    for start in range(0, rows, 8 * ALIGN_N):  # a head's codes as int32 would take gigabytes
        part = weight.codes[start : start + 8 * ALIGN_N]
        missing = min(start + 8 * ALIGN_N, rows) - start - part.shape[0]
        codes = torch.nn.functional.pad(part, (0, columns - K, 0, missing)).to(torch.int32) + half
        tiles[start // TILE_N : start // TILE_N + codes.shape[0] // TILE_N] = _words(
            codes, args.bits
        )
    n_groups = columns // group if group < TILE_K else K // group
    spare = (0, rows - N, 0, n_groups - K // group)
    scales = torch.nn.functional.pad(weight.scales.t(), spare).contiguous()
    zeros = None
    if weight.zeros is not None:
        offset = (weight.zeros.t().to(torch.int32) + half).to(torch.uint8)
        zeros = torch.nn.functional.pad(offset, spare).contiguous()
    return TiledWeight(tiles, scales, zeros, N, K, group, args.bits)


def untile(weight: TiledWeight) -> QuantizedTensor:
    """Invert `tile`."""
    codes = _codes(weight.tiles, weight.bits)[: weight.N, : weight.K]
    n_groups = weight.K // weight.group
    scales = weight.scales[:n_groups, : weight.N].t().contiguous()
    zeros = None
    if weight.zeros is not None:
        offset = weight.zeros[:n_groups, : weight.N].t().to(torch.int16)
        zeros = (offset - (1 << (weight.bits - 1))).to(torch.int8).contiguous()
    group_size = None if weight.group == weight.K else weight.group
    args = QuantArgs(bits=weight.bits, group_size=group_size, symmetric=zeros is None)
    return QuantizedTensor(codes.contiguous(), scales, zeros, args)


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return tiles (A, P·B, 64, 32) of unsigned codes int32 (64·A, 128·B)."""
    A, B = codes.shape[0] // TILE_N, codes.shape[1] // TILE_K
    # (a, r, b, j, c) → (a, b, r, c, j)
    parts = codes.view(A, TILE_N, B, 4, TILE_K // 4).permute(0, 2, 1, 4, 3)
    shifts = torch.arange(0, 16, 4, device=codes.device)
    planes = [((parts >> plane) & 15) << shifts for plane in range(bits - 4, -1, -4)]
    words = torch.stack([plane.sum(-1) for plane in planes], 2)
    signed = torch.where(words >= 2**15, words - 2**16, words).to(torch.int16)
    return signed.flatten(1, 2)


def _codes(tiles: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes int8 (64·A, 128·B) of tiles (A, P·B, 64, 32)."""
    shifts = torch.arange(0, 16, 4, device=tiles.device)
    planes = tiles.unflatten(1, (-1, bits // 4))
    codes = torch.zeros((), dtype=torch.int32, device=tiles.device)
    for plane in planes.unbind(2):
        codes = codes * 16 + ((plane.to(torch.int32)[..., None] >> shifts) & 15)
    A, B = planes.shape[:2]
    parts = codes - (1 << (bits - 1))
    return parts.permute(0, 2, 1, 4, 3).reshape(A * TILE_N, B * TILE_K).to(torch.int8)
