"""Node ids, keys and the root cube."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.node_id import (
    MAX_LEVEL,
    NodeId,
    RootCube,
    ancestor_keys,
    child_keys,
    decode_keys,
    encode_keys,
    parent_keys,
)


@st.composite
def nodes(draw: st.DrawFn, lowest: int = 0, highest: int = MAX_LEVEL) -> NodeId:
    level = draw(st.integers(lowest, highest))
    x, y, z = (draw(st.integers(0, 2**level - 1)) for _ in range(3))
    return NodeId(level, x, y, z)


def slow_key(node: NodeId) -> int:
    code = sum(
        ((value >> bit) & 1) << (3 * bit + axis)
        for axis, value in enumerate((node.x, node.y, node.z))
        for bit in range(node.level)
    )
    return (node.level << 57) + code


@given(nodes())
def test_key_is_the_level_over_the_interleaved_cells_and_fits_int64(node: NodeId) -> None:
    assert node.key == slow_key(node)
    assert 0 <= node.key < 2**63
    assert NodeId.from_key(node.key) == node


@given(st.lists(nodes(), min_size=1, max_size=40))
def test_vectorised_keys_agree_with_node_ids(many: list[NodeId]) -> None:
    levels = np.array([n.level for n in many])
    xyz = np.array([[n.x, n.y, n.z] for n in many])
    keys = encode_keys(levels, xyz)
    assert keys.dtype == np.int64
    assert keys.tolist() == [n.key for n in many]
    back_levels, back_xyz = decode_keys(keys)
    np.testing.assert_array_equal(back_levels, levels)
    np.testing.assert_array_equal(back_xyz, xyz)
    assert [n.key for n in sorted(many)] == sorted(keys.tolist())


@given(nodes(lowest=1))
def test_parent_and_child_undo_each_other(node: NodeId) -> None:
    dx, dy, dz = node.x & 1, node.y & 1, node.z & 1
    assert node.parent.children()[dx + 2 * dy + 4 * dz] == node
    keys = np.array([node.key])
    assert parent_keys(keys)[0] == node.parent.key
    assert child_keys(parent_keys(keys))[0].tolist() == [child.key for child in node.parent.children()]


@given(nodes(), st.integers(0, MAX_LEVEL))
def test_ancestor_is_the_repeated_parent(node: NodeId, level: int) -> None:
    if level > node.level:
        with pytest.raises(ValueError, match="ancestor"):
            node.ancestor(level)
        return
    slow = node
    while slow.level > level:
        slow = slow.parent
    assert node.ancestor(level) == slow
    assert ancestor_keys(np.array([node.key]), level)[0] == slow.key


@given(nodes())
def test_text_round_trip(node: NodeId) -> None:
    assert NodeId.parse(str(node)) == node
    level, x, y, z = node
    assert str(node) == f"L{level}/{x}-{y}-{z}"


@pytest.mark.parametrize(
    "text", ["", "3/1-2-3", "L3/1-2", "L3/8-0-0", "L19/0-0-0", "L3/-1-0-0", "L3/1-2-3 ", "L３/1-2-3"]
)
def test_text_that_is_no_node_is_refused_with_what_was_got(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(repr(text))):
        NodeId.parse(text)


@pytest.mark.parametrize("fields", [(-1, 0, 0, 0), (MAX_LEVEL + 1, 0, 0, 0), (2, 4, 0, 0), (2, 0, -1, 0)])
def test_ids_outside_the_octree_are_refused(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="node"):
        NodeId(*fields)
    with pytest.raises(ValueError, match="node"):
        encode_keys(fields[0], np.array([fields[1:]]))


def test_what_is_no_key_is_refused() -> None:
    for bad in (-1, (MAX_LEVEL + 1) << 57, (2 << 57) | 64):
        with pytest.raises(ValueError, match="node keys"):
            decode_keys(np.array([bad], dtype=np.int64))
    with pytest.raises(ValueError, match="ancestor"):
        parent_keys(np.array([0]))
    with pytest.raises(ValueError, match="children"):
        child_keys(np.array([NodeId(MAX_LEVEL, 0, 0, 0).key]))


@given(nodes(highest=MAX_LEVEL - 1), st.integers(0, 2**32))
def test_children_tile_their_parent(node: NodeId, seed: int) -> None:
    cube = RootCube(origin=(-31.7, 1e6 / 3, 0.1), edge=777.7)
    box = cube.node_box(node)
    children = [cube.node_box(child) for child in node.children()]
    points = np.random.default_rng(seed).uniform(box.lo, box.hi, (50, 3))
    points = np.concatenate([points, [box.centre, box.lo]])
    held = np.array([child.contains(points) for child in children])
    # every point in exactly one child, faces and the common corner included
    np.testing.assert_array_equal(held.sum(axis=0), box.contains(points).astype(int))
    assert children[0].lo == box.lo
    assert children[7].hi == box.hi


def test_root_cube_maps_world_to_unit_and_back() -> None:
    cube = RootCube(origin=(500_000.0, 5_700_000.0, 100.0), edge=1000.0)
    np.testing.assert_allclose(cube.to_unit(np.array([[500_250.0, 5_700_500.0, 1100.0]])), [[0.25, 0.5, 1.0]])
    points = np.random.default_rng(0).uniform(-1, 2, (100, 3))
    np.testing.assert_allclose(cube.to_unit(cube.to_world(points)), points, atol=1e-11)
    assert cube.node_edge(3) == 125.0
    box = cube.node_box(NodeId(1, 1, 0, 0))
    assert box.lo == (500_500.0, 5_700_000.0, 100.0)
    assert box.hi == (501_000.0, 5_700_500.0, 600.0)


@pytest.mark.parametrize(
    ("origin", "edge"), [((0, 0, 0), 0.0), ((0, 0, 0), -1.0), ((np.nan, 0, 0), 1.0), ((0, 0, 0), np.inf)]
)
def test_impossible_root_cubes_are_refused(origin: tuple[float, float, float], edge: float) -> None:
    with pytest.raises(ValueError, match="root cube"):
        RootCube(origin, edge)
