"""Occupancy cells on the device: packing, dilation and emptiness without a look from the host."""

import torch
from torch import Tensor
from torch.nn import functional


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


def dilate(cells: Tensor, edge: int) -> Tensor:
    """Cells bool [n, edge^3] grown by one cell in all 26 directions, inside each node."""
    grid = cells.view(-1, 1, edge, edge, edge).to(torch.float16 if cells.is_cuda else torch.float32)
    return (functional.max_pool3d(grid, 3, stride=1, padding=1) > 0).view(cells.shape)


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
