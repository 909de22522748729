"""What a process keeps of its photos: the same as worked out anew for every treelet, and worked out once."""

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from training.small_scenes import build_scene, open_context, tiny, write_city

from infnerf_tiles.arrays import Bool
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import kept, surroundings
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.depth import MAX_ERROR, MIN_TRACK, DepthTargets
from infnerf_tiles.training.kept import SortedPoints, facts_of
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.surroundings import start_occupancy
from infnerf_tiles.training.tasks import inputs_fingerprint
from infnerf_tiles.volume.occupancy import cells_of_points

SETTINGS = tiny("octree.treelet_height=1", "octree.min_points=20")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("kept")
    data = write_city(folder / "city")
    with SceneStore.open(build_scene(data, folder / "scene.zarr", SETTINGS), "r+") as store:
        found = open_context(store, data, SETTINGS)
        points = found.photos.points
        assert points is not None
        # some beyond the root cube, some that do not count
        xyz, error = points.xyz.copy(), points.error.copy()
        xyz[::50] += 100.0 * store.header.root.edge
        error[::7] = 3.0
        yield Context(store, replace(found.photos, points=replace(points, xyz=xyz, error=error)), SETTINGS)


def treelets(context: Context) -> list[NodeId]:
    return [NodeId.from_key(key) for key in context.store.read_index().root_keys.tolist()]


def test_points_of_a_cube_are_those_whose_cell_it_is(context: Context, rng: np.random.Generator) -> None:
    root = context.store.header.root
    unit = rng.uniform(-0.1, 1.1, (4000, 3))
    unit[:64] = np.round(unit[:64] * 8) / 8  # on the faces
    found = SortedPoints(root.to_world(unit), root)
    unit = root.to_unit(root.to_world(unit))
    for top in [*treelets(context), NodeId(3, 7, 7, 0), NodeId(3, 3, 4, 2), NodeId(18, 0, 0, 0)]:
        cell = np.floor(unit * 2.0**top.level)
        inside = (cell == [top.x, top.y, top.z]).all(axis=1)
        assert np.array_equal(found.within(top), np.flatnonzero(inside))
        beside = (np.abs(cell - [top.x, top.y, top.z]) <= 1).all(axis=1) & ((unit >= 0) & (unit < 1)).all(axis=1)
        assert np.array_equal(found.around(top), np.flatnonzero(beside))


def test_depth_targets_are_those_of_the_slow_twin(context: Context) -> None:
    points = context.photos.points
    assert points is not None
    total = 0
    for top in treelets(context):
        unit = context.store.header.root.to_unit(points.xyz)
        inside = (np.floor(unit * 2.0**top.level) == [top.x, top.y, top.z]).all(axis=1)
        good = inside & (points.track_lengths >= MIN_TRACK) & (points.error <= MAX_ERROR)
        owner = np.repeat(np.arange(points.num_points), points.track_lengths)
        chosen = np.flatnonzero(good[owner] & ~context.photos.is_test[points.track_photos])
        found = DepthTargets.of_treelet(context, top)
        assert np.array_equal(found.photo, points.track_photos[chosen])
        assert np.array_equal(found.point, owner[chosen])
        assert found.point.dtype == np.int32
        assert found.xyz is points.xyz
        total += found.count
    assert total > 500


def others_of(context: Context, index: SceneIndex, row: int) -> ResidentNodes:
    """All nodes but a treelet's own, empty."""
    rows, shape = np.flatnonzero(index.treelets != row), context.shape
    used, treelet = np.unique(index.treelets[rows], return_inverse=True)
    return ResidentNodes(
        keys=index.keys[rows],
        treelet=treelet.astype(np.int32),
        tables=np.zeros((len(rows), shape.row_length), np.float16),
        occupancy=np.zeros((len(rows), shape.occupancy_bytes), np.uint8),
        lambda_max=np.zeros(len(rows), np.float32),
        top_keys=index.root_keys[used],
        bases=np.zeros((len(used), shape.base_length), np.float16),
    )


@pytest.mark.parametrize("tracks", [True, False])
def test_cells_to_begin_with_are_those_of_all_points(
    context: Context, tracks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = context.photos.points
    assert points is not None
    if not tracks:
        points = replace(
            points, track_offsets=np.zeros_like(points.track_offsets), track_photos=np.empty(0, np.int32)
        )
        context = Context(context.store, replace(context.photos, points=points), SETTINGS)
    unit = context.store.header.root.to_unit(context.surface_points)
    unit = unit[((unit >= 0) & (unit < 1)).all(axis=1)]
    given: list[int] = []

    def counted(near: Any, *args: Any, **more: Any) -> Bool:
        given.append(len(near))
        return cells_of_points(near, *args, **more)

    monkeypatch.setattr(surroundings, "cells_of_points", counted)
    index = context.store.read_index()
    for row, top in enumerate(treelets(context)):
        keys = index.keys[index.treelets == row]
        state = TrainingState(context.shape, top, keys, len(keys), others_of(context, index, row))
        nothing = np.zeros(len(keys), np.bool_)
        found = start_occupancy(context, state, nothing)
        with monkeypatch.context() as patch:
            patch.setattr(surroundings, "cells_of_points", lambda _, *a, **m: counted(unit, *a, **m))
            assert np.array_equal(found, start_occupancy(context, state, nothing))
        assert given[-1] == len(unit)
    assert min(given) < len(unit) / 2


def test_each_is_worked_out_once_whoever_asks(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = replace(context.photos)
    made: list[str] = []
    work, sort = kept._fingerprint, SortedPoints.__init__

    def fingerprint(of: Any) -> str:
        made.append("fingerprint")
        return work(of)

    def sorting(self: SortedPoints, *args: Any) -> None:
        made.append("points")
        sort(self, *args)

    monkeypatch.setattr(kept, "_fingerprint", fingerprint)
    monkeypatch.setattr(SortedPoints, "__init__", sorting)
    found: list[str] = []

    def task() -> None:
        here = Context(context.store, photos, SETTINGS)  # every task opens its own
        for top in treelets(here):
            DepthTargets.of_treelet(here, top)
        found.extend([inputs_fingerprint(here), inputs_fingerprint(here)])

    threads = [threading.Thread(target=task) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["fingerprint", "points"]
    assert len(found) == 8
    assert set(found) == {inputs_fingerprint(context)}  # of equal photos
    other = replace(photos, names=tuple(f"other/{name}" for name in photos.names))
    assert inputs_fingerprint(Context(context.store, other, SETTINGS)) not in found


def test_nothing_is_kept_of_photos_that_are_gone(context: Context) -> None:
    photos = replace(context.photos)
    before = len(kept._kept)
    facts_of(photos)
    assert len(kept._kept) == before + 1
    del photos
    gc.collect()
    assert len(kept._kept) <= before
