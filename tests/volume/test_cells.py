"""Occupancy cells as torch tensors against the same on numpy arrays."""

import numpy as np
import torch

from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.volume.cells import any_occupied_below, dilate, pack_bits, unpack_bits
from infnerf_tiles.volume.occupancy import any_occupied, dilate_cells, neighbour_slots, outer_cells, pack_cells


def nodes(rng: np.random.Generator) -> np.ndarray:
    """Keys of nodes of three levels in random order, some of them side by side."""
    keys = [NodeId(2, x, y, z).key for x in range(4) for y in range(3) for z in range(2)]
    keys += [NodeId(3, x, 2, 1).key for x in range(8)] + [0]
    return rng.permutation(np.array(keys, np.int64))


def test_bits_are_packed_and_unpacked_as_by_numpy(rng: np.random.Generator) -> None:
    cells = rng.random((7, 4, 4, 4)) < 0.3
    flat = torch.from_numpy(cells.reshape(7, -1))
    assert np.array_equal(pack_bits(flat).numpy(), pack_cells(cells))
    assert torch.equal(unpack_bits(pack_bits(flat)), flat)


def test_cells_grow_into_their_neighbours_as_by_numpy(rng: np.random.Generator) -> None:
    neighbours = neighbour_slots(nodes(rng))
    cells = rng.random((len(neighbours), 4, 4, 4)) < 0.05
    kept = cells.copy()
    found = dilate(torch.from_numpy(cells.reshape(len(cells), -1)), 4, torch.from_numpy(neighbours))
    expected = dilate_cells(cells, neighbours) | outer_cells(neighbours, 4)
    assert np.array_equal(found.numpy().reshape(cells.shape), expected)
    assert np.array_equal(cells, kept)
    assert not np.array_equal(expected, dilate_cells(cells) | outer_cells(neighbours, 4))


def test_emptiness_below_is_as_by_numpy(rng: np.random.Generator) -> None:
    n = 60
    level = np.sort(rng.integers(0, 5, n)).astype(np.int32)
    level[0] = 0
    children = np.full((n, 8), -1, np.int32)
    for s in range(1, n):
        above = np.flatnonzero(level == level[s] - 1)
        if len(above):
            children[rng.choice(above), rng.integers(8)] = s
    level[rng.random(n) < 0.1] = -1
    children[level < 0] = -1
    children[children >= 0] = np.where(level[children[children >= 0]] >= 0, children[children >= 0], -1)
    bits = rng.integers(1, 255, (n, 8), dtype=np.uint8) * (rng.random((n, 1)) < 0.2).astype(np.uint8)
    found = any_occupied_below(
        torch.from_numpy(bits), torch.from_numpy(level), torch.from_numpy(children), int(level.max())
    )
    assert np.array_equal(found.numpy(), any_occupied(bits, level, children))
    assert 0 < found.sum() < n
