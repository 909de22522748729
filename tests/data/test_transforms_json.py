"""transforms.json: nerfstudio, instant-ngp and Blender."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_files import (
    CAMERA,
    HEIGHT,
    WIDTH,
    circle,
    opengl_matrix,
    texture,
    write_capture,
    write_jpeg,
    write_json,
    write_png,
)

from infnerf_tiles.data.colmap import read_colmap
from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.transforms_json import read_transforms
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.camera import Camera

IDENTITY = np.eye(4).tolist()
SIZE: dict[str, Any] = {"w": WIDTH, "h": HEIGHT}
GLOBAL: dict[str, Any] = {**SIZE, "fl_x": 70, "fl_y": 71, "cx": 40.5, "cy": 29.5}


def frames(count: int, **extra: Any) -> list[dict[str, Any]]:
    return [
        {"file_path": f"images/{i}.jpg", "transform_matrix": opengl_matrix(pose), **extra}
        for i, pose in enumerate(circle(count))
    ]


def only_camera(folder: Path, **content: Any) -> Camera:
    """The camera that a file with one frame gives."""
    listed = content.pop("frames", frames(1))
    write_json(folder / "transforms.json", {**content, "frames": listed})
    listing = read_transforms(folder)
    assert listing.rejected == ()
    (camera,) = listing.cameras
    assert isinstance(camera, Camera)
    return camera


def only_reason(folder: Path, **content: Any) -> str:
    """Why the only frame of a file is rejected."""
    write_json(folder / "transforms.json", {"frames": frames(1), **content})
    (rejected,) = read_transforms(folder).rejected
    return rejected.reason


def test_opengl_axes_become_opencv_axes(tmp_path: Path) -> None:
    pose = np.array([[0, 0, 1, 5], [1, 0, 0, 6], [0, 1, 0, 7], [0, 0, 0, 1.0]])
    write_json(
        tmp_path / "transforms.json", {**GLOBAL, "frames": [{"file_path": "a.jpg", "transform_matrix": pose.tolist()}]}
    )
    (got,) = read_transforms(tmp_path).camera_to_world
    np.testing.assert_array_equal(got[:, 0], [0, 1, 0])  # right stays
    np.testing.assert_array_equal(got[:, 1], [0, 0, -1])  # down is against OpenGL's up
    np.testing.assert_array_equal(got[:, 2], [-1, 0, 0])  # forward is against OpenGL's backward
    np.testing.assert_array_equal(got[:, 3], [5, 6, 7])


def test_colmap_and_transforms_agree(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, cameras=(CAMERA,), photos=False)
    listing = read_colmap(tmp_path / "sparse/0")
    fx, fy, cx, cy, k1, k2, p1, p2 = CAMERA.params
    content = {
        **SIZE,
        "camera_model": "OPENCV",
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
        "k1": k1,
        "k2": k2,
        "p1": p1,
        "p2": p2,
        "frames": [
            {"file_path": f"./images/{name}", "transform_matrix": opengl_matrix(pose)}
            for name, pose in zip(capture.names, capture.cameras.camera_to_world, strict=True)
        ],
    }
    write_json(tmp_path / "transforms.json", content)
    other = read_transforms(tmp_path)
    assert other.cameras == listing.cameras
    np.testing.assert_allclose(other.camera_to_world, listing.camera_to_world, atol=1e-14)
    assert other.names == tuple(f"images/{name}" for name in listing.names)
    assert [other.photos.place(name) for name in other.names] == [tmp_path / "images" / name for name in capture.names]


def test_a_frame_wins_over_the_file(tmp_path: Path) -> None:
    listed = frames(3)
    listed[1] |= {"fl_x": 90, "fl_y": 91, "w": 100.0, "h": 50.0}
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": listed})
    listing = read_transforms(tmp_path)
    first, second = Camera("PINHOLE", 80, 60, (70, 71, 40.5, 29.5)), Camera("PINHOLE", 100, 50, (90, 91, 40.5, 29.5))
    assert listing.cameras == (first, second)
    np.testing.assert_array_equal(listing.camera_index, [0, 1, 0])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"fl_x": 70}, Camera("PINHOLE", 80, 60, (70, 70, 40, 30))),
        ({"camera_angle_x": math.pi / 2}, Camera("PINHOLE", 80, 60, (40, 40, 40, 30))),
        ({"camera_angle_x": math.pi / 2, "fl_x": 70}, Camera("PINHOLE", 80, 60, (70, 70, 40, 30))),
        ({"camera_angle_x": math.pi / 2, "camera_angle_y": math.pi / 2}, Camera("PINHOLE", 80, 60, (40, 30, 40, 30))),
        (
            {"x_fov": 90, "aabb_scale": 4, "scale": 0.3, "offset": [1, 2, 3]},
            Camera("PINHOLE", 80, 60, (40, 40, 40, 30)),
        ),
        ({"y_fov": 90}, Camera("PINHOLE", 80, 60, (30, 30, 40, 30))),
        ({"fl_x": 70, "k1": 0.1}, Camera("OPENCV", 80, 60, (70, 70, 40, 30, 0.1, 0, 0, 0))),
        ({"fl_x": 70, "camera_model": "PINHOLE", "k1": 0, "p2": 0.0}, Camera("PINHOLE", 80, 60, (70, 70, 40, 30))),
        (
            {"fl_x": 70, "k1": 0.1, "k3": 0.2, "p1": 0.3},
            Camera("FULL_OPENCV", 80, 60, (70, 70, 40, 30, 0.1, 0, 0.3, 0, 0.2, 0, 0, 0)),
        ),
        (
            {"fl_x": 70, "camera_model": "FULL_OPENCV", "k1": 1, "k2": 2, "p1": 3, "p2": 4, "k3": 5, "k4": 6, "k6": 8},
            Camera("FULL_OPENCV", 80, 60, (70, 70, 40, 30, 1, 2, 3, 4, 5, 6, 0, 8)),
        ),
        (
            {"fl_x": 70, "camera_model": "OPENCV_FISHEYE", "k1": 1, "k2": 2, "k3": 3, "k4": 4},
            Camera("OPENCV_FISHEYE", 80, 60, (70, 70, 40, 30, 1, 2, 3, 4)),
        ),
        (
            {"fl_x": 70, "k1": 0.1, "k3": 0.01, "k4": 0.02, "p2": 0.3},
            Camera("OPENCV_K4", 80, 60, (70, 70, 40, 30, 0.1, 0, 0, 0.3, 0.01, 0.02)),
        ),
        (
            {"fl_x": "70", "w": "80", "k1": "-0.1", "k3": "0.0", "k4": "0.0"},
            Camera("OPENCV", 80, 60, (70, 70, 40, 30, -0.1, 0, 0, 0)),
        ),
        ({"fl_x": 70, "is_fisheye": True}, Camera("OPENCV_FISHEYE", 80, 60, (70, 70, 40, 30, 0, 0, 0, 0))),
    ],
)
def test_intrinsics(tmp_path: Path, keys: dict[str, Any], expected: Camera) -> None:
    camera = only_camera(tmp_path, **{**SIZE, **keys})
    assert camera.model == expected.model
    assert (camera.width, camera.height) == (expected.width, expected.height)
    np.testing.assert_allclose(camera.params, expected.params, rtol=1e-14)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, "focal length: expected fl_x or camera_angle_x, got neither"),
        ({"fl_x": "wide"}, "fl_x: expected a number, got 'wide'"),
        ({"fl_x": True}, "fl_x: expected a number, got True"),
        ({"fl_x": "nan"}, "expected finite"),
        ({"fl_x": float("nan")}, "expected finite"),
        ({"fl_x": -3}, "expected focal lengths > 0"),
        ({"fl_x": 70, "w": 80.5}, "w, h: expected whole numbers of pixels, got 80.5 and 60"),
        ({"fl_x": 70, "h": float("inf")}, "w, h: expected whole numbers of pixels, got 80.0 and inf"),
        ({"camera_angle_x": 3.2}, "viewing angle: expected more than 0 and less than pi, got 3.2"),
        ({"fl_x": 70, "camera_model": "EQUIRECTANGULAR"}, "camera_model: expected one of .*, got 'EQUIRECTANGULAR'"),
        ({"fl_x": 70, "camera_model": ["OPENCV"]}, "camera_model: expected one of"),
        ({"fl_x": 70, "k5": 0.1}, "expected k5 and k6 to be 0, got 0.1 and 0.0"),
        ({"fl_x": 70, "is_fisheye": True, "p1": 0.1}, "expected no tangential distortion, got p1 0.1"),
        ({"fl_x": 70, "ftheta_p0": 0.1}, "ftheta_p0: expected a perspective or OpenCV fisheye lens"),
    ],
)
def test_intrinsics_that_cannot_be_used_are_a_reason(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    assert re.search(reason, only_reason(tmp_path, **{**SIZE, **keys}))


def test_blender_files(tmp_path: Path) -> None:
    """No sizes, no extensions, one file for each part."""
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        for i in range(count):
            write_png(tmp_path / part / f"r_{i}.png", texture(WIDTH, HEIGHT, seed=i))
        listed = [
            {"file_path": f"./{part}/r_{i}", "rotation": 0.01, "transform_matrix": opengl_matrix(pose)}
            for i, pose in enumerate(circle(count))
        ]
        write_json(tmp_path / f"transforms_{part}.json", {"camera_angle_x": math.pi / 2, "frames": listed})
    listing = read_transforms(tmp_path)
    assert listing.names == tuple(
        f"{part}/r_{i}.png"
        for part, i in zip(["train"] * 3 + ["val"] * 2 + ["test"] * 2, [0, 1, 2, 0, 1, 0, 1], strict=True)
    )
    (camera,) = listing.cameras
    assert isinstance(camera, Camera)
    assert (camera.model, camera.width, camera.height) == ("PINHOLE", WIDTH, HEIGHT)
    np.testing.assert_allclose(camera.params, (40, 40, 40, 30))
    assert listing.split is not None
    assert listing.split.test == {"test/r_0.png", "test/r_1.png"}
    assert set(listing.split.train or ()) == {"train/r_0.png", "train/r_1.png", "train/r_2.png"}

    (tmp_path / "transforms_test.json").unlink()
    split = read_transforms(tmp_path).split
    assert split is not None
    assert split.test == {"val/r_0.png", "val/r_1.png"}
    (tmp_path / "transforms_val.json").unlink()
    assert read_transforms(tmp_path).split is None


def test_sizes_that_are_not_written_come_from_each_photo(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "images/0.jpg", 100, 50)
    write_jpeg(tmp_path / "images/1.jpg", 60, 90)
    write_json(tmp_path / "transforms.json", {"camera_angle_x": math.pi / 2, "frames": frames(3)})
    listing = read_transforms(tmp_path)
    expected = [(100, 50, (50, 50, 50, 25)), (60, 90, (30, 30, 30, 45))]
    for camera, (width, height, params) in zip(listing.cameras, expected, strict=True):
        assert isinstance(camera, Camera)
        assert (camera.width, camera.height) == (width, height)
        np.testing.assert_allclose(camera.params, params)
    missing = f"the file does not exist: {tmp_path / 'images/2.jpg'}"
    assert [(r.name, r.reason) for r in listing.rejected] == [("images/2.jpg", missing)]


def test_nerfstudio_split_lists(tmp_path: Path) -> None:
    names = [frame["file_path"] for frame in frames(4)]
    lists = {"train_filenames": names[:2], "val_filenames": names[2:3], "test_filenames": ["./" + names[3]]}
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(4), **lists})
    split = read_transforms(tmp_path).split
    assert split is not None
    assert (split.test, split.train) == (frozenset(names[3:]), frozenset(names[:2]))
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(4), "test_filenames": 3})
    with pytest.raises(DatasetError, match="test_filenames: expected a list of names, got 3"):
        read_transforms(tmp_path)


@pytest.mark.parametrize("empty", [{}, {"val_filenames": [], "test_filenames": []}])
def test_where_only_training_photos_are_listed_none_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: dict[str, Any]
) -> None:
    for i in range(4):
        write_jpeg(tmp_path / f"images/{i}.jpg")
    lists = {"train_filenames": [f"images/{i}.jpg" for i in range(3)], **empty}
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(4), **lists})
    photos = read_dataset(tmp_path, test_every=2)
    assert photos.names == ("images/0.jpg", "images/1.jpg", "images/2.jpg")
    assert not photos.is_test.any()
    assert photos.own_split
    assert "transforms.json: lists no test photos, so none is held out" in caplog.text
    (rejected,) = photos.rejected
    assert "neither a training nor a test photo" in rejected.reason


def test_matrices_written_by_columns_are_refused(tmp_path: Path) -> None:
    listed = frames(3)
    listed[0]["transform_matrix"] = np.array(listed[0]["transform_matrix"]).T.tolist()
    listed[1]["transform_matrix"][3] = [0, 0, 0, 2]
    listed[2]["transform_matrix"][3] = [0, 1e-9, 0, 1]
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": listed})
    listing = read_transforms(tmp_path)
    assert listing.names == ("images/2.jpg",)
    by_columns, other = (r.reason for r in listing.rejected)
    assert "expected the last row 0, 0, 0, 1, got the position there" in by_columns
    assert by_columns.endswith("it is written by columns, transpose it")
    assert "got 0, 0, 0, 2; export it again as a camera-to-world pose" in other


def test_an_empty_mask_path_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(2, mask_path="")})
    assert read_transforms(tmp_path).mask_names == (None, None)


def test_the_world_frame_stays_the_files(tmp_path: Path) -> None:
    turn = [[0, 0, 1, 4], [1, 0, 0, 5], [0, 1, 0, 6]]
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(3), "applied_transform": turn})
    np.testing.assert_allclose(read_transforms(tmp_path).camera_to_world, circle(3))
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(3), "applied_transform": turn[:2]})
    with pytest.raises(DatasetError, match="applied_transform: expected 3x4 or 4x4 numbers"):
        read_transforms(tmp_path)


def test_points_come_from_the_named_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {**GLOBAL, "frames": frames(2), "ply_file_path": "sparse_pc.ply"}
    write_json(tmp_path / "transforms.json", content)
    assert read_transforms(tmp_path).points is None
    assert "sparse_pc.ply, which does not exist" in caplog.text
    header = (
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (tmp_path / "sparse_pc.ply").write_text(header + "1 2 3\n")
    points = read_transforms(tmp_path).points
    assert points is not None
    np.testing.assert_array_equal(points.xyz, [[1, 2, 3]])
    write_json(tmp_path / "transforms.json", {**content, "ply_file_path": "../sparse_pc.ply"})
    with pytest.raises(DatasetError, match=r"ply_file_path: expected a file name below .*, got .*leaves its folder"):
        read_transforms(tmp_path)


def test_photos_in_another_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "data/transforms.json", {**GLOBAL, "frames": frames(2)})
    elsewhere = tmp_path / "photos"
    flat = write_jpeg(elsewhere / "1.jpg")
    listing = read_transforms(tmp_path / "data", elsewhere)
    assert listing.names == ("images/0.jpg", "images/1.jpg")
    assert listing.photos.find("images/1.jpg") == flat
    nested = write_jpeg(elsewhere / "images/1.jpg")
    assert read_transforms(tmp_path / "data", elsewhere).photos.find("images/1.jpg") == nested


def test_folders_that_tell_photos_apart_are_not_dropped(tmp_path: Path) -> None:
    listed = [{**frame, "file_path": f"cam{i}/a.jpg"} for i, frame in enumerate(frames(2))]
    write_json(tmp_path / "data/transforms.json", {**GLOBAL, "frames": listed})
    write_jpeg(tmp_path / "photos/a.jpg")
    listing = read_transforms(tmp_path / "data", tmp_path / "photos")
    assert [listing.photos.find(name) for name in listing.names] == [None, None]


def test_entries_that_cannot_be_used_are_rejected_one_by_one(tmp_path: Path) -> None:
    good = frames(1)[0]
    listed: list[Any] = [
        good,
        {"transform_matrix": IDENTITY},
        "text",
        {**good, "file_path": 3},
        {**good, "file_path": "../a.jpg"},
        {**good, "file_path": "/etc/a.jpg"},
        {**good, "file_path": "C:\\photos\\a.jpg"},
        {**good, "file_path": ""},
        {"file_path": "b.jpg"},
        {"file_path": "c.jpg", "transform_matrix": [[1, 2], [3, 4]]},
        {"file_path": "d.jpg", "transform_matrix": "identity"},
        {"file_path": "e.jpg", "transform_matrix": [[1, 0, 0, 0], [0, 1, 0], [0, 0, 1, 0]]},
        {**good, "file_path": "f.jpg", "mask_path": 5},
        good,
    ]
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": listed})
    listing = read_transforms(tmp_path)
    assert listing.names == ("images/0.jpg",)
    no_path, no_matrix = "transforms.json gives it no file_path", "transform_matrix is not 3x4 or 4x4 numbers"
    expected = [
        ("frames[1]", no_path),
        ("frames[2]", no_path),
        ("frames[3]", no_path),
        ("../a.jpg", "leaves its folder"),
        ("/etc/a.jpg", "absolute path"),
        ("C:\\photos\\a.jpg", "absolute path"),
        (".", "the name is empty"),
        ("b.jpg", no_matrix),
        ("c.jpg", no_matrix),
        ("d.jpg", no_matrix),
        ("e.jpg", no_matrix),
        ("f.jpg", "mask_path is not a text"),
        ("images/0.jpg", "listed more than once"),
    ]
    assert [r.name for r in listing.rejected] == [name for name, _ in expected]
    for rejected, (_, reason) in zip(listing.rejected, expected, strict=True):
        assert reason in rejected.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"transforms\.json: expected JSON, got: .*line 1 column 2"),
        ("[]", "expected an object with a list 'frames'"),
        ('{"frames": {}}', "expected an object with a list 'frames'"),
        ("\ufeff[" * 10, "expected JSON"),
        ("[" * 100_000, "expected JSON"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "transforms.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_transforms(tmp_path)


def test_an_ignored_key_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(1), "rolling_shutter": [0, 0, 0, 0]})
    read_transforms(tmp_path)
    assert "rolling_shutter" not in caplog.text
    write_json(tmp_path / "transforms.json", {**GLOBAL, "frames": frames(1), "rolling_shutter": [0, 0, 1, 0]})
    read_transforms(tmp_path)
    assert "rolling_shutter is not supported and ignored" in caplog.text
