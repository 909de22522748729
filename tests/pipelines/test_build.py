"""build: bounds, rejected photos, refusals, what may be overwritten."""

import json
import shutil
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, tiny, without_points, write_city

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import BudgetError, DatasetError, SettingsError, StoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context, in_scene_order, scene_photos
from infnerf_tiles.training.inputs import scene_inputs, scene_settings
from infnerf_tiles.training.tasks import inputs_fingerprint


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("build") / "city")


def test_a_scene_holds_what_was_found(city: Path, tmp_path: Path) -> None:
    report = build(city, str(tmp_path / "scene.zarr"), tiny())
    photos = read_dataset(city)
    assert report.photos == photos.num_photos == 9
    assert report.test_photos == int(photos.is_test.sum()) > 0
    assert report.rejected == ()
    assert photos.points is not None
    assert report.points == photos.points.num_points
    assert report.pixels == (9 - report.test_photos) * 64 * 48
    assert report.max_level == 2
    assert len(report.nodes_per_level) == 3
    assert report.nodes_per_level[0] == 1
    assert report.band_levels == (0, 1)
    assert report.treelets_per_band == (1, report.nodes_per_level[1])
    assert len(report.coverage.regions) == report.treelets_per_band[1]
    json.dumps(report.to_json(), allow_nan=False)
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        index = store.read_index()
        assert index.num_nodes == sum(report.nodes_per_level)
        assert (index.states == 0).all()
        cameras, names, is_test = store.read_cameras()
        assert names == photos.names
        assert np.array_equal(is_test, photos.is_test)
        assert np.array_equal(cameras.camera_to_world, photos.cameras.camera_to_world)
        assert scene_settings(store.header) == tiny()
        assert Path(scene_inputs(store.header).dataset) == city.resolve()


def test_reduced_photos_and_masks_are_those_of_the_scene(city: Path, tmp_path: Path) -> None:
    """A task, which opens no photo, has the cameras that build fitted to the photos' sizes."""
    data = tmp_path / "city"
    shutil.copytree(city, data)
    files = sorted((data / "images").iterdir())
    for file in files[1:6]:
        iio.imwrite(file, iio.imread(file)[::2, ::2])
    (data / "masks").mkdir()
    for file in files[:3]:
        height, width = iio.imread(file).shape[:2]
        iio.imwrite(data / "masks" / f"{file.name}.png", np.full((height, width), 255, np.uint8))
    report = build(data, str(tmp_path / "scene.zarr"), tiny())
    assert (report.photos, report.masked_photos) == (9, 3)
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        stored = store.read_cameras()
        checked = in_scene_order(read_dataset(data), stored, store.read_files())
        task = scene_photos(store, tiny(), data)
        names = [file.name for file in files]
        assert stored.names == tuple(names)
        assert [stored.cameras.camera(i).width for i in range(9)] == [64] + [32] * 5 + [64] * 3
        for photos in (checked, task):
            assert [photos.cameras.camera(i) for i in range(9)] == [stored.cameras.camera(i) for i in range(9)]
        fingerprints = {inputs_fingerprint(Context(store, photos, tiny())) for photos in (checked, task)}
        assert len(fingerprints) == 1


def test_the_root_cube_holds_cameras_and_points(city: Path, tmp_path: Path) -> None:
    report = build(city, str(tmp_path / "scene.zarr"), tiny())
    photos = read_dataset(city)
    assert photos.points is not None
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        root = store.header.root
    assert report.root_edge == root.edge
    unit = root.to_unit(photos.points.xyz)
    inside = ((unit >= 0) & (unit < 1)).all(axis=1)
    assert inside.mean() > 0.9
    assert report.points_outside == int((~inside).sum())


def test_given_bounds_are_used_and_everything_outside_is_counted(city: Path, tmp_path: Path) -> None:
    report = build(city, str(tmp_path / "scene.zarr"), tiny(), bounds=(-10.0, -5.0, 0.0, 10.0, 5.0, 10.0))
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        assert store.header.root.edge == 20.0
        assert store.header.root.origin == (-10.0, -10.0, -5.0)
    points = read_dataset(city).points
    assert points is not None
    inside = ((points.xyz >= [-10, -10, -5]) & (points.xyz < [10, 10, 15])).all(axis=1)
    assert report.points_outside == int((~inside).sum())


@pytest.mark.parametrize(
    "bounds",
    [(0, 0, 0, 1, 1, -1), (0, 0, 0, 1, 0, 1), (0, 0, 0, 1, float("nan"), 1), (0, 0, 0, 1, float("inf"), 1), (0, 0, 1)],
)
def test_bounds_that_hold_nothing_are_refused(city: Path, tmp_path: Path, bounds: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match="--bounds"):
        build(city, str(tmp_path / "scene.zarr"), tiny(), bounds=bounds)
    assert not (tmp_path / "scene.zarr").exists()


@pytest.mark.parametrize("with_pyproj", [False, True])
def test_a_reference_system_that_is_none_is_refused_before_anything_is_made(
    city: Path, tmp_path: Path, with_pyproj: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_pyproj:
        pytest.importorskip("pyproj")
    else:
        monkeypatch.setitem(sys.modules, "pyproj", None)
    scene = str(tmp_path / "scene.zarr")
    with pytest.raises(SettingsError, match="--crs gauss: expected a coordinate reference system"):
        build(city, scene, tiny(), crs="gauss")
    data = tmp_path / "city"
    shutil.copytree(city, data)
    (data / "geo.json").write_text(json.dumps({"crs": "gauss", "origin": [0, 0, 0]}))
    with pytest.raises(DatasetError, match=r"geo\.json: crs: .*'gauss'.*--crs"):
        build(data, scene, tiny())
    assert not Path(scene).exists()
    build(data, scene, tiny("octree.max_level=1"), crs="EPSG:2178")


NOWHERE = [(900.0, 900.0, 900.0, 910.0, 910.0, 910.0), (0.0, 0.0, -600.0, 10.0, 10.0, -590.0)]
"""Beside everything; deep below the ground, into which photos look that show the ground."""


@pytest.mark.parametrize("bounds", NOWHERE)
def test_bounds_without_anything_that_photos_show_are_refused(
    city: Path, tmp_path: Path, bounds: tuple[float, ...]
) -> None:
    points = read_dataset(city).points
    assert points is not None
    low = np.percentile(points.xyz, 1, axis=0)
    with pytest.raises(SettingsError, match=f"--bounds {bounds[0]:g},") as error:
        build(city, str(tmp_path / "scene.zarr"), tiny(), bounds=bounds)
    reach = str(error.value).partition("reach from ")[2].partition(" to ")[0]
    assert np.allclose([float(text) for text in reach.split(",")], low, atol=5.0)
    assert not (tmp_path / "scene.zarr").exists()


def test_without_points_bounds_are_held_against_the_views(city: Path, tmp_path: Path) -> None:
    data = without_points(city, tmp_path / "bare")
    with pytest.raises(SettingsError, match=r"none looks into it.*look at about"):
        build(data, str(tmp_path / "scene.zarr"), tiny(), bounds=NOWHERE[0])
    for low, high in ((-40.0, 40.0), (-0.1, 0.1), (-5000.0, 5000.0)):  # between the rays, and around all cameras
        bounds = (low, low, low, high, high, high)
        build(data, str(tmp_path / "scene.zarr"), tiny("octree.max_level=1"), bounds=bounds, overwrite=True)


def test_the_crs_is_kept(city: Path, tmp_path: Path) -> None:
    scene = build_scene(city, tmp_path / "scene.zarr", crs="EPSG:2178")
    with SceneStore.open(scene) as store:
        assert store.header.georeference is not None
        assert store.header.georeference["crs"] == "EPSG:2178"
    with SceneStore.open(build_scene(city, tmp_path / "plain.zarr")) as store:
        assert store.header.georeference is None


def test_every_rejected_photo_is_reported_with_its_reason(city: Path, tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city, data)
    photos = read_dataset(data)
    train_rows = np.flatnonzero(~photos.is_test)
    gone, broken = (photos.paths[int(i)] for i in train_rows[:2])
    gone.unlink()
    broken.write_bytes(b"no photo")
    report = build(data, str(tmp_path / "scene.zarr"), tiny())
    assert report.photos == 7
    reasons = dict(report.rejected)
    assert set(reasons) == {gone.name, broken.name}
    assert all(reasons.values())
    assert reasons[gone.name] != reasons[broken.name]


def test_no_photo_left_is_an_error(city: Path, tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city, data)
    for path in read_dataset(data).paths:
        path.unlink()
    with pytest.raises(DatasetError, match="0 of 9"):
        build(data, str(tmp_path / "scene.zarr"), tiny())
    assert not (tmp_path / "scene.zarr").exists()


def test_only_test_photos_are_refused(city: Path, tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city, data)
    (data / "split.json").write_text(json.dumps({"test": list(read_dataset(city).names)}))
    with pytest.raises((SettingsError, DatasetError), match="train"):
        build(data, str(tmp_path / "scene.zarr"), tiny())
    assert not (tmp_path / "scene.zarr").exists()


def test_too_many_nodes_are_refused_before_anything_is_written(city: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="max_nodes = 3") as caught:
        build(city, str(tmp_path / "scene.zarr"), tiny("octree.max_nodes=3"))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "scene.zarr").exists()


def test_a_scene_is_only_overwritten_when_asked(city: Path, tmp_path: Path) -> None:
    place = tmp_path / "scene.zarr"
    build_scene(city, place)
    with pytest.raises(StoreError, match="--overwrite"):
        build_scene(city, place)
    build_scene(city, place, tiny("octree.max_level=1"), overwrite=True)
    with SceneStore.open(str(place)) as store:
        assert store.header.max_level == 1


def test_a_refused_build_leaves_the_old_scene_alone(city: Path, tmp_path: Path) -> None:
    place = tmp_path / "scene.zarr"
    build_scene(city, place)
    with pytest.raises(BudgetError):
        build_scene(city, place, tiny("octree.max_nodes=3"), overwrite=True)
    with SceneStore.open(str(place)) as store:
        assert store.read_index().num_nodes > 3


@pytest.mark.parametrize("document", [None, "{}", '{"zarr_format": 3, "node_type": "group"}'])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_scene_is_never_deleted(city: Path, tmp_path: Path, overwrite: bool, document: str | None) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    if document is not None:
        (place / "zarr.json").write_text(document)
    with pytest.raises(StoreError):
        build_scene(city, place, overwrite=overwrite)
    assert (place / "thesis.tex").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError):
        build_scene(city, file, overwrite=overwrite)
    assert file.read_text() == "x"


def test_an_empty_folder_is_a_place_for_a_scene(city: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with SceneStore.open(build_scene(city, tmp_path / "empty")) as store:
        assert store.read_index().num_nodes > 1


def test_photos_without_points_build_and_grow(city: Path, tmp_path: Path) -> None:
    data = without_points(city, tmp_path / "plain")
    settings = tiny(
        "octree.reach=2.0", "octree.min_points=2", "data.test_every=0", "training.passes=1.0", "training.lr=3e-2"
    )
    report = build(data, str(tmp_path / "scene.zarr"), settings)
    assert report.points == 0
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        planned = set(store.read_index().keys.tolist())
    summary = train(str(tmp_path / "scene.zarr"), threads=1)
    assert summary.failed == ()
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        index = store.read_index()
        trained = index.keys[index.states == 1]
        grown = set(index.keys.tolist()) - planned
        assert (index.treelet_states == 1).all()
    assert {NodeId.from_key(k).level for k in grown} <= {1, 2}
    assert len(trained) > 1
    with Scene.open(str(tmp_path / "scene.zarr")) as scene:
        assert scene.octree.num_nodes == len(trained)
