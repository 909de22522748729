"""Occupancy bits and cells against slow twins."""

import itertools

import numpy as np
import pytest
import torch
from arenas import full_octree, random_arena, random_octree

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId, decode_keys, encode_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.volume.cells import dilate
from infnerf_tiles.volume.occupancy import (
    any_occupied,
    cells_of_points,
    dilate_cells,
    neighbour_slots,
    outer_cells,
    pack_cells,
    unpack_cells,
)

SHAPE = FieldShape(cells=16, table_size=64, features=2)


@pytest.mark.parametrize("edge", [4, 8, 32])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_bits_round_trip(rng: np.random.Generator, edge: int, count: int) -> None:
    cells = rng.random((count, edge, edge, edge)) < 0.3
    bits = pack_cells(cells)
    assert bits.shape == (count, edge**3 // 8)
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(unpack_cells(bits, edge), cells, strict=True)


def test_bit_order_is_the_arenas(rng: np.random.Generator) -> None:
    cells = rng.random((1, 8, 8, 8)) < 0.5
    bits = pack_cells(cells)[0]
    for cx, cy, cz in rng.integers(0, 8, (50, 3)):
        bit = (cz * 8 + cy) * 8 + cx
        assert bool(bits[bit >> 3] >> (bit & 7) & 1) == cells[0, cz, cy, cx]


def test_dilation_takes_all_neighbours_inside_the_node(rng: np.random.Generator) -> None:
    cells = rng.random((3, 8, 8, 8)) < 0.02
    before = cells.copy()
    expected = np.zeros_like(cells)
    for node, z, y, x in np.argwhere(cells):
        expected[node, max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    np.testing.assert_array_equal(dilate_cells(cells), expected)
    np.testing.assert_array_equal(cells, before)


def test_dilation_goes_on_in_the_neighbours(rng: np.random.Generator) -> None:
    edge, nodes = 4, 4
    xyz = np.argwhere(np.ones((nodes, nodes, nodes))).astype(np.int64)
    keys = rng.permutation(encode_keys(np.full(len(xyz), 2, np.int32), xyz))
    xyz = decode_keys(keys)[1]
    cells = rng.random((len(keys), edge, edge, edge)) < 0.02
    whole = np.zeros((nodes * edge,) * 3, np.bool_)
    parts = [tuple(slice(int(v) * edge, int(v) * edge + edge) for v in at[::-1]) for at in xyz]
    for part, own in zip(parts, cells, strict=True):
        whole[part] = own
    expected = dilate_cells(whole[None])[0]
    neighbours = neighbour_slots(keys)
    grown = dilate_cells(cells, neighbours)
    on_device = dilate(torch.from_numpy(cells.reshape(len(keys), -1)), edge, torch.from_numpy(neighbours))
    np.testing.assert_array_equal(on_device.numpy().reshape(cells.shape), grown | outer_cells(neighbours, edge))
    for part, own in zip(parts, grown, strict=True):
        np.testing.assert_array_equal(own, expected[part])
    # the nodes fill the cube, so only its own faces have nothing behind them
    whole[:] = True
    whole[1:-1, 1:-1, 1:-1] = False
    for part, own in zip(parts, outer_cells(neighbours, edge), strict=True):
        np.testing.assert_array_equal(own, whole[part])


def test_neighbours_are_of_the_same_level_and_resident(rng: np.random.Generator) -> None:
    octree = random_octree(rng, 5)
    keys = octree.keys
    slot = {int(key): k for k, key in enumerate(keys)}
    for k, row in enumerate(neighbour_slots(keys)):
        node = NodeId.from_key(int(keys[k]))
        for axis in range(3):
            for side, step in enumerate((-1, 1)):
                at = [node.x, node.y, node.z]
                at[axis] += step
                inside = 0 <= at[axis] < 1 << node.level
                assert row[axis, side] == (slot.get(NodeId(node.level, *at).key, -1) if inside else -1)


def test_any_occupied_looks_below(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 5), (0, 3), shape=SHAPE, fill=0.02, empty_nodes=0.7)
    bits = arena.occupancy.numpy().copy()
    level, children = arena.level.numpy(), arena.children.numpy()
    free = level < 0
    bits[free] = 255  # what a node left behind in its slot does not count

    def below(slot: int) -> bool:
        return bool(bits[slot].any()) or any(below(int(c)) for c in children[slot] if c >= 0)

    expected = [0 if level[slot] < 0 else int(below(slot)) for slot in range(len(level))]
    np.testing.assert_array_equal(any_occupied(bits, level, children), np.array(expected, np.uint8), strict=True)
    np.testing.assert_array_equal(any_occupied(bits, level, children), arena.any_occupied.numpy(), strict=True)


def test_any_occupied_of_no_nodes() -> None:
    nothing = any_occupied(np.zeros((2, 8), np.uint8), np.full(2, -1, np.int32), np.full((2, 8), -1, np.int32))
    assert nothing.tolist() == [0, 0]


def slow_cells_of_points(points: Float64, arena: Arena, octree: Octree, slots: dict[int, int], reach: int) -> Bool:
    """Every cell around every point, node by node from its key."""
    o = SHAPE.occupancy_cells
    out = np.zeros((arena.level.shape[0], o, o, o), np.bool_)
    for point in points:
        if not ((point >= 0) & (point < 1)).all():
            continue
        for level in range(int(octree.deepest_level(point[None])[0]) + 1):
            own = np.floor(point * o * 2**level).astype(np.int64)
            for shift in itertools.product(range(-reach, reach + 1), repeat=3):
                cell = own + shift
                if (cell < 0).any() or (cell >= o * 2**level).any():
                    continue
                slot = slots.get(int(encode_keys(level, cell[None] // o)[0]), -1)
                if slot >= 0:
                    out[slot, cell[2] % o, cell[1] % o, cell[0] % o] = True
    return out


def slots_by_key(arena: Arena) -> dict[int, int]:
    found: dict[int, int] = {}
    pending: list[tuple[int, int, Int64]] = [(arena.root, 0, np.zeros(3, np.int64))]
    while pending:
        slot, level, xyz = pending.pop()
        found[int(encode_keys(level, xyz[None])[0])] = slot
        for c, child in enumerate(arena.children[slot].tolist()):
            if child >= 0:
                pending.append((child, level + 1, 2 * xyz + np.array([c & 1, (c >> 1) & 1, c >> 2])))
    return found


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_cells_of_points(rng: np.random.Generator, reach: int) -> None:
    octree = random_octree(rng, 4, children=5.0)
    arena = random_arena(rng, octree, (0, 2), shape=SHAPE)
    points = rng.random((60, 3))
    points[:10] = np.round(points[:10] * 8) / 8 % 1  # on faces of nodes
    points[10:20, 0] = rng.choice([0.0, 1e-9, 1 - 1e-9], 10)  # in the cube's faces
    points[20:24] = [[-0.01, 0.5, 0.5], [0.5, 1.0, 0.5], [np.nan, 0.5, 0.5], [0.5, 0.5, np.inf]]
    cells = cells_of_points(
        points, arena.level.numpy(), arena.children.numpy(), root=arena.root, occupancy_cells=4, reach=reach
    )
    expected = slow_cells_of_points(points, arena, octree, slots_by_key(arena), reach)
    assert expected.any()
    np.testing.assert_array_equal(cells, expected, strict=True)


def test_reach_crosses_nodes_and_stops_at_the_cube() -> None:
    arena = random_arena(np.random.default_rng(0), full_octree(1), shape=SHAPE)
    links = (arena.level.numpy(), arena.children.numpy())
    middle = cells_of_points(np.full((1, 3), 0.5), *links, root=arena.root, occupancy_cells=4)
    assert middle.sum() == 27 + 27  # the root's, and 27 spread over its eight children
    assert middle.any(axis=(1, 2, 3)).sum() == 9
    corner = cells_of_points(np.zeros((1, 3)), *links, root=arena.root, occupancy_cells=4)
    assert corner.sum() == 8 + 8
    nothing = cells_of_points(np.zeros((0, 3)), *links, root=arena.root, occupancy_cells=4)
    assert not nothing.any()
