"""Where photos are looked for, and photos of another size than their cameras."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_files import (
    CAMERA,
    HEIGHT,
    PINHOLE,
    SIX_NAMES,
    WIDTH,
    circle,
    opengl_matrix,
    write_capture,
    write_jpeg,
    write_json,
    write_png,
)

from infnerf_tiles.data.checks import resampled
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.photos import PhotoCache
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.camera import Camera, project


def transforms(folder: Path, before: str, masks: str | None = None, **content: Any) -> None:
    frames: list[dict[str, Any]] = [
        {"file_path": f"{before}{name}", "transform_matrix": opengl_matrix(pose)}
        for name, pose in zip(SIX_NAMES, circle(6), strict=True)
    ]
    for frame, name in zip(frames, SIX_NAMES, strict=True):
        frame |= {} if masks is None else {"mask_path": f"{masks}{name}.png"}
    write_json(folder / "transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames, **content})


def photos_in(folder: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    for i, name in enumerate(SIX_NAMES):
        write_jpeg(folder / name, width, height, seed=i)


def reduced_to(photos: PosedPhotos, row: int, width: int, height: int) -> Camera:
    """The camera of a photo, which has this size, and whose file can be decoded to it."""
    camera = photos.cameras.camera(row)
    assert (camera.width, camera.height) == (width, height)
    assert PhotoCache(1 << 20).get(photos.photo_file(row)).rgb.shape == (height, width, 3)
    return camera


@pytest.mark.parametrize("place", ["images_4", "", "input", "images_4/deeper"])
def test_photos_of_a_model_without_images_are_found(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"deeper/{name}" for name in SIX_NAMES] if "deeper" in place else SIX_NAMES
    write_capture(tmp_path, names=names, photos=False)
    photos_in(tmp_path / "images_8", 10, 8)
    photos_in(tmp_path / place)
    photos = read_dataset(tmp_path)
    assert photos.paths[0] == tmp_path / place / SIX_NAMES[0] or place in ("", "input")
    assert f"no photos in {tmp_path / 'images'}, they are read from" in caplog.text


def test_images_come_before_reduced_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path)
    photos_in(tmp_path / "images_2", 40, 30)
    assert read_dataset(tmp_path).paths[0] == tmp_path / "images" / SIX_NAMES[0]
    assert caplog.text == ""


@pytest.mark.parametrize("given", [None, "images", "."])
def test_names_of_a_model_that_repeat_the_folder(tmp_path: Path, given: str | None) -> None:
    write_capture(tmp_path, names=[f"images/{name}" for name in SIX_NAMES], photos=False)
    photos_in(tmp_path / "images")
    photos = read_dataset(tmp_path, images=None if given is None else tmp_path / given)
    assert photos.paths == tuple(tmp_path / "images" / name for name in SIX_NAMES)
    assert photos.names[0] == f"images/{SIX_NAMES[0]}"


@pytest.mark.parametrize(
    "before",
    ["/home/me/scan/images/", "../scan/images/", "../../images/", "C:\\scan\\images\\", "./a/b/scan/images/", "/"],
)
@pytest.mark.parametrize("given", [False, True])
def test_paths_that_were_written_elsewhere(tmp_path: Path, before: str, given: bool) -> None:
    folder = tmp_path / "data/scan"
    transforms(folder, before, masks=before.replace("images", "masks"))
    place = folder if before == "/" else folder / "images"
    photos_in(place)
    for name in SIX_NAMES:
        write_png(folder / ("" if before == "/" else "masks") / f"{name}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    write_jpeg(tmp_path / "scan/images/photo_00.jpg", 10, 10)  # what ../scan means, were it followed
    photos = read_dataset(folder, images=place if given else None)
    assert photos.rejected == ()
    assert photos.paths == tuple(place / name for name in SIX_NAMES)
    assert all(path is not None and path.is_relative_to(folder) for path in photos.mask_paths)


def test_single_names_that_leave_the_folder_are_left_out(tmp_path: Path) -> None:
    transforms(tmp_path / "data", "images/")
    path = tmp_path / "data/transforms.json"
    path.write_text(path.read_text().replace('images/photo_03.jpg"', '../images/photo_03.jpg"'))
    photos_in(tmp_path / "data/images")
    photos_in(tmp_path / "images")
    (rejected,) = read_dataset(tmp_path / "data").rejected
    assert rejected.name == "../images/photo_03.jpg"
    assert "leaves its folder" in rejected.reason


def test_names_of_a_split_written_elsewhere(tmp_path: Path) -> None:
    transforms(tmp_path, "/x/images/", test_filenames=["/x/images/photo_04.jpg"])
    photos_in(tmp_path / "images")
    assert np.flatnonzero(read_dataset(tmp_path).is_test).tolist() == [4]


@pytest.mark.parametrize("other", ["photo_02.JPG", "photo_02.png", "PHOTO_02.jpg"])
def test_a_missing_photo_names_its_path_and_what_is_like_it(tmp_path: Path, other: str) -> None:
    write_capture(tmp_path)
    (tmp_path / "images/photo_02.jpg").rename(tmp_path / "images" / other)
    (rejected,) = read_dataset(tmp_path).rejected
    assert rejected.reason == f"the file does not exist: {tmp_path / 'images/photo_02.jpg'}; there is {other}"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((20, 15), CAMERA), ((160, 120), CAMERA), ((27, 20), CAMERA), ((26, 20), CAMERA), ((53, 40), PINHOLE)],
)
def test_the_camera_of_a_resampled_photo(size: tuple[int, int], expected: Camera) -> None:
    """A direction falls on the same place of the picture, as a share of its width and height."""
    camera = resampled(expected, size)
    assert camera is not None
    assert (camera.width, camera.height) == size
    directions = np.stack([*np.meshgrid([-0.4, 0.1, 0.5], [-0.3, 0.0, 0.35]), np.ones((3, 3))], axis=-1).reshape(9, 3)
    before, after = project(expected, directions)[0], project(camera, directions)[0]
    np.testing.assert_allclose(after / size, before / (WIDTH, HEIGHT), rtol=1e-12)


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "OPENCV_FISHEYE"])
def test_every_model_is_resampled_exactly(model: str) -> None:
    params = {
        "SIMPLE_PINHOLE": (70, 41, 29),
        "SIMPLE_RADIAL": (70, 41, 29, -0.1),
        "RADIAL": (70, 41, 29, -0.1, 0.02),
        "FULL_OPENCV": (70, 71, 41, 29, -0.1, 0.02, 0.001, 0.002, 0.01, 0.02, 0.01, 0.001),
        "OPENCV_FISHEYE": (70, 71, 41, 29, -0.1, 0.02, 0.01, 0.001),
    }[model]
    camera = Camera(model, WIDTH, HEIGHT, params)
    directions = np.stack([*np.meshgrid([-0.4, 0.1, 0.5], [-0.3, 0.0, 0.35]), np.ones((3, 3))], axis=-1).reshape(9, 3)
    for size in ((40, 30), (27, 20)):
        after, before = project(camera.resized(*size), directions)[0], project(camera, directions)[0]
        np.testing.assert_allclose(after / size, before / (WIDTH, HEIGHT), rtol=1e-12)
    assert camera.resized(40, 30).model == model


@pytest.mark.parametrize("size", [(79, 60), (80, 59), (79, 59), (60, 80), (40, 60), (30, 20), (80, 30), (81, 61)])
def test_a_photo_that_was_cropped_or_turned_is_not_a_resampled_one(size: tuple[int, int]) -> None:
    assert resampled(CAMERA, size) is None


def test_photos_of_several_sizes_have_cameras_of_theirs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path)
    for i, (width, height) in enumerate([(80, 60), (80, 60), (40, 30), (40, 30), (160, 120), (27, 20)]):
        write_jpeg(tmp_path / "images" / SIX_NAMES[i], width, height)
    photos = read_dataset(tmp_path)
    assert photos.rejected == ()
    assert reduced_to(photos, 0, 80, 60) == CAMERA
    assert reduced_to(photos, 1, 80, 60) == PINHOLE
    assert reduced_to(photos, 2, 40, 30) == CAMERA.scaled_down(2)
    assert reduced_to(photos, 3, 40, 30) == PINHOLE.scaled_down(2)
    assert reduced_to(photos, 4, 160, 120).cx == 2 * CAMERA.cx
    assert reduced_to(photos, 5, 27, 20).fx == pytest.approx(PINHOLE.fx * 27 / 80)
    assert "4 of 6 photos are not of their camera's size" in caplog.text
    assert "2 of 40x30, 0.5 of 80x60" in caplog.text
    halves = read_dataset(tmp_path, downscale=2)
    assert reduced_to(halves, 0, 40, 30) == CAMERA.scaled_down(2)
    assert reduced_to(halves, 2, 20, 15) == CAMERA.scaled_down(4)


def test_a_reduction_that_leaves_nothing_of_a_small_photo_leaves_it_out(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_jpeg(tmp_path / "images" / SIX_NAMES[2], 16, 12)
    (rejected,) = read_dataset(tmp_path, downscale=16).rejected
    assert rejected.reason == "its camera is 16x12, less than one pixel at 1/16 size"


def test_reduced_photos_by_their_folder(tmp_path: Path) -> None:
    write_capture(tmp_path)
    photos_in(tmp_path / "images_4", 20, 15)
    photos = read_dataset(tmp_path, images=tmp_path / "images_4")
    assert reduced_to(photos, 0, 20, 15) == CAMERA.scaled_down(4)


def test_a_folder_with_photos_of_the_right_size_is_named(tmp_path: Path) -> None:
    write_capture(tmp_path)
    for i, name in enumerate(SIX_NAMES):
        write_jpeg(tmp_path / "images" / name, 40, 40, seed=i)
    photos_in(tmp_path / "images_2", 40, 30)
    with pytest.raises(DatasetError, match=rf"no common scale.*; that in {tmp_path}/images_2 fits, give --images"):
        read_dataset(tmp_path)
