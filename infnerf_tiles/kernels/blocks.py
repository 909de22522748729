"""Blocks of occupancy cells: rays test a block before its cells, and pass an empty one in one jump."""

import torch
from torch import Tensor

_LOG_BLOCK = 2
"""Blocks have 4 x 4 x 4 cells, but are an octant of the node at most, within which one node draws."""


def log_blocks(log_cells: int) -> int:
    """Logarithm of the blocks per edge of a node with 2^log_cells occupancy cells per edge."""
    return log_cells - max(0, min(_LOG_BLOCK, log_cells - 1))


def occupied_blocks(occupancy: Tensor, cells: int) -> Tensor:
    """Bits of the blocks in which any cell is occupied, uint8 [S, ceil(B^3 / 8)] with B blocks per edge.

    Nothing in here waits for the device.

    Args:
        occupancy: uint8 [S, O^3/8], bits of the cells as in `Arena`. cells: O, a power of two.
    """
    edge = 1 << log_blocks(cells.bit_length() - 1)
    each, slots = cells // edge, occupancy.shape[0]
    if each == 1:
        return occupancy.clone()
    # first over layers of whole bytes, which leaves little to take apart
    layers = _any_of(occupancy.view(slots, edge, each, cells**2 // 8), 2)
    shift = torch.arange(8, dtype=torch.uint8, device=occupancy.device)
    rows = ((layers[..., None] >> shift) & 1).view(slots, edge, edge, each, cells)
    blocks = _any_of(_any_of(rows, 3).view(slots, edge, edge, edge, each), 4)
    eight = blocks.view(slots, edge**3 // 8, 8)
    out = eight[:, :, 0].clone()
    for bit in range(1, 8):
        out |= eight[:, :, bit] << bit
    return out


def _any_of(bits: Tensor, dim: int) -> Tensor:
    """Bits of all entries along a dimension taken together."""
    first, *rest = bits.unbind(dim)
    out = first.clone()
    for other in rest:
        out |= other
    return out
