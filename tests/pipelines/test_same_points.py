"""train: sparse points that changed since build are found out, though all poses are what they were."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.same_points import check_points, point_facts
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, some_photos, tiny, write_city

from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.records import Points
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.inputs import scene_inputs

SETTINGS = tiny("training.passes=0.1", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PosedPhotos:
    return read_dataset(write_city(tmp_path_factory.mktemp("points") / "city"))


@pytest.fixture(scope="module")
def untrained(photos: PosedPhotos, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scene(photos.root, tmp_path_factory.mktemp("points") / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def trained(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = copy_scene(untrained, tmp_path_factory.mktemp("points") / "trained.zarr")
    train(scene, threads=1)
    return scene


def with_points(photos: PosedPhotos, folder: Path, points: Points, *, text: bool = False) -> str:
    """The same photos and poses."""
    shutil.copytree(photos.root / "images", folder / "images")
    model = folder / "sparse" / "0"
    write_colmap(model, names=photos.names, cameras=photos.cameras, points=points, text=text)
    if (photos.root / "split.json").exists():
        shutil.copy(photos.root / "split.json", folder)
    return str(folder)


def points_of(photos: PosedPhotos) -> Points:
    assert photos.points is not None
    return photos.points


def fewer(points: Points) -> Points:
    keep = slice(0, points.num_points - 5)
    offsets = points.track_offsets[: points.num_points - 4]
    return Points(
        xyz=points.xyz[keep], rgb=points.rgb[keep], error=points.error[keep], track_offsets=offsets,
        track_photos=points.track_photos[: offsets[-1]],
    )  # fmt: skip


def shifted(points: Points) -> Points:
    return replace(points, xyz=points.xyz + np.array([0.0, 0.0, 9.0]))


def none_left(points: Points) -> Points:
    empty = np.empty((0, 3))
    return Points(
        xyz=empty, rgb=empty.astype(np.uint8), error=np.empty(0, np.float32), track_offsets=np.zeros(1, np.int64),
        track_photos=np.empty(0, np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("state", ["untrained", "trained"])
@pytest.mark.parametrize(
    ("change", "says"),
    [(fewer, "got 595 with"), (shifted, "middle has moved by 9 "), (none_left, "got none")],
)
def test_points_that_changed_are_refused_or_accepted(
    state: str, change: Callable[[Points], Points], says: str, photos: PosedPhotos, untrained: str, trained: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    scene = copy_scene(trained if state == "trained" else untrained, tmp_path / "scene.zarr")
    before = learned(scene)
    data = with_points(photos, tmp_path / "data", change(points_of(photos)))
    with pytest.raises(DatasetError, match=f"the 600 sparse points.*{says}.*--accept-changes"):
        train(scene, data=data, threads=1)
    assert differences(learned(scene), before) == []
    train(scene, data=data, threads=1, accept_changes=True, stop=lambda: True)
    if state == "trained":
        assert differences(learned(scene), before) == []
    train(scene, data=data, threads=1, stop=lambda: True)  # accepted once and for all


def test_the_same_points_as_text_are_the_same(photos: PosedPhotos, untrained: str, tmp_path: Path) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    data = with_points(photos, tmp_path / "data", points_of(photos), text=True)
    train(scene, data=data, threads=1, stop=lambda: True)


def test_an_addition_brings_its_points(photos: PosedPhotos, tmp_path: Path) -> None:
    scene = build_scene(some_photos(photos, np.arange(7), tmp_path / "few"), tmp_path / "scene.zarr", SETTINGS)
    add_photos(photos.root, scene)
    with SceneStore.open(scene) as store:
        assert scene_inputs(store.header).points == point_facts(read_dataset(photos.root))
        header = store.header
    add_photos(photos.root, scene)
    with SceneStore.open(scene) as store:
        assert store.header == header
    train(scene, threads=1, stop=lambda: True)


def test_rounding_is_no_change(photos: PosedPhotos) -> None:
    then = point_facts(photos)
    near = replace(photos, points=replace(points_of(photos), xyz=points_of(photos).xyz + 1e-6))
    check_points(photos, then, point_facts(near), gsd_finest=0.1)
    with pytest.raises(DatasetError):
        check_points(photos, then, point_facts(near), gsd_finest=1e-7)
