"""The written data set: read back by the real reader, and its tracks against the true geometry."""

import json
from pathlib import Path

import numpy as np
import pytest

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.photos import decode_masked_photo
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.synthetic import capture
from infnerf_tiles.synthetic.capture import CityPhotographer, SyntheticDataset, write_city_dataset
from infnerf_tiles.synthetic.tracks import MIN_TRACK


def write(folder: Path, *, num_photos: int = 20, poses_only: bool = False, exposure: float = 0.03) -> SyntheticDataset:
    return write_city_dataset(
        folder,
        blocks=(2, 2),
        num_photos=num_photos,
        size=(96, 72),
        seed=3,
        supersample=2,
        num_points=600,
        poses_only=poses_only,
        exposure=exposure,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SyntheticDataset:
    return write(tmp_path_factory.mktemp("city"))


def test_the_reader_finds_what_was_written(dataset: SyntheticDataset) -> None:
    photos = read_dataset(dataset.root)
    assert photos.rejected == ()
    assert photos.names == dataset.names
    np.testing.assert_array_equal(photos.is_test, dataset.is_test)
    np.testing.assert_array_equal(np.flatnonzero(dataset.is_test), [0, 8, 16])
    assert {c.model for c in photos.cameras.cameras} == {"SIMPLE_RADIAL", "OPENCV"}
    for i in range(photos.num_photos):
        assert photos.cameras.camera(i) == dataset.cameras.camera(i)
    np.testing.assert_allclose(photos.cameras.camera_to_world, dataset.cameras.camera_to_world, atol=1e-9)
    assert photos.points is not None
    np.testing.assert_array_equal(photos.points.xyz, dataset.points.xyz)
    np.testing.assert_array_equal(photos.points.rgb, dataset.points.rgb)
    np.testing.assert_array_equal(photos.points.error, dataset.points.error)
    np.testing.assert_array_equal(photos.points.track_offsets, dataset.points.track_offsets)
    np.testing.assert_array_equal(photos.points.track_photos, dataset.points.track_photos)


def test_stored_photos_are_the_city_times_the_photo_gain(dataset: SyntheticDataset) -> None:
    photos = read_dataset(dataset.root)
    photographer = CityPhotographer(dataset.city, 2)
    for i in (0, 11):
        stored = decode_masked_photo(photos.photo_file(i)).rgb / 255.0
        clean = photographer.photo(dataset.cameras.camera(i), dataset.cameras.camera_to_world[i])
        error = stored - np.clip(clean * dataset.gains[i], 0.0, 1.0)
        assert np.sqrt(np.mean(error**2)) < 0.02
        assert abs(error.mean()) < 0.002
    assert np.abs(dataset.gains - 1.0).max() < 0.0405
    assert dataset.gains.std() > 0.005


def test_large_photos_are_drawn_in_strips(dataset: SyntheticDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    camera, pose = dataset.cameras.camera(4), dataset.cameras.camera_to_world[4]
    whole = CityPhotographer(dataset.city, 2).photo(camera, pose)
    monkeypatch.setattr(capture, "_STRIP_RAYS", 96 * 4 * 7)  # 7 rows, which do not divide the height
    np.testing.assert_array_equal(CityPhotographer(dataset.city, 2).photo(camera, pose), whole)


def test_tracks_are_exactly_the_photos_that_see_the_point(dataset: SyntheticDataset) -> None:
    points, cameras = dataset.points, dataset.cameras
    assert points.num_points == 600
    assert points.track_lengths.min() >= MIN_TRACK
    seen = np.zeros((points.num_points, cameras.num_photos), dtype=np.bool_)
    seen[np.repeat(np.arange(points.num_points), points.track_lengths), points.track_photos] = True
    hidden = 0
    for photo in range(cameras.num_photos):
        _, depth, inside = cameras.project(photo, dataset.true_xyz)
        centre = cameras.centres[photo]
        t = dataset.city.distance(centre[None], (dataset.true_xyz - centre) / depth[:, None])
        np.testing.assert_array_equal(seen[:, photo], inside & (t > depth - 1e-4))
        np.testing.assert_allclose(t[seen[:, photo]], depth[seen[:, photo]], rtol=0, atol=1e-4)
        hidden += int((inside & ~seen[:, photo]).sum())
    assert hidden > 50  # some photos look at a point from behind a house


def test_points_are_off_by_a_fraction_of_a_pixel(dataset: SyntheticDataset) -> None:
    points, cameras = dataset.points, dataset.cameras
    rows = np.repeat(np.arange(points.num_points), points.track_lengths)
    errors = []
    for photo in range(cameras.num_photos):
        here = rows[points.track_photos == photo]
        true_xy, _, _ = cameras.project(photo, dataset.true_xyz[here])
        xy, _, _ = cameras.project(photo, points.xyz[here])
        errors.append(np.linalg.norm(xy - true_xy, axis=1))
    assert 0.2 < np.concatenate(errors).mean() < 0.6
    # Two independent noises of 0.3 px per axis, the point's and the keypoint's.
    assert 0.4 < points.error.mean() < 0.7


def test_depth_is_the_distance_to_what_the_photo_shows(dataset: SyntheticDataset) -> None:
    photo = 3
    depth = dataset.depth(photo)
    camera = dataset.cameras.camera(photo)
    assert depth.shape == (72, 96)
    assert depth.dtype == np.float32
    xy = np.array([[0.5, 0.5], [95.5, 0.5], [40.5, 60.5]])
    origins, directions = dataset.cameras.rays(photo, xy)
    t, _ = dataset.city.cast(origins, directions)
    np.testing.assert_allclose(depth[xy[:, 1].astype(int), xy[:, 0].astype(int)], t, rtol=1e-6)
    assert camera.width == 96


def test_the_same_arguments_write_the_same_files(dataset: SyntheticDataset, tmp_path: Path) -> None:
    write(tmp_path)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 20 + 3 + 2
    for name in files:
        assert (tmp_path / name).read_bytes() == (dataset.root / name).read_bytes(), name


def test_poses_only_writes_the_same_model_without_photos(dataset: SyntheticDataset, tmp_path: Path) -> None:
    write(tmp_path, poses_only=True)
    assert list((tmp_path / "images").iterdir()) == []
    for name in ("sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin", "split.json"):
        assert (tmp_path / name).read_bytes() == (dataset.root / name).read_bytes()
    assert read_dataset(tmp_path, check_photos=False).num_photos == 20
    assert json.loads((tmp_path / "split.json").read_text())["test"] == [dataset.names[i] for i in (0, 8, 16)]


def test_an_interrupted_write_leaves_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, num_photos=5, poses_only=True)

    def fail(image: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(capture, "_jpeg", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, num_photos=5)
    with pytest.raises(DatasetError):
        read_dataset(tmp_path)


def test_somebody_elses_photos_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "sparse" / "0" / "images.bin").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="choose another folder"):
        write(tmp_path, num_photos=4, poses_only=True)
    assert (tmp_path / "sparse" / "0" / "images.bin").read_bytes() == b"precious"


def test_exposure_zero_gives_equal_gains(tmp_path: Path) -> None:
    dataset = write(tmp_path, num_photos=4, poses_only=True, exposure=0.0)
    np.testing.assert_array_equal(dataset.gains, np.ones((4, 3), dtype=np.float32))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="exposure"):
        write_city_dataset(tmp_path, exposure=0.7)
    with pytest.raises(SettingsError, match="num_points"):
        write_city_dataset(tmp_path, num_points=-1)
    with pytest.raises(SettingsError, match="seed"):
        write_city_dataset(tmp_path, seed=-1)
    with pytest.raises(SettingsError, match="at least 1 photo"):
        write_city_dataset(tmp_path, num_photos=0)
    with pytest.raises(SettingsError, match="blocks"):
        write_city_dataset(tmp_path, blocks=(0, 2))
    assert list(tmp_path.iterdir()) == []
