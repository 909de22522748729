"""Occupancy cells on the device: packing, dilation and emptiness without a look from the host."""

import torch
from torch import Tensor


def pack_bits(cells: Tensor) -> Tensor:
    """Bits uint8 [n, C/8] of cells bool [n, C]; least significant bit first."""
    # shifts, not a product with powers of two, which would need a tensor made on the host
    eight = cells.view(cells.shape[0], -1, 8).to(torch.uint8)
    out = eight[:, :, 0].clone()
    for bit in range(1, 8):
        out |= eight[:, :, bit] << bit
    return out


def unpack_bits(bits: Tensor) -> Tensor:
    """Cells bool [n, C] of bits uint8 [n, C/8]."""
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> shift) & 1).view(bits.shape[0], -1).to(torch.bool)


def dilate(cells: Tensor, edge: int, neighbours: Tensor) -> Tensor:
    """Cells bool [n, edge^3] grown by one cell in all 26 directions, inside each node and into its neighbours.

    neighbours: int32 [n, 3, 2] from `neighbour_slots`. Cells on faces without a neighbour are all set: what lies
    beyond them is unknown.
    """
    grid = cells.view(-1, edge, edge, edge).clone()
    unknown = torch.zeros_like(grid)
    for axis in range(3):
        before = grid.clone()
        dim = 3 - axis
        ahead, behind = grid.narrow(dim, 1, edge - 1), grid.narrow(dim, 0, edge - 1)
        ahead |= before.narrow(dim, 0, edge - 1)
        behind |= before.narrow(dim, 1, edge - 1)
        for side, (mine, theirs) in enumerate(((0, edge - 1), (edge - 1, 0))):
            other = neighbours[:, axis, side].long()
            there = (other >= 0)[:, None, None]
            face = grid.select(dim, mine)
            face |= before.select(dim, theirs)[other.clamp(min=0)] & there
            outer = unknown.select(dim, mine)
            outer |= ~there
    return (grid | unknown).view(cells.shape)


def any_occupied_below(bits: Tensor, level: Tensor, children: Tensor, depth: int) -> Tensor:
    """uint8 [S]: whether a node or anything below it has a set bit; slots without a node (level < 0) give 0.

    Args:
        bits: uint8 [S, C/8]. level: int32 [S]. children: int32 [S, 8]. depth: level of the deepest node, at least.
    """
    result = (bits != 0).any(dim=1) & (level >= 0)
    index, there = children.clamp(min=0).long(), children >= 0
    for _ in range(depth):
        result = result | (result[index] & there).any(dim=1)
    return result.to(torch.uint8)
