"""train: a photo that was changed in place is found out, and what saw it is trained again if that is accepted."""

import os
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, tiny

from infnerf_tiles.data import marks
from infnerf_tiles.errors import DataError, DatasetError, PhotoError
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify
from infnerf_tiles.synthetic.capture import write_city_dataset

SETTINGS = tiny("training.passes=0.3", "octree.treelet_height=1", "octree.max_level=2", "octree.min_points=30")
EDITED = "photo_0001.jpg"
"""A training photo of one end of the city."""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed") / "city"
    write_city_dataset(folder, blocks=(3, 1), num_photos=16, size=(64, 48), supersample=1, num_points=1500)
    return folder


@pytest.fixture(scope="module")
def untrained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scene(city, tmp_path_factory.mktemp("changed") / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def trained(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = copy_scene(untrained, tmp_path_factory.mktemp("changed") / "trained.zarr")
    assert train(scene, threads=1).remaining == 0
    return scene


def edit(path: Path, *, keep_time: bool) -> None:
    """Another picture in a file of the same size, as an export over the old one may leave it."""
    before, old = path.stat(), iio.imread(path)
    for quality in range(60, 5, -5):
        iio.imwrite(path, 255 - old[:, ::-1], quality=quality)
        if path.stat().st_size <= before.st_size:
            break
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * (before.st_size - len(data)))
    assert path.stat().st_size == before.st_size
    stamp = before.st_mtime_ns + (0 if keep_time else 10**9)
    os.utime(path, ns=(stamp, stamp))


@pytest.fixture
def copied(city: Path, tmp_path: Path) -> Path:
    data = tmp_path / "city"
    shutil.copytree(city, data)  # with the files' times
    return data


def test_a_photo_of_another_time_is_found_out_before_anything_is_trained(
    untrained: str, copied: Path, tmp_path: Path
) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    edit(copied / "images" / EDITED, keep_time=False)
    with pytest.raises(
        DatasetError, match=rf"1 have changed: {EDITED} \(other contents in [\d,]+ bytes\).*--accept-ch"
    ):
        train(scene, data=str(copied), threads=1)
    with SceneStore.open(scene) as store:
        assert not store.has_small("decoder")


def test_a_photo_of_the_same_size_and_time_is_found_out_when_it_is_decoded(
    untrained: str, copied: Path, tmp_path: Path
) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    edit(copied / "images" / EDITED, keep_time=True)
    with pytest.raises(PhotoError, match=rf"{EDITED}: expected the photo as it was .*--accept-changes"):
        train(scene, data=str(copied), threads=1)
    train(scene, data=str(copied), accept_changes=True, threads=1, stop=lambda: True)
    train(scene, data=str(copied), threads=1, stop=lambda: True)  # accepted once, for good
    with SceneStore.open(scene) as store:
        assert store.has_small("decoder")
        assert not verify(store).damage


def test_a_mask_that_came_or_changed_is_found_out(untrained: str, copied: Path, tmp_path: Path) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    (copied / "masks").mkdir()
    mask = np.full((48, 64), 255, np.uint8)
    mask[:, :20] = 0
    iio.imwrite(copied / "masks" / f"{EDITED}.png", mask)
    with pytest.raises(DatasetError, match=rf"1 have changed: {EDITED} \([\d,]+ bytes then, [\d,]+ now\).*--accept-ch"):
        train(scene, data=str(copied), threads=1)
    train(scene, data=str(copied), accept_changes=True, threads=1, stop=lambda: True)
    stamp = (copied / "masks" / f"{EDITED}.png").stat().st_mtime_ns
    iio.imwrite(copied / "masks" / f"{EDITED}.png", mask[:, ::-1])
    os.utime(copied / "masks" / f"{EDITED}.png", ns=(stamp + 10**9, stamp + 10**9))
    with pytest.raises(DatasetError, match=rf"1 have changed: {EDITED}"):
        train(scene, data=str(copied), threads=1)


@pytest.mark.parametrize("keep_time", [False, True])
def test_what_saw_the_photo_is_trained_again_and_nothing_else(
    trained: str, copied: Path, keep_time: bool, tmp_path: Path
) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    before = learned(scene)
    edit(copied / "images" / EDITED, keep_time=keep_time)
    if not keep_time:
        with pytest.raises(DataError, match=EDITED):
            train(scene, data=str(copied), threads=1)
        assert differences(before, learned(scene)) == []
    summary = train(scene, data=str(copied), accept_changes=True, threads=1)
    again = {r.treelet for r in summary.reports}
    assert "L0/0-0-0" in again
    assert summary.skipped > 0
    assert summary.remaining == 0
    after = learned(scene)
    rows = [name for name in differences(before, after) if name.startswith("L")]
    assert rows
    assert {name.split()[0] for name in rows} <= again | {n.split()[0] for n in after.keys() - before.keys()}
    assert not any(name.startswith("decoder") for name in differences(before, after))
    assert train(scene, data=str(copied), threads=1).treelets == 0


def test_a_changed_photo_that_is_held_out_costs_nothing(trained: str, copied: Path, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    with SceneStore.open(scene) as store:
        stored = store.read_cameras()
    edit(copied / "images" / stored.names[int(np.flatnonzero(stored.is_test)[0])], keep_time=False)
    assert train(scene, data=str(copied), accept_changes=True, threads=1).treelets == 0
    assert train(scene, data=str(copied), threads=1).treelets == 0


def test_a_copied_collection_is_read_once(
    trained: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    for path in (copied / "images").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    read = []
    digest = marks.file_digest
    monkeypatch.setattr(marks, "file_digest", lambda path: read.append(path) or digest(path))  # type: ignore[func-returns-value]
    assert train(scene, data=str(copied), threads=1).treelets == 0
    assert len(read) == 16
    assert train(scene, data=str(copied), threads=1).treelets == 0
    assert len(read) == 16
