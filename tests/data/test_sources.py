"""Which of a folder's pose files are read, and what is said of folders without any."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_files import HEIGHT, PINHOLE, WIDTH, Capture, opengl_matrix, write_capture, write_json, write_png

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import DatasetError

Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
TURNED = np.array([[0.0, 2, 0, 5], [-2, 0, 0, 6], [0, 0, 2, 7]])


def moved(pose: Any, transform: Any) -> Any:
    """A pose float64[3, 4] in a world that was transformed; its rotation takes no scale."""
    turn = transform[:, :3] / np.cbrt(np.linalg.det(transform[:, :3]))
    return np.concatenate([turn @ pose[:, :3], transform[:, :3] @ pose[:, 3:] + transform[:, 3:]], axis=1)


def nerfstudio(folder: Path, *, transform: Any = Z_UP, shift: float = 0.0, **content: Any) -> Capture:
    """What ns-process-data writes: transforms.json, images, and the model that it was made from in colmap/sparse/0."""
    capture = write_capture(folder, cameras=(PINHOLE,))
    (folder / "colmap").mkdir()
    (folder / "sparse").rename(folder / "colmap/sparse")
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": opengl_matrix(moved(pose, transform))}
        for name, pose in zip(capture.names, capture.cameras.camera_to_world, strict=True)
    ]
    frames[0]["transform_matrix"][0][3] += shift
    for frame in frames[:2]:
        frame["mask_path"] = "masks/all.png"
    write_png(folder / "masks/all.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    keys: dict[str, Any] = {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "applied_transform": transform.tolist()}
    write_json(folder / "transforms.json", {**keys, "frames": frames, **content})
    return capture


@pytest.mark.parametrize("transform", [Z_UP, np.eye(3, 4), TURNED])
def test_transforms_of_nerfstudio_win_and_take_the_tracks_of_its_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transform: Any
) -> None:
    capture = nerfstudio(tmp_path, transform=transform, test_filenames=["images/photo_03.jpg"])
    with caplog.at_level(logging.INFO):
        photos = read_dataset(tmp_path)
    assert photos.names == tuple(f"images/{name}" for name in capture.names)
    assert np.flatnonzero(photos.is_test).tolist() == [3]
    assert photos.points is not None
    np.testing.assert_allclose(photos.points.xyz, capture.points.xyz @ transform[:, :3].T + transform[:, 3], atol=1e-12)
    np.testing.assert_array_equal(photos.points.track_offsets, capture.points.track_offsets)
    np.testing.assert_array_equal(photos.points.track_photos, capture.points.track_photos)
    xy, _, _ = photos.cameras.project(2, photos.points.xyz)
    np.testing.assert_allclose(xy, capture.cameras.project(2, capture.points.xyz)[0], atol=1e-9)
    assert "the 6 frames of this file are read, not the 6 photos of the COLMAP model" in caplog.text


def test_masks_of_nerfstudio_are_kept(tmp_path: Path) -> None:
    nerfstudio(tmp_path)
    assert sum(path is not None for path in read_dataset(tmp_path).mask_paths) == 2


def test_a_turn_that_was_not_written_down_is_found(tmp_path: Path) -> None:
    nerfstudio(tmp_path, applied_transform=None)
    points = read_dataset(tmp_path).points
    assert points is not None
    assert len(points.track_photos)


def test_tracks_of_a_model_with_other_poses_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nerfstudio(tmp_path, shift=0.1)
    assert read_dataset(tmp_path).points is None
    assert "nothing of it is taken: its poses differ from the file's (by 0.02" in caplog.text


def test_tracks_of_a_model_with_other_names_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nerfstudio(tmp_path)
    shutil.rmtree(tmp_path / "colmap")
    write_capture(tmp_path / "colmap", names=[f"x{i}.jpg" for i in range(6)], cameras=(PINHOLE,))
    assert read_dataset(tmp_path).points is None
    assert "only 0 of the 6 photos have a name" in caplog.text


def test_photos_of_the_model_that_the_file_leaves_out_leave_the_tracks(tmp_path: Path) -> None:
    capture = nerfstudio(tmp_path)
    frames = [
        {"file_path": f"./images/{n}", "transform_matrix": opengl_matrix(moved(p, Z_UP))}
        for n, p in zip(capture.names, capture.cameras.camera_to_world, strict=True)
    ][:4]
    write_json(tmp_path / "transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames[::-1]})
    points = read_dataset(tmp_path).points
    assert points is not None
    for i in range(points.num_points):
        then = capture.points.track_photos[slice(*capture.points.track_offsets[i : i + 2])]
        now = points.track_photos[slice(*points.track_offsets[i : i + 2])]
        assert now.tolist() == [photo for photo in then if photo < 4]


def test_a_model_of_ones_own_wins_and_the_other_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nerfstudio(tmp_path)
    (tmp_path / "colmap/sparse").rename(tmp_path / "sparse")
    assert read_dataset(tmp_path).names[0] == "photo_00.jpg"
    assert "(6 photos) is read, not transforms.json beside it (6 frames, 2 with masks)" in caplog.text
    by_file = read_dataset(tmp_path / "transforms.json")
    assert by_file.names[0] == "images/photo_00.jpg"
    assert by_file.root == tmp_path
    (tmp_path / "transforms.json").write_text("{")
    assert read_dataset(tmp_path).num_photos == 6


def test_of_transforms_and_blender_files_the_one_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    capture = nerfstudio(tmp_path)
    shutil.rmtree(tmp_path / "colmap")
    frame = {"file_path": f"images/{capture.names[0]}", "transform_matrix": np.eye(4).tolist()}
    write_json(tmp_path / "transforms_train.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": [frame]})
    assert read_dataset(tmp_path).num_photos == 6
    assert "transforms.json is read, not transforms_train.json beside it" in caplog.text
    assert read_dataset(tmp_path / "transforms_train.json").num_photos == 1


@pytest.mark.parametrize("given", ["sparse", "sparse/1", "sparse/1/cameras.bin", ""])
def test_a_model_may_be_given_by_its_own_folder_or_file(tmp_path: Path, given: str) -> None:
    write_capture(tmp_path)
    (tmp_path / "sparse/0").rename(tmp_path / "sparse/1")
    write_json(tmp_path / "split.json", {"test": ["photo_03.jpg"]})
    photos = read_dataset(tmp_path / given)
    assert photos.root == tmp_path
    assert np.flatnonzero(photos.is_test).tolist() == [3]
    assert photos.paths[0] == tmp_path / "images/photo_00.jpg"


@pytest.mark.parametrize(
    ("place", "given", "there"),
    [
        ("data", "data/images", "data"),
        ("data", "data/images/deeper", "data"),
        ("above/data", "above", "above/data"),
        ("data/dense/0", "data", "data/dense/0"),
        ("data/distorted", "data", "data/distorted"),
    ],
)
def test_poses_nearby_are_named(tmp_path: Path, place: str, given: str, there: str) -> None:
    write_capture(tmp_path / place)
    (tmp_path / given).mkdir(exist_ok=True)
    with pytest.raises(DatasetError, match=rf"got none of them; there are poses in .*{there}: give that folder"):
        read_dataset(tmp_path / given)


def test_a_file_that_holds_no_poses_is_refused(tmp_path: Path) -> None:
    write_capture(tmp_path)
    with pytest.raises(DatasetError, match=r"photo_00\.jpg: expected a folder .*got another file; there are poses in"):
        read_dataset(tmp_path / "images/photo_00.jpg")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("reconstruction.json", "[]", "OpenSfM.*export_colmap"),
        ("opensfm/reconstruction.json", "[]", "OpenDroneMap.*export_colmap"),
        ("odm_report/shots.geojson", "{}", "OpenDroneMap.*ns-process-data odm"),
        ("cameras.xml", '<?xml version="1.0"?>\n<document version="1.5.0">', "Metashape.*ns-process-data metashape"),
        ("keyframes/cameras/1.json", "{}", "Polycam.*ns-process-data polycam"),
        ("database.db", "SQLite format 3", "COLMAP database.*colmap mapper"),
        ("zarr.json", "{}", "it is a scene.*give the folder of the photos"),
        ("poses.json", '{"frames": []}', "poses.json has frames with poses: give its path"),
        ("images/a.jpg", "", "there are 1 photos and no poses.*ns-process-data images"),
    ],
)
def test_poses_of_other_programs_are_named_with_their_conversion(
    tmp_path: Path, file: str, content: str, words: str
) -> None:
    path = tmp_path / "data" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DatasetError, match=f"got none of them; .*{words}"):
        read_dataset(tmp_path / "data")
