"""Front to back: the order of nodes, and that a picture reads a node once however few fit."""

import numpy as np
import pytest
from rendering.random_scenes import full_keys, make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.rendering.front import front_order, next_use_from
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.working_set import eviction_order

CAMERA = Camera("SIMPLE_PINHOLE", 32, 24, (40.0, 16.0, 12.0))
POSE = pose((50.0, 35.0, 22.0))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-3.0))


def test_every_ray_meets_nodes_in_order(rng: np.random.Generator) -> None:
    octree = Octree.from_keys(full_keys(3))
    finest = np.flatnonzero(octree.levels == 3)
    for eye in rng.uniform(-0.5, 1.5, (10, 3)):
        order = np.zeros(octree.num_nodes, np.int64)
        order[:] = front_order(octree, np.arange(octree.num_nodes), eye)
        # nobody comes before what it is part of, and all of a node comes at a stretch
        assert (order[1:] >= order[octree.parents[1:]]).all()
        for row in np.flatnonzero(octree.levels == 2):
            below = order[finest][octree.parents[finest] == row]
            others = order[finest][octree.parents[finest] != row]
            assert not ((others > below.min()) & (others < below.max())).any()
        for target in rng.uniform(0.0, 1.0, (20, 3)):
            points = eye + np.linspace(0.0, 3.0, 500)[:, None] * (target - eye)
            points = points[((points >= 0) & (points < 1)).all(axis=1)]
            rows = octree.deepest_row(points)
            assert (np.diff(order[rows]) >= 0).all()


def test_what_was_passed_is_needed_last() -> None:
    octree = Octree.from_keys(full_keys(2))
    eye = np.array([-1.0, 0.3, 0.4])
    rows = np.flatnonzero(octree.levels == 2)
    order = front_order(octree, rows, eye)
    place = np.sort(order)[20]
    later = next_use_from(octree, eye, int(place))(rows)
    assert later[order == place] == 0
    assert later[order < place].min() > later[order >= place].max()
    # of those, the next picture's front comes first
    assert (np.diff(later[np.argsort(order)][:20]) > 0).all()


@pytest.mark.parametrize("share", [1.0, 1.5, 4.0])
def test_a_picture_reads_a_node_about_once_however_few_fit(
    scene: Scene, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = NodeCache._read

    def recorded(cache: NodeCache, item: object) -> object:
        reads.append(item)
        return read(cache, item)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeCache, "_read", recorded)
    with Renderer(scene, threads=1) as renderer:
        budget = int(share * renderer.cache.smallest_working_set)
    with Renderer(scene, budget, threads=1) as renderer:
        renderer.render(CAMERA, POSE)
        assert renderer.cache.counters.evictions > 0
    assert len(reads) <= 1.1 * len(set(reads))


def test_what_is_resident_is_counted_as_found(scene: Scene) -> None:
    with Renderer(scene, threads=1) as renderer:
        renderer.render(CAMERA, POSE)
        counters = renderer.cache.counters
        misses, hits, touched = counters.misses, counters.hits, renderer.cache.num_touched
        renderer.render(CAMERA, POSE)
        assert counters.misses == misses
        assert counters.hits - hits >= touched
        assert renderer.cache.num_touched == touched


def test_what_no_picture_uses_any_more_makes_room_first() -> None:
    used, level = np.array([9, 2, 8, 3, 9]), np.array([1, 2, 1, 2, 3])
    assert eviction_order(used, level, None, 0) == [1, 3, 2, 4, 0]
    later = np.array([4, 0, 6, 9, 5])
    assert eviction_order(used, level, later, 8) == [1, 3, 2, 4, 0]
    assert eviction_order(used, level, later, 3) == [1, 3, 2, 4, 0]
    assert eviction_order(used, level, later, 0) == [3, 2, 4, 0, 1]


def test_the_next_picture_finds_what_it_begins_with(scene: Scene) -> None:
    """A budget for most nodes keeps most of them from picture to picture, where dropping the oldest would keep none."""
    with Renderer(scene, threads=1) as renderer:
        renderer.render(CAMERA, POSE)
        whole, total = renderer.cache.num_bytes, renderer.cache.counters.bytes_read
    with Renderer(scene, int(0.8 * whole), threads=1) as renderer:
        for _ in range(4):
            renderer.render(CAMERA, POSE)
        assert renderer.cache.counters.evictions > 0
        assert renderer.cache.counters.bytes_read < 2.5 * total
