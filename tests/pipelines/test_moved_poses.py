"""train: it uses the cameras that the scene holds; poses that have become others since build are refused, always."""

from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, some_photos, tiny, write_city

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.store.scene_store import SceneStore

SETTINGS = tiny("training.passes=0.1", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("poses") / "city")


@pytest.fixture(scope="module")
def untrained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scene(city, tmp_path_factory.mktemp("poses") / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def done(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, AnyArray]]:
    scene = copy_scene(untrained, tmp_path_factory.mktemp("poses") / "done.zarr")
    train(scene, threads=1)
    return scene, learned(scene)


def moved(city: Path, folder: Path, shift: float, num_photos: int | None = None) -> str:
    """The data set, or its first photos, with all poses and points moved by `shift` world units."""
    photos = read_dataset(city)
    assert photos.points is not None
    poses = photos.cameras.camera_to_world.copy()
    poses[:, 0, 3] += shift
    rows = np.arange(num_photos or photos.num_photos)
    return str(some_photos(photos, rows, folder, poses=poses, xyz=photos.points.xyz + np.array([shift, 0.0, 0.0])))


def gsd_finest(scene: str) -> float:
    with SceneStore.open(scene) as store:
        return store.header.root.edge / store.header.cells / 2.0**store.header.max_level


@pytest.mark.parametrize("accept_changes", [False, True])
@pytest.mark.parametrize("progress", ["untrained", "seeded", "done"])
def test_poses_that_moved_are_refused_whatever_is_trained(
    accept_changes: bool, progress: str, untrained: str, done: tuple[str, dict[str, AnyArray]], city: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    scene = copy_scene(done[0] if progress == "done" else untrained, tmp_path / "scene.zarr")
    if progress == "seeded":
        train(scene, threads=1, stop=lambda: True)
    before = learned(scene)
    other = moved(city, tmp_path / "moved", 3.0 * gsd_finest(scene))
    with pytest.raises(DatasetError, match=r"9 of 9 moved: .*a scene keeps the poses"):
        train(scene, data=other, accept_changes=accept_changes, threads=1)
    assert differences(before, learned(scene)) == []
    assert train(scene, data=str(city), threads=1).remaining == 0


def test_poses_within_a_pixel_change_nothing(
    untrained: str, done: tuple[str, dict[str, AnyArray]], city: Path, tmp_path: Path
) -> None:
    """Neither what is learned nor whether a training may go on: the scene's own cameras count."""
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    near = moved(city, tmp_path / "moved", 0.3 * gsd_finest(scene))
    assert train(done[0], data=near, threads=1).treelets == 0
    with SceneStore.open(scene) as store:
        cameras = store.read_cameras()
    train(scene, data=near, threads=1)
    with SceneStore.open(scene) as store:
        now = store.read_cameras()
    assert np.array_equal(now.cameras.camera_to_world, cameras.cameras.camera_to_world)
    assert train(scene, data=str(city), threads=1).treelets == 0


def test_poses_do_not_drift_from_addition_to_addition(city: Path, tmp_path: Path) -> None:
    """The scene's own cameras stay, so that what may differ counts from them and not from what came last."""
    scene = build_scene(Path(moved(city, tmp_path / "first", 0.0, 6)), tmp_path / "scene.zarr", SETTINGS)
    pixel = gsd_finest(scene)
    with SceneStore.open(scene) as store:
        first = store.read_cameras()
    add_photos(Path(moved(city, tmp_path / "second", 0.6 * pixel, 7)), scene)
    with SceneStore.open(scene) as store:
        second = store.read_cameras()
    assert np.array_equal(second.cameras.camera_to_world[:6], first.cameras.camera_to_world)
    assert [second.cameras.camera(i) for i in range(6)] == [first.cameras.camera(i) for i in range(6)]
    new = read_dataset(city).cameras.centres[6] + np.array([0.6 * pixel, 0.0, 0.0])
    assert np.allclose(second.cameras.centres[6], new, atol=1e-9)
    with pytest.raises(DatasetError, match="6 of 7 moved"):
        add_photos(Path(moved(city, tmp_path / "third", 1.2 * pixel, 8)), scene)
    add_photos(Path(moved(city, tmp_path / "fourth", 0.6 * pixel, 8)), scene)
    train(scene, threads=1, stop=lambda: True)
