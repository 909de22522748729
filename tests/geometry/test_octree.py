"""Topology, look-up, bands and treelets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.geometry.node_id import MAX_LEVEL, NodeId, encode_keys
from infnerf_tiles.geometry.octree import Octree, band_root_levels, cut, treelet_root_keys


def random_keys(seed: int, count: int, depth: int) -> Int64:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, depth + 1, count)
    # clustered, so that paths are shared
    xyz = (rng.beta(0.5, 2.0, (count, 3)) * (1 << levels)[:, None]).astype(np.int64)
    return encode_keys(levels, np.minimum(xyz, (1 << levels)[:, None] - 1))


def slow_closure(keys: Int64) -> set[NodeId]:
    return {
        NodeId.from_key(key).ancestor(level) for key in keys.tolist() for level in range(NodeId.from_key(key).level + 1)
    }


def slow_deepest(nodes: set[NodeId], point: Float64, limit: int) -> int:
    if not all(0 <= v < 1 for v in point):
        return -1
    deepest = -1
    for node in nodes:
        if node.level <= limit and all(int(v * 2**node.level) == c for v, c in zip(point, list(node)[1:], strict=True)):
            deepest = max(deepest, node.level)
    return deepest


trees = st.builds(random_keys, st.integers(0, 2**32), st.integers(1, 25), st.integers(0, 7))


@settings(max_examples=60)
@given(trees)
def test_from_keys_closes_the_set_under_parents_and_keeps_it_sorted(keys: Int64) -> None:
    octree = Octree.from_keys(keys)
    expected = slow_closure(keys)
    assert octree.keys.tolist() == sorted(node.key for node in expected)
    assert octree.num_nodes == len(expected)
    assert octree.depth == max(node.level for node in expected)
    for row, (level, xyz) in enumerate(zip(octree.levels, octree.xyz, strict=True)):
        assert NodeId(level, *xyz).key == octree.keys[row]


@settings(max_examples=60)
@given(trees)
def test_parents_and_children_agree_with_the_ids(keys: Int64) -> None:
    octree = Octree.from_keys(keys)
    row_of = {int(key): row for row, key in enumerate(octree.keys)}
    for row, key in enumerate(octree.keys.tolist()):
        node = NodeId.from_key(key)
        assert octree.parents[row] == (row_of[node.parent.key] if node.level else -1)
        assert octree.children[row].tolist() == [row_of.get(child.key, -1) for child in node.children()]


def test_index_of_finds_what_exists_and_nothing_else() -> None:
    octree = Octree.from_keys(random_keys(1, 200, 8))
    np.testing.assert_array_equal(octree.index_of(octree.keys), np.arange(octree.num_nodes))
    others = np.setdiff1d(random_keys(2, 500, 9), octree.keys)
    assert len(others) > 50
    assert (octree.index_of(others) == -1).all()
    assert octree.index_of(octree.keys[:6].reshape(2, 3)).shape == (2, 3)


@settings(max_examples=60)
@given(trees, st.integers(0, 2**32), st.integers(0, 8))
def test_deepest_level_agrees_with_the_slow_search(keys: Int64, seed: int, limit: int) -> None:
    octree = Octree.from_keys(keys)
    rng = np.random.default_rng(seed)
    inside = (octree.xyz[rng.integers(0, octree.num_nodes, 10)] + rng.random((10, 3))) / 2**octree.depth
    points = np.concatenate([rng.uniform(-0.1, 1.1, (10, 3)), inside, [[0.0, 0.0, 0.0], [1.0, 0.5, 0.5], [np.nan] * 3]])
    nodes = slow_closure(keys)
    expected = [slow_deepest(nodes, point, limit) for point in points]
    assert octree.deepest_level(points, limit).tolist() == expected
    limits = rng.integers(0, 9, len(points))
    expected = [slow_deepest(nodes, point, int(one)) for point, one in zip(points, limits, strict=True)]
    assert octree.deepest_level(points, limits).tolist() == expected


def test_deepest_row_is_the_node_around_the_point() -> None:
    octree = Octree.from_keys(random_keys(5, 200, 9))
    points = (octree.xyz + 0.5) / (1 << octree.levels.astype(np.int64))[:, None]
    rows = octree.deepest_row(points, octree.levels)
    np.testing.assert_array_equal(rows, np.arange(octree.num_nodes))


def test_points_next_to_the_far_face_at_the_deepest_possible_level() -> None:
    last = (1 << MAX_LEVEL) - 1
    octree = Octree.from_keys(np.array([NodeId(MAX_LEVEL, last, last, last).key]))
    almost_one = np.nextafter(1.0, 0.0)
    assert octree.num_nodes == MAX_LEVEL + 1
    assert octree.deepest_level(np.full((1, 3), almost_one)).tolist() == [MAX_LEVEL]


@settings(max_examples=60)
@given(trees, trees)
def test_with_keys_is_the_closed_union(first: Int64, second: Int64) -> None:
    union = Octree.from_keys(first).with_keys(second)
    assert set(union.keys.tolist()) == {node.key for node in slow_closure(first) | slow_closure(second)}


@settings(max_examples=60)
@given(trees, trees)
def test_without_drops_whole_subtrees_and_stays_closed(keys: Int64, dropped: Int64) -> None:
    gone = {NodeId.from_key(key) for key in dropped.tolist()} - {NodeId(0, 0, 0, 0)}
    rest = Octree.from_keys(keys).without(np.array([node.key for node in gone], dtype=np.int64))
    expected = {
        node for node in slow_closure(keys) if not any(node.ancestor(level) in gone for level in range(node.level + 1))
    }
    assert rest.keys.tolist() == sorted(node.key for node in expected)


def test_an_empty_octree_answers() -> None:
    octree = Octree.from_keys(np.array([NodeId(3, 1, 2, 3).key])).without(np.array([0]))
    assert octree.num_nodes == 0
    assert octree.depth == -1
    assert octree.index_of(np.array([0])).tolist() == [-1]
    assert octree.deepest_level(np.full((2, 3), 0.5)).tolist() == [-1, -1]
    assert octree.children.shape == (0, 8)
    assert octree.parents.shape == (0,)
    assert cut(octree, (0,)) == ()
    assert Octree.from_keys(np.array([], dtype=np.int64)).num_nodes == 0


def test_octree_arrays_are_read_only() -> None:
    octree = Octree.from_keys(random_keys(0, 10, 4))
    for array in (octree.keys, octree.levels, octree.xyz, octree.parents, octree.children):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_keys_that_are_no_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="node keys"):
        Octree.from_keys(np.array([-5]))


@pytest.mark.parametrize(
    ("depth", "height", "bands"),
    [
        (0, 3, (0,)),
        (2, 3, (0,)),
        (3, 3, (0, 1)),
        (5, 3, (0, 3)),
        (6, 3, (0, 1, 4)),
        (7, 4, (0, 4)),
        (8, 4, (0, 1, 5)),
        (4, 1, (0, 1, 2, 3, 4)),
    ],
)
def test_bands_are_counted_from_the_finest_level_up(depth: int, height: int, bands: tuple[int, ...]) -> None:
    assert band_root_levels(depth, height) == bands


@settings(max_examples=60)
@given(trees, st.integers(1, 4))
def test_cut_puts_every_node_into_the_treelet_of_its_band_root(keys: Int64, height: int) -> None:
    octree = Octree.from_keys(keys)
    bands = band_root_levels(octree.depth, height)
    treelets = cut(octree, bands)
    assert np.concatenate([t.keys for t in treelets]).size == octree.num_nodes
    order = [(t.band, t.root.key) for t in treelets]
    assert order == sorted(order)
    ends = (*bands[1:], octree.depth + 1)
    for treelet in treelets:
        assert treelet.keys[0] == treelet.root.key
        assert treelet.root.level == bands[treelet.band]
        expected = [
            key
            for key in octree.keys.tolist()
            if treelet.root.level <= (node := NodeId.from_key(key)).level < ends[treelet.band]
            and node.ancestor(treelet.root.level) == treelet.root
        ]
        assert treelet.keys.tolist() == expected
        assert (treelet_root_keys(treelet.keys, bands) == treelet.root.key).all()


def test_band_levels_that_make_no_sense_are_refused() -> None:
    octree = Octree.from_keys(np.array([0]))
    for bands in ((), (1, 2), (0, 2, 2)):
        with pytest.raises(ValueError, match="band levels"):
            cut(octree, bands)
    with pytest.raises(ValueError, match="bands"):
        band_root_levels(3, 0)
