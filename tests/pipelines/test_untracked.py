"""Points of which nobody says who saw them: nearly the octree that their tracks give, in building, training, adding."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.coverage import cover
from infnerf_tiles.pipelines.partition import partition, scene_partition
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, some_photos, tiny, untracked

from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.records import Points
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset
from infnerf_tiles.training.context import Context, scene_photos
from infnerf_tiles.training.depth import DepthTargets

SETTINGS = tiny("octree.treelet_height=1", "octree.max_level=3", "octree.min_points=8", "training.passes=0.1")
DEEP = tiny("octree.cells=16", "octree.max_level=8", "octree.min_points=8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PosedPhotos:
    folder = tmp_path_factory.mktemp("untracked") / "city"
    write_city_dataset(folder, blocks=(2, 1), num_photos=16, size=(64, 48), supersample=1, num_points=2000)
    (folder / "split.json").unlink()
    return read_dataset(folder)


@pytest.fixture(scope="module")
def bare(photos: PosedPhotos) -> PosedPhotos:
    return untracked(photos)


def points_of(photos: PosedPhotos) -> Points:
    assert photos.points is not None
    return photos.points


def test_the_octree_is_nearly_that_of_the_tracks(photos: PosedPhotos, bare: PosedPhotos) -> None:
    lo, hi = points_of(photos).xyz.min(axis=0), points_of(photos).xyz.max(axis=0)
    for bounds in (None, (*lo.tolist(), *hi.tolist())):
        with_tracks, without = partition(photos, DEEP, bounds), partition(bare, DEEP, bounds)
        assert with_tracks.max_level == without.max_level >= 3
        assert with_tracks.octree.num_nodes > 80
        # a point whose true observers are all as far away as its likely ones has the same level; some 5 % of the
        # finest observers differ, and what makes a node of few points is on the edge of the content floor
        common = np.intersect1d(with_tracks.octree.keys, without.octree.keys)
        if bounds is not None or without.root == with_tracks.root:
            assert len(common) > 0.93 * with_tracks.octree.num_nodes
            assert len(common) > 0.93 * without.octree.num_nodes
        assert without.octree.num_nodes == pytest.approx(with_tracks.octree.num_nodes, rel=0.07)
        assert without.node_limit == pytest.approx(with_tracks.node_limit, rel=0.07)
        assert np.allclose(without.root.origin, with_tracks.root.origin, atol=0.02 * with_tracks.root.edge)


def test_points_that_some_photos_hide_do_not_make_fine_nodes(photos: PosedPhotos) -> None:
    """A cellar close under the ground: photos look at it, and see the ground."""
    points = points_of(untracked(photos))
    city = partition(untracked(photos), DEEP)
    rng = np.random.default_rng(0)
    lo, hi = points.xyz.min(axis=0), points.xyz.max(axis=0)
    height = float(photos.cameras.centres[:, 2].mean() - lo[2])
    cellar = np.column_stack([rng.uniform(lo[:2], hi[:2], (1000, 2)), np.full(1000, lo[2] - 0.8 * height)])
    xyz = np.concatenate([points.xyz, cellar])
    dug = replace(
        points, xyz=xyz, rgb=np.zeros((len(xyz), 3), np.uint8), error=np.zeros(len(xyz), np.float32),
        track_offsets=np.zeros(len(xyz) + 1, np.int64),
    )  # fmt: skip
    found = partition(replace(photos, points=dug), DEEP)
    kept = np.isin(np.arange(len(xyz)), found.evidence)
    assert kept[: points.num_points].mean() > 0.95
    assert kept[points.num_points :].mean() < 0.5
    assert found.node_limit > city.node_limit / 2


def test_the_coverage_is_nearly_that_of_the_tracks(photos: PosedPhotos, bare: PosedPhotos) -> None:
    lo, hi = points_of(photos).xyz.min(axis=0), points_of(photos).xyz.max(axis=0)
    box = (*lo.tolist(), *hi.tolist())
    with_tracks, without = (cover(partition(p, SETTINGS, box)) for p in (photos, bare))
    assert without.lost == ()
    assert without.blind_photos == ()
    those = {region.treelet: region for region in with_tracks.regions}
    both = [(those[region.treelet], region) for region in without.regions if region.treelet in those]
    assert len(both) > 0.9 * len(those) > 20
    off = [abs(a.photos - b.photos) for a, b in both if a.points]
    assert np.mean(off) < 1.5  # of some ten
    fine = [abs(np.log2(a.gsd / b.gsd)) for a, b in both if a.points and b.points and a.gsd and b.gsd]
    assert np.percentile(fine, 90) < 0.25


@pytest.mark.parametrize("kind", ["elsewhere", "too few"])
def test_points_that_tell_nothing_are_as_good_as_none(
    bare: PosedPhotos, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    points = points_of(bare)
    moved = replace(points, xyz=points.xyz + np.array([0.0, 0.0, 1e5]))
    few = np.arange(0, points.num_points, 500)
    small = replace(
        points, xyz=points.xyz[few], rgb=points.rgb[few], error=points.error[few],
        track_offsets=np.zeros(len(few) + 1, np.int64),
    )  # fmt: skip
    settings = tiny("octree.reach=2.0", "octree.max_level=4", "octree.min_points=20", "octree.max_nodes=777")
    with caplog.at_level(logging.WARNING):
        found = partition(replace(bare, points=moved if kind == "elsewhere" else small), settings)
    assert "tell too little of what the photos show" in caplog.text
    assert found.node_limit == 777
    none = partition(replace(bare, points=None), settings)
    if kind == "elsewhere":
        assert np.array_equal(found.octree.keys, none.octree.keys)
        assert found.root == none.root
    cover(found)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        partition(replace(bare, points=None), settings)
        partition(bare, settings)
    assert caplog.text == ""


def test_no_points_and_one_photo(bare: PosedPhotos) -> None:
    points = points_of(bare)
    empty = replace(
        points, xyz=points.xyz[:0], rgb=points.rgb[:0], error=points.error[:0], track_offsets=np.zeros(1, np.int64)
    )
    found = partition(replace(bare, points=empty), tiny("octree.reach=2.0"))
    assert found.octree.num_nodes >= 1
    assert cover(found).points_outside == 0
    one = bare.select(np.array([3]), np.array([False]))
    found = partition(one, SETTINGS)
    assert found.octree.num_nodes > 1  # of what the one photo shows
    assert one.cameras.project(0, points_of(one).xyz[found.evidence])[2].all()
    assert {region.photos for region in cover(found).regions} >= {1}
    with pytest.raises(DatasetError, match="set bounds or give SfM points"):
        partition(replace(one, points=None), SETTINGS)


def test_training_knows_what_building_knew(bare: PosedPhotos, tmp_path: Path) -> None:
    data = some_photos(bare, np.arange(bare.num_photos), tmp_path / "data")
    settings = tiny("octree.min_points=30", "training.passes=0.2")
    scene = build_scene(data, tmp_path / "scene.zarr", settings)
    built = partition(read_dataset(data), settings)
    with SceneStore.open(scene) as store:
        photos = scene_photos(store, settings, data)
        known = scene_partition(store, photos, settings)
        context = Context(store, photos, settings)
        assert DepthTargets.of_treelet(context, NodeId(0, 0, 0, 0)).count == 0
        assert len(context.surface_points) > 0.9 * points_of(bare).num_points
    assert np.array_equal(known.octree.keys, built.octree.keys)
    assert np.array_equal(known.evidence, built.evidence)
    assert known.node_limit == built.node_limit
    assert cover(known) == cover(built)
    summary = train(scene, threads=1)
    assert (summary.failed, summary.remaining) == ((), 0)
    with SceneStore.open(scene) as store:
        assert store.read_index().num_nodes <= built.node_limit


def test_photos_are_added_by_likely_observers(photos: PosedPhotos, bare: PosedPhotos, tmp_path: Path) -> None:
    some = np.flatnonzero(photos.cameras.centres[:, 0] < np.quantile(photos.cameras.centres[:, 0], 0.7))
    everything = np.arange(photos.num_photos)
    lo, hi = points_of(photos).xyz.min(axis=0) - 1.0, points_of(photos).xyz.max(axis=0) + 1.0
    box = (*lo.tolist(), *hi.tolist())
    added, whole = {}, {}
    for name, source in (("tracks", photos), ("none", bare)):
        scene = build_scene(
            some_photos(source, some, tmp_path / name / "some"), tmp_path / name / "s.zarr", SETTINGS, bounds=box
        )
        same = add_photos(tmp_path / name / "some", scene)
        assert (same.new_photos, same.new_nodes, same.marked) == (0, 0, ())
        data = some_photos(source, everything, tmp_path / name / "all")
        report = add_photos(data, scene)
        assert report.new_photos == len(everything) - len(some)
        assert report.new_nodes > 0
        again = add_photos(data, scene)
        assert (again.new_photos, again.new_nodes) == (0, 0)
        with SceneStore.open(scene) as store:
            index = store.read_index()
            added[name] = index.keys
            assert (index.treelet_states != TreeletState.TRAINED).all()
        whole[name] = partition(read_dataset(data), SETTINGS, box).octree.keys
    # what all photos ask for from the start is there, but for what only photos that were there before ask for now
    for name in added:
        assert np.isin(whole[name], added[name]).mean() > 0.97
    common = np.intersect1d(added["tracks"], added["none"])
    assert len(common) > 0.9 * max(len(added["tracks"]), len(added["none"]))
