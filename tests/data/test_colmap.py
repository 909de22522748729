"""COLMAP files: both forms, the writer, and everything that can be wrong with them."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from capture_files import CAMERA, PINHOLE, circle, write_capture

from infnerf_tiles.data.colmap import find_colmap, read_colmap, write_colmap
from infnerf_tiles.data.records import Listing, Points
from infnerf_tiles.errors import CameraError, DatasetError
from infnerf_tiles.geometry.camera import Camera, PosedCameras, project

NAMES = ("north/DSC 001.JPG", "süd/дом.jpg", "a.jpg", "north/west/b.jpg", "c.png")


def points_of(listing: Listing) -> Points:
    assert listing.points is not None
    return listing.points


def camera_of(listing: Listing, row: int) -> Camera:
    camera = listing.cameras[row]
    assert isinstance(camera, Camera)
    return camera


@pytest.mark.parametrize("text", [False, True])
def test_a_written_model_reads_back(tmp_path: Path, text: bool) -> None:
    capture = write_capture(tmp_path, names=NAMES, text=text, photos=False)
    listing = read_colmap(tmp_path / "sparse/0")
    assert listing.names == NAMES
    assert listing.cameras == (CAMERA, PINHOLE)
    np.testing.assert_array_equal(listing.camera_index, capture.cameras.camera_index)
    np.testing.assert_allclose(listing.camera_to_world, capture.cameras.camera_to_world, atol=1e-14)
    for column in ("xyz", "rgb", "error", "track_offsets", "track_photos"):
        got, expected = getattr(points_of(listing), column), getattr(capture.points, column)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


def test_binary_and_text_agree_exactly(tmp_path: Path) -> None:
    write_capture(tmp_path / "b", names=NAMES, photos=False)
    write_capture(tmp_path / "t", names=NAMES, photos=False, text=True)
    binary, text = read_colmap(tmp_path / "b/sparse/0"), read_colmap(tmp_path / "t/sparse/0")
    np.testing.assert_array_equal(binary.camera_to_world, text.camera_to_world)
    assert binary.cameras == text.cameras
    assert binary.names == text.names
    np.testing.assert_array_equal(points_of(binary).xyz, points_of(text).xyz)
    np.testing.assert_array_equal(points_of(binary).track_photos, points_of(text).track_photos)


def test_the_binary_layout_is_colmaps(tmp_path: Path) -> None:
    """Files packed here byte by byte, from COLMAP's format description."""
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 7, 1, 640, 480, 500, 510, 320, 240))
    quaternion = (np.sqrt(0.5), 0, 0, np.sqrt(0.5))  # 90 degrees about z: world x becomes camera y
    image = struct.pack("<I7dI", 11, *quaternion, 1, 2, 3, 7) + b"x/y.jpg\0" + struct.pack("<Q", 2)
    image += struct.pack("<ddqddq", 1.5, 2.5, 99, 3.5, 4.5, -1)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", 1) + image)
    point = struct.pack("<Q3d3BdQII", 99, 0.5, 0.25, 8, 10, 20, 30, 0.75, 1, 11, 0)
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", 1) + point)

    listing = read_colmap(tmp_path)
    assert listing.names == ("x/y.jpg",)
    assert listing.cameras == (Camera("PINHOLE", 640, 480, (500, 510, 320, 240)),)
    # x_cam = R x + t with R x = (-y, x, z), so the centre is -R^T t = (-2, 1, -3)
    expected = [[0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 1, -3]]
    np.testing.assert_allclose(listing.camera_to_world[0], expected, atol=1e-15)
    np.testing.assert_array_equal(points_of(listing).xyz, [[0.5, 0.25, 8]])
    np.testing.assert_array_equal(points_of(listing).rgb, [[10, 20, 30]])
    np.testing.assert_array_equal(points_of(listing).error, [0.75])
    np.testing.assert_array_equal(points_of(listing).track_photos, [0])


def test_written_observations_and_tracks_refer_to_each_other(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, photos=False, text=True)
    lines = [line for line in (tmp_path / "sparse/0/images.txt").read_text().split("\n") if not line.startswith("#")]
    observed = [np.array(line.split(), dtype=float).reshape(-1, 3) for line in lines[1::2]]
    num_checked = 0
    for line in (tmp_path / "sparse/0/points3D.txt").read_text().splitlines()[1:]:
        words = line.split()
        for image_id, row in zip(words[8::2], words[9::2], strict=True):
            photo = int(image_id) - 1
            x, y, point_id = observed[photo][int(row)]
            assert point_id == int(words[0])
            xy, _, _ = capture.cameras.project(photo, np.array([words[1:4]], dtype=float))
            np.testing.assert_array_equal(xy[0], [x, y])
            num_checked += 1
    assert num_checked == len(capture.points.track_photos) == sum(map(len, observed))


def test_hand_written_text_with_comments_and_empty_observation_lines(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("# list\n\n3 SIMPLE_PINHOLE 64 48 50 32 24\n")
    (tmp_path / "images.txt").write_text(
        "# two lines per image\n"
        "5 1 0 0 0 0 0 0 3 with space.jpg\n"
        "\n"
        "6 2 0 0 0 -1 0 0 3 b.jpg\n"
        "1.0 2.0 -1 3.0 4.0 8\n"
        "9 1 0 0 0 0 0 -2 3 c.jpg"
    )
    (tmp_path / "points3D.txt").write_text("# none\n")
    listing = read_colmap(tmp_path)
    assert listing.names == ("with space.jpg", "b.jpg", "c.jpg")
    np.testing.assert_allclose(listing.camera_to_world[:, :, 3], [[0, 0, 0], [1, 0, 0], [0, 0, 2]])
    assert points_of(listing).num_points == 0


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path, names=NAMES[:3], num_points=3, photos=False)
    path = tmp_path / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=rf"{name}\.bin: byte \d+: expected .*, got .*; .*copy it again"):
            read_colmap(path.parent)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_wrong_count_is_refused_before_anything_is_allocated(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path, photos=False)
    path = tmp_path / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    with pytest.raises(
        DatasetError, match=rf"byte 0: expected at most \d+ .* in a file of {len(whole)} bytes, got 1152921"
    ):
        read_colmap(path.parent)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DatasetError, match=rf"byte {len(whole)}: expected the end of the file .*, got 1 more bytes"):
        read_colmap(path.parent)


def test_a_wrong_track_length_is_refused(tmp_path: Path) -> None:
    write_capture(tmp_path, photos=False, num_points=2)
    path = tmp_path / "sparse/0/points3D.bin"
    data = bytearray(path.read_bytes())
    data[8 + 43 : 8 + 51] = struct.pack("<Q", 1 << 40)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"points3D\.bin: byte 8: expected the track of point 0 of 2"):
        read_colmap(path.parent)


def test_an_unknown_model_id_is_named(tmp_path: Path) -> None:
    write_capture(tmp_path, photos=False)
    (tmp_path / "sparse/0/cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 4, 77, 64, 48))
    with pytest.raises(
        DatasetError, match=r"cameras\.bin: byte 8: expected camera 4 .*, got unknown camera model id 77"
    ):
        read_colmap(tmp_path / "sparse/0")


@pytest.mark.parametrize("text", [False, True])
def test_a_model_that_is_not_supported_leaves_its_name_as_the_reason(tmp_path: Path, text: bool) -> None:
    write_capture(tmp_path, photos=False, text=text)
    folder = tmp_path / "sparse/0"
    if text:
        (folder / "cameras.txt").write_text("1 FOV 64 48 50 50 32 24 0.9\n2 PINHOLE 64 48 50 50 32 24\n")
    else:
        fov = struct.pack("<iiQQ5d", 1, 7, 64, 48, 50, 50, 32, 24, 0.9)
        pinhole = struct.pack("<iiQQ4d", 2, 1, 64, 48, 50, 50, 32, 24)
        (folder / "cameras.bin").write_bytes(struct.pack("<Q", 2) + fov + pinhole)
    listing = read_colmap(folder)
    assert "camera 1" in str(listing.cameras[0])
    assert "'FOV'" in str(listing.cameras[0])
    assert listing.cameras[1] == Camera("PINHOLE", 64, 48, (50, 50, 32, 24))


@pytest.mark.parametrize(
    ("number", "name", "count"),
    [(12, "SIMPLE_DIVISION", 4), (13, "DIVISION", 5), (16, "EUCM", 6), (17, "EQUIRECTANGULAR", 2)],
)
def test_later_models_are_skipped_over_and_named(tmp_path: Path, number: int, name: str, count: int) -> None:
    write_capture(tmp_path, photos=False)
    later = struct.pack(f"<iiQQ{count}d", 1, number, 64, 48, *[0.5] * count)
    pinhole = struct.pack("<iiQQ4d", 2, 1, 64, 48, 50, 50, 32, 24)
    (tmp_path / "sparse/0/cameras.bin").write_bytes(struct.pack("<Q", 2) + later + pinhole)
    listing = read_colmap(tmp_path / "sparse/0")
    assert f"'{name}'; undistort the photos" in str(listing.cameras[0])
    assert "colmap image_undistorter" in str(listing.cameras[0])
    assert listing.cameras[1] == Camera("PINHOLE", 64, 48, (50, 50, 32, 24))


@pytest.mark.parametrize(
    ("number", "params", "expected"),
    [(14, (50, 32, 24), (50, 50, 32, 24, 0, 0, 0, 0)), (15, (50, 51, 32, 24), (50, 51, 32, 24, 0, 0, 0, 0))],
)
def test_fisheyes_without_distortion(
    tmp_path: Path, number: int, params: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """The angle from the axis times the focal length is the distance from the principal point."""
    write_capture(tmp_path, photos=False, cameras=(PINHOLE,))
    record = struct.pack(f"<QiiQQ{len(params)}d", 1, 1, number, 64, 48, *params)
    (tmp_path / "sparse/0/cameras.bin").write_bytes(record)
    camera = camera_of(read_colmap(tmp_path / "sparse/0"), 0)
    assert camera == Camera("OPENCV_FISHEYE", 64, 48, expected)
    xy, _ = project(camera, np.array([[0.3, 0.4, 1.0]]))
    np.testing.assert_allclose(xy, [[32 + 0.6 * params[0] * np.arctan(0.5), 24 + 0.8 * expected[1] * np.arctan(0.5)]])


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_text_file_cut_at_the_end_of_a_line_is_refused(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path, photos=False, text=True)
    path = tmp_path / f"sparse/0/{name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    what, each = ("points", 1) if name == "points3D" else (name, 2 if name == "images" else 1)
    count = len(lines) // each
    head = [f"# List with one {name[:-1]} per line", f"# Number of {what}: {count}, mean of something: 3.5"]
    path.write_text("\n".join([*head, *lines]) + "\n")
    read_colmap(path.parent)
    path.write_text("\n".join([*head, *lines[: -2 * each + 1]]) + "\n")
    left = -(-(len(lines) - 2 * each + 1) // each)
    with pytest.raises(DatasetError, match=rf"{name}\.txt: expected {count} {what} as its head says, got {left}; "):
        read_colmap(path.parent)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_mark_of_the_byte_order_is_read_over(tmp_path: Path, name: str) -> None:
    write_capture(tmp_path, photos=False, text=True)
    path = tmp_path / f"sparse/0/{name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    listing = read_colmap(path.parent)
    assert (len(listing.names), len(listing.cameras), points_of(listing).num_points) == (6, 2, 20)


def test_points_in_the_other_form_are_read(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "b", photos=False)
    write_capture(tmp_path / "t", photos=False, text=True)
    (tmp_path / "b/sparse/0/points3D.bin").rename(tmp_path / "points3D.bin")
    (tmp_path / "t/sparse/0/points3D.txt").rename(tmp_path / "b/sparse/0/points3D.txt")
    (tmp_path / "points3D.bin").rename(tmp_path / "t/sparse/0/points3D.bin")
    for form in ("b", "t"):
        np.testing.assert_array_equal(points_of(read_colmap(tmp_path / form / "sparse/0")).xyz, capture.points.xyz)


@pytest.mark.parametrize(("model", "params"), [("SIMPLE_RADIAL_FISHEYE", (0.1,)), ("RADIAL_FISHEYE", (0.1, 0.02))])
def test_simple_fisheye_models_become_the_general_one(tmp_path: Path, model: str, params: tuple[float, ...]) -> None:
    write_capture(tmp_path, photos=False, text=True)
    numbers = " ".join(map(str, (50, 32, 24, *params)))
    (tmp_path / "sparse/0/cameras.txt").write_text(f"1 {model} 64 48 {numbers}\n2 {model} 64 48 {numbers}\n")
    camera = camera_of(read_colmap(tmp_path / "sparse/0"), 0)
    direction = np.array([[0.3, 0.4, 1.0]])
    theta = np.arctan(0.5)
    bent = theta * (1 + sum(k * theta ** (2 * i) for i, k in enumerate(params, start=1)))
    xy, _ = project(camera, direction)
    np.testing.assert_allclose(xy, [[32 + 50 * bent * 0.6, 24 + 50 * bent * 0.8]], rtol=1e-13)


def test_a_camera_that_is_not_listed_is_the_reason_of_its_photos(tmp_path: Path) -> None:
    write_capture(tmp_path, photos=False, text=True)
    (tmp_path / "sparse/0/cameras.txt").write_text("1 PINHOLE 64 48 50 50 32 24\n")
    listing = read_colmap(tmp_path / "sparse/0")
    assert listing.cameras[listing.camera_index[1]] == "its camera 2 is not in cameras.txt"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cameras", "1 PINHOLE 64"),
        ("cameras", "1 PINHOLE 64 48 a b c d"),
        ("images", "1 1 0 0 0 0 0 0 1"),
        ("images", "1 1 0 0 0 0 0 0 1 a.jpg\n1.0 2.0"),
        ("points3D", "1 0 0 0 1 2 3 0.5 1"),
        ("points3D", "1 0 0 0 1 2 300 0.5"),
        ("points3D", "1 0 0 x 1 2 3 0.5"),
    ],
)
def test_a_bad_text_line_is_named(tmp_path: Path, name: str, line: str) -> None:
    write_capture(tmp_path, photos=False, text=True)
    path = tmp_path / f"sparse/0/{name}.txt"
    path.write_text(f"# comment\n{line}\n")
    number = 2 + line.count("\n")
    with pytest.raises(DatasetError, match=rf"{name}\.txt: line {number}: expected .*, got '.*'; "):
        read_colmap(path.parent)


def test_points_that_are_not_finite_and_unknown_photos_leave_the_tracks(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 64 48 50 50 32 24\n")
    (tmp_path / "images.txt").write_text("8 1 0 0 0 0 0 0 1 a.jpg\n\n4 1 0 0 0 0 0 0 1 b.jpg\n\n")
    (tmp_path / "points3D.txt").write_text(
        "1 0 0 1 1 2 3 0.5 4 0 8 0\n2 nan 0 1 1 2 3 0.5 8 0\n3 0 0 2 1 2 3 0.5 99 0 8 1\n4 0 0 3 1 2 3 0.5\n"
    )
    points = points_of(read_colmap(tmp_path))
    np.testing.assert_array_equal(points.xyz[:, 2], [1, 2, 3])
    np.testing.assert_array_equal(points.track_offsets, [0, 2, 3, 3])
    np.testing.assert_array_equal(points.track_photos, [1, 0, 0])


def test_missing_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path, photos=False)
    folder = tmp_path / "sparse/0"
    (folder / "points3D.bin").unlink()
    assert read_colmap(folder).points is None
    assert "points3D.bin" in caplog.text
    (folder / "cameras.bin").unlink()
    with pytest.raises(DatasetError, match=r"sparse/0: expected cameras and images .* got no cameras"):
        read_colmap(folder)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "", "colmap/sparse/0"])
def test_the_model_is_found(tmp_path: Path, place: str) -> None:
    write_capture(tmp_path / "elsewhere", photos=False)
    target = tmp_path / "data" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere/sparse/0").rename(target)
    assert find_colmap(tmp_path / "data") == target
    assert find_colmap(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", [False, True])
def test_of_several_models_the_one_with_the_most_photos_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bool
) -> None:
    for name, count in (("0", 2), ("2", 5), ("10", 5), ("3", 4)):
        write_capture(tmp_path / name, names=NAMES[:count], photos=False, text=text)
        (tmp_path / "data/sparse").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "sparse/0").rename(tmp_path / "data/sparse" / name)
    (tmp_path / "data/sparse/4").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_colmap(tmp_path / "data") == tmp_path / "data/sparse/2"
    assert "most photos (5) of 4 is read" in caplog.text
    assert "sparse/0 (2)" in caplog.text
    assert "sparse/10 (5)" in caplog.text
    caplog.clear()
    assert find_colmap(tmp_path / "data/sparse/0") == tmp_path / "data/sparse/0"
    assert caplog.text == ""


def test_a_damaged_model_is_not_taken_for_the_fullest(tmp_path: Path) -> None:
    write_capture(tmp_path, photos=False)
    for name, content in (("1", struct.pack("<Q", 1 << 60)), ("2", b"")):
        (tmp_path / "sparse" / name).mkdir()
        (tmp_path / "sparse" / name / "images.bin").write_bytes(content)
    assert find_colmap(tmp_path) == tmp_path / "sparse/0"


def test_every_orientation_survives(tmp_path: Path) -> None:
    """Quaternions near every axis and angle, where conversions lose digits."""
    rng = np.random.default_rng(3)
    poses = np.repeat(circle(1), 300, axis=0)
    q, _ = np.linalg.qr(rng.normal(size=(300, 3, 3)))
    poses[:, :, :3] = q * np.linalg.det(q)[:, None, None]
    half_turns = [np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1], [1.0, 1, 1])]
    poses[:4, :, :3] = half_turns
    cameras = PosedCameras(cameras=(PINHOLE,), camera_index=np.zeros(300, np.int32), camera_to_world=poses)
    write_colmap(tmp_path, names=[f"{i}.jpg" for i in range(300)], cameras=cameras)
    listing = read_colmap(tmp_path)
    np.testing.assert_allclose(listing.camera_to_world, poses, atol=1e-14)
    assert points_of(listing).num_points == 0


def test_the_writer_refuses_a_model_that_colmap_does_not_have(tmp_path: Path) -> None:
    camera = Camera("OPENCV_K4", 80, 60, (70, 70, 40, 30, 0, 0, 0, 0, 0, 0.1))
    cameras = PosedCameras(cameras=(camera,), camera_index=np.zeros(1, np.int32), camera_to_world=circle(1))
    with pytest.raises(CameraError, match="expected camera models that COLMAP has, got OPENCV_K4"):
        write_colmap(tmp_path, names=["a.jpg"], cameras=cameras)


def test_the_writer_checks_its_input(tmp_path: Path) -> None:
    cameras = PosedCameras(cameras=(PINHOLE,), camera_index=np.zeros(2, np.int32), camera_to_world=circle(2))
    with pytest.raises(ValueError, match="photo names: expected 2, got 1"):
        write_colmap(tmp_path, names=["a.jpg"], cameras=cameras)
    points = Points(
        xyz=np.zeros((1, 3)),
        rgb=np.zeros((1, 3), np.uint8),
        error=np.zeros(1, np.float32),
        track_offsets=np.array([0, 2]),
        track_photos=np.array([0, 1], np.int32),
    )
    with pytest.raises(ValueError, match=r"track_xy: expected shape \(2, 2\)"):
        write_colmap(tmp_path, names=["a.jpg", "b.jpg"], cameras=cameras, points=points, track_xy=np.zeros((3, 2)))
