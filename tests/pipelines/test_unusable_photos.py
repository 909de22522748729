"""A photo whose contents cannot be decoded costs that photo; the rest trains, to the same bits however it is run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import TrainSummary, train
from infnerf_tiles.pipelines.unusable import UnusablePhotos
from training.small_scenes import build_scene, copy_scene, differences, learned, tiny, write_city

from infnerf_tiles.data.codecs import check_photo, decode_photo
from infnerf_tiles.errors import DamagedPhotoError, DatasetError, PhotoError
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.store.journal import read_all
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import pixel_store

SETTINGS = tiny("training.passes=0.2", "octree.treelet_height=1", "octree.max_level=1", "octree.min_points=60")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    set_threads(None)


def break_photo(path: Path) -> None:
    """Spoil a JPEG in the middle: header and end are as they should be."""
    whole = path.read_bytes()
    for at in range(len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:at] + b"\xff\xc4\x00\x00" + whole[at + 4 :])
        check_photo(path)
        try:
            decode_photo(path)
        except DamagedPhotoError:
            return
    raise AssertionError("the photo withstood")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data set of which one training photo cannot be decoded, and its name."""
    data = write_city(tmp_path_factory.mktemp("unusable") / "city", num_photos=12)
    name = sorted(p.name for p in (data / "images").iterdir())[3]
    break_photo(data / "images" / name)
    return data, name


@pytest.fixture(scope="module")
def done(city: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrainSummary, str]:
    """The scene, what its training said, and the scene as it was built."""
    folder = tmp_path_factory.mktemp("unusable")
    built = build_scene(city[0], folder / "built.zarr", SETTINGS)
    scene = copy_scene(built, folder / "scene.zarr")
    return scene, train(scene, threads=1), built


def test_the_rest_trains_and_the_photo_is_named(done: tuple[str, TrainSummary, str], city: tuple[Path, str]) -> None:
    scene, summary, _ = done
    assert summary.remaining == 0
    assert summary.failed == ()
    (photo,) = summary.unusable
    assert photo.name == city[1]
    assert "damaged or truncated" in photo.reason
    assert json.loads(json.dumps(summary.to_json()))["unusable"] == [{"photo": photo.name, "reason": photo.reason}]
    with SceneStore.open(scene) as store:
        row, appearance = store.read_cameras().names.index(photo.name), store.read_small("appearance")
        assert not appearance["known"][row]
        assert np.array_equal(appearance["affine"][row], np.eye(3, 4, dtype=np.float32))
        assert appearance["known"].sum() == len(appearance["known"]) - 1 - store.read_cameras().is_test.sum()
        assert max(r.facts["pixels"] for r in read_all(store)) <= 64 * 48 * int(appearance["known"].sum())
    assert train(scene, threads=1).treelets == 0


def test_the_order_of_tasks_and_stops_change_nothing(
    done: tuple[str, TrainSummary, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(done[2], tmp_path / "scene.zarr")
    monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 1)  # a task for each photo
    calls = iter([False] * 3)
    train(scene, threads=1, stop=lambda: next(calls, True))
    assert train(scene, threads=1).unusable == done[1].unusable
    assert differences(learned(scene), learned(done[0])) == []


def test_a_photo_that_is_gone_is_still_an_error(
    done: tuple[str, TrainSummary, str], city: tuple[Path, str], tmp_path: Path
) -> None:
    data = tmp_path / "city"
    shutil.copytree(city[0], data)
    scene = copy_scene(done[2], tmp_path / "scene.zarr")

    def stop() -> bool:
        """Asked before the first band, when the photos are known to be there."""
        for path in (data / "images").iterdir():
            path.unlink()
        return False

    with pytest.raises(PhotoError, match="readable photo or mask") as caught:
        train(scene, data=str(data), threads=1, stop=stop)
    assert not isinstance(caught.value, DamagedPhotoError)


def test_too_many_are_an_error_with_the_count(city: tuple[Path, str], tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city[0], data)
    broken = sorted((data / "images").iterdir())[5]
    break_photo(broken)
    scene = build_scene(data, tmp_path / "scene.zarr", SETTINGS)
    with pytest.raises(PhotoError, match=rf"at most 5% of the 10 .*, got 2 so far: .*{city[1]}.*{broken.name}"):
        train(scene, threads=1)
    for path in (data / "images").iterdir():
        if path not in (broken, data / "images" / city[1]):
            break_photo(path)
    scene = build_scene(data, tmp_path / "none.zarr", SETTINGS)
    with pytest.raises(PhotoError, match="got none among the 10 of the seed stage"):
        train(scene, threads=1)


def test_the_share_counts_each_photo_once(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{k}.jpg" for k in range(100)]
    found = UnusablePhotos(names, 80)
    for _ in range(3):
        found.add({7: "7.jpg: bad", 5: "5.jpg: bad"})
    found.add({})
    found.add({8: "8.jpg: bad", 9: "9.jpg: bad"})
    assert [photo.name for photo in found.listed()] == ["5.jpg", "7.jpg", "8.jpg", "9.jpg"]
    assert len(caplog.records) == 4
    with pytest.raises(PhotoError, match=r"5% of the 80 training photos .* got 5 so far: 5\.jpg: bad; 7\.jpg"):
        found.add({10: "10.jpg: bad"})
    with pytest.raises(PhotoError, match="got 1 so far"):
        UnusablePhotos(names, 1).add({0: "0.jpg: bad"})


def test_a_held_out_photo_is_not_scored(done: tuple[str, TrainSummary, str], tmp_path: Path) -> None:
    with SceneStore.open(done[0]) as store:
        stored = store.read_cameras()
    data = tmp_path / "city"
    shutil.copytree(write_city(tmp_path / "whole", num_photos=12), data)
    held = [stored.names[k] for k in np.flatnonzero(stored.is_test).tolist()]
    assert len(held) > 1
    break_photo(data / "images" / held[0])
    report = evaluate(done[0], data=str(data), threads=1)
    assert report.images == len(held) - 1
    assert [photo.name for photo in report.unusable] == held[:1]
    assert report.to_json()["unusable"][0]["photo"] == held[0]
    assert [photo.name for photo in report.photos] == held[1:]
    for name in held[1:]:
        break_photo(data / "images" / name)
    with pytest.raises(DatasetError, match=rf"got {len(held)} that cannot be decoded"):
        evaluate(done[0], data=str(data), threads=1)
