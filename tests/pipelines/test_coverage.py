"""Coverage: who sees what, what nobody sees, and the map of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.coverage import MIN_PHOTOS, cover, draw_map
from infnerf_tiles.pipelines.partition import Partition, partition
from training.small_scenes import tiny, without_points, write_city

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.geometry.node_id import NodeId


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("coverage") / "city", num_photos=12)


@pytest.fixture(scope="module")
def found(city: Path) -> Partition:
    return partition(read_dataset(city), tiny())


def test_a_slow_count_agrees(found: Partition) -> None:
    coverage, photos, points = cover(found), found.photos, found.photos.points
    assert points is not None
    unit = found.root.to_unit(points.xyz)
    level = found.bands[-1]
    assert len(coverage.regions) == found.treelets_per_band[-1] > 1
    for region in coverage.regions:
        node = NodeId.parse(region.treelet)
        seen, count, finest = set(), 0, np.inf
        for i in found.evidence.tolist():
            track = points.track_photos[points.track_offsets[i] : points.track_offsets[i + 1]]
            if len(track) < 3 or (np.floor(unit[i] * 2**level) != [node.x, node.y, node.z]).any():
                continue
            count += 1
            seen |= {int(p) for p in track if not photos.is_test[p]}
            for p in track.tolist():
                away = np.linalg.norm(points.xyz[i] - photos.cameras.centres[p])
                finest = min(finest, float(away / photos.cameras.focals[p]))
        assert region.points == count
        if not count:  # judged by its cube
            assert region.photos > 0
            continue
        assert region.photos == len(seen)
        assert region.gsd == pytest.approx(finest)
    training = int((~photos.is_test).sum())
    assert sum(region.pixels for region in coverage.regions if region.points) <= training * 64 * 48
    assert coverage.lost == ()
    assert coverage.blind_photos == ()
    json.dumps(coverage.to_json(), allow_nan=False)


def test_without_points_cameras_decide(city: Path, tmp_path: Path) -> None:
    photos = read_dataset(without_points(city, tmp_path / "bare"))
    coverage = cover(partition(photos, tiny("octree.reach=2.0")))
    assert any(region.photos >= MIN_PHOTOS and region.pixels > 0 for region in coverage.regions)
    assert all((region.gsd is None) == (region.photos == 0) for region in coverage.regions)


def test_what_no_photo_sees_is_lost_and_photos_that_see_nothing_are_named(found: Partition) -> None:
    points = found.photos.points
    assert points is not None
    unit = found.root.to_unit(points.xyz)
    region = NodeId.parse(max(cover(found).regions, key=lambda r: r.points).treelet)
    inside = (np.floor(unit * 2**region.level) == [region.x, region.y, region.z]).all(axis=1)
    test = np.flatnonzero(found.photos.is_test)
    owner = np.repeat(np.arange(points.num_points), points.track_lengths)
    # the region's points are seen by a photo that is held out, and one photo sees nothing at all
    tracks = np.where(inside[owner] | (points.track_photos == 1), test[0], points.track_photos).astype(np.int32)
    photos = replace(found.photos, points=replace(points, track_photos=tracks))
    coverage = cover(replace(found, photos=photos))
    assert [r.treelet for r in coverage.lost] == [str(region)]
    assert found.photos.names[1] in coverage.blind_photos


def test_the_map_shows_regions_by_their_photos_and_north_up(found: Partition) -> None:
    coverage = cover(found)
    picture = draw_map(found, coverage)
    assert picture.ndim == 3
    side = 2 ** found.bands[-1]
    scale = len(picture) // side
    for region in coverage.regions:
        node = NodeId.parse(region.treelet)
        block = picture[::-1][node.y * scale + 1 : (node.y + 1) * scale, node.x * scale + 1 : (node.x + 1) * scale]
        free = block[(block != (64, 96, 255)).any(axis=2)]
        assert (free == free[0]).all()
        assert (free[0, 1] > free[0, 0]) == (max(r.photos for r in coverage.regions if _above(r.treelet, node)) >= 3)


def _above(treelet: str, node: NodeId) -> bool:
    other = NodeId.parse(treelet)
    return (other.x, other.y) == (node.x, node.y)


def test_build_writes_the_map(city: Path, tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city, data)
    report = build(data, str(tmp_path / "scene.zarr"), tiny(), coverage_map=tmp_path / "maps" / "map.png")
    picture = iio.imread(tmp_path / "maps" / "map.png")
    assert picture.shape[2] == 3
    assert len(report.to_json()["regions"]) == len(report.coverage.regions)
