"""Path files: what is written is read, foreign ones are converted, wrong ones are refused by place."""

import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from rendering.captures import CAMERA, keys_on_a_bend, survey

from infnerf_tiles.errors import DataError
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.geometry.rotation import quaternions_from_rotations
from infnerf_tiles.rendering import path_files
from infnerf_tiles.rendering.camera_paths import (
    flythrough,
    make_path,
    orbit,
    read_path_file,
    write_path_file,
)


def test_path_file_round_trips_exactly(tmp_path: Path) -> None:
    path = orbit(CAMERA, centre=np.array([1e6, 2e6, 3.0]), radius=4.0, height=1.0, frames=7, fps=24)
    file = tmp_path / "path.json"
    write_path_file(file, path)
    back = read_path_file(file)
    assert back.camera == path.camera
    np.testing.assert_array_equal(back.camera_to_world[:, :, 3], path.camera_to_world[:, :, 3])
    np.testing.assert_allclose(back.camera_to_world, path.camera_to_world, atol=1e-15)
    assert back.fps == pytest.approx(24)
    assert read_path_file(file, frames=3).num_frames == 3
    assert make_path(str(file), survey(), size=(32, 24)).camera.width == 32


def own_file(**changes: Any) -> dict[str, Any]:
    camera = {"model": "PINHOLE", "width": 320, "height": 240, "params": [300, 300, 160, 120]}
    poses = keys_on_a_bend().tolist()
    content = {"format": path_files.FORMAT, "version": 1, "fps": 24, "camera": camera, "key_poses": poses, "frames": 50}
    return {key: value for key, value in (content | changes).items() if value is not None}


def nerfstudio_file(**changes: Any) -> dict[str, Any]:
    poses = keys_on_a_bend()
    poses[:, :, 1:3] *= -1
    flat = np.concatenate([poses, np.tile([0.0, 0, 0, 1], (len(poses), 1, 1))], axis=1).reshape(len(poses), 16)
    frames = [{"camera_to_world": row.tolist(), "fov": 50.0, "aspect": 1.5} for row in flat]
    content = {
        "camera_type": "perspective",
        "render_width": 300,
        "render_height": 200,
        "fps": 24,
        "camera_path": frames,
    }
    return content | changes


def write(folder: Path, content: object) -> Path:
    path = folder / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_key_poses_in_a_file_are_flown_through(tmp_path: Path) -> None:
    path = read_path_file(write(tmp_path, own_file()))
    expected = flythrough(CAMERA, keys_on_a_bend(), frames=50)
    np.testing.assert_allclose(path.camera_to_world, expected.camera_to_world, atol=1e-9)
    assert path.fps == pytest.approx(24)
    assert read_path_file(tmp_path / "path.json", frames=20).num_frames == 20
    closed = read_path_file(write(tmp_path, own_file(loop=True)))
    np.testing.assert_allclose(
        closed.camera_to_world, flythrough(CAMERA, keys_on_a_bend(), frames=50, loop=True).camera_to_world, atol=1e-9
    )


def test_nerfstudio_paths_are_converted_to_our_axes(tmp_path: Path) -> None:
    path = read_path_file(write(tmp_path, nerfstudio_file()))
    np.testing.assert_allclose(path.camera_to_world, keys_on_a_bend(), atol=1e-12)
    assert (path.camera.width, path.camera.height) == (300, 200)
    assert 2 * np.degrees(np.arctan(100 / path.camera.fy)) == pytest.approx(
        50.0
    )  # the field of view is the vertical one


def transforms_file(**changes: Any) -> dict[str, Any]:
    """As a data set has it: OpenGL axes, distortion that a film is drawn without."""
    poses = keys_on_a_bend()
    poses[:, :, 1:3] *= -1
    square = np.concatenate([poses, np.tile([0.0, 0, 0, 1], (len(poses), 1, 1))], axis=1)
    frames = [{"file_path": f"images/{9 - i}.jpg", "transform_matrix": pose.tolist()} for i, pose in enumerate(square)]
    content = {"fl_x": 280.0, "fl_y": 280.0, "cx": 151.0, "cy": 99.0, "k1": 0.1, "w": 300, "h": 200, "frames": frames}
    return {key: value for key, value in (content | changes).items() if value is not None}


def test_a_list_of_cameras_is_a_path_in_its_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = read_path_file(write(tmp_path, transforms_file()))
    np.testing.assert_allclose(path.camera_to_world, keys_on_a_bend(), atol=1e-12)
    assert path.camera == Camera("PINHOLE", 300, 200, (280.0, 280.0, 150.0, 100.0))
    assert path.fps == pytest.approx(30)
    assert read_path_file(tmp_path / "path.json", frames=2).num_frames == 2
    angle = 2 * np.arctan(150 / 280)
    blender = transforms_file(camera_angle_x=angle, fl_x=None, fl_y=None, cx=None, cy=None, k1=None)
    assert read_path_file(write(tmp_path, blender)).camera.fx == pytest.approx(280)
    assert "cameras" not in caplog.text
    odd = with_entry(transforms_file(), "frames", 1, transforms_file()["frames"][1] | {"fl_x": 300.0})
    assert read_path_file(write(tmp_path, odd)).camera == path.camera
    assert "2 cameras" in caplog.text


def test_a_list_of_cameras_without_sizes_takes_those_of_the_photos(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    frames = [frame | {"file_path": "./train/r_0"} for frame in transforms_file()["frames"]]
    content = transforms_file(w=None, h=None, frames=frames)
    with pytest.raises(DataError, match=r"frames\[0\].*w and h.*r_0"):
        read_path_file(write(tmp_path, content))
    iio.imwrite(tmp_path / "train" / "r_0.png", np.zeros((20, 30, 3), np.uint8))
    camera = read_path_file(write(tmp_path, content)).camera
    assert (camera.width, camera.height) == (30, 20)


def with_entry(content: dict[str, Any], name: str, index: int, value: Any) -> dict[str, Any]:
    entries = list(content[name])
    entries[index] = value
    return content | {name: entries}


MIRRORED = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]
SCALED = [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]
HUGE = [[1e200, 0, 0, 0], [0, 1e200, 0, 0], [0, 0, 1e200, 0]]
BAD_FILES: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "expected JSON"),
    "not a number": (json.dumps(own_file()).replace("24", "NaN"), "NaN"),
    "too deep": ("[" * 100_000, "expected JSON"),
    "a list": ([], "object"),
    "something else": ({"keyframes": []}, "camera_path"),
    "future version": (own_file(version=2), "version"),
    "no camera": (own_file(camera=None), "camera"),
    "unknown model": (own_file(camera={"model": "MAGIC", "width": 1, "height": 1, "params": []}), "MAGIC"),
    "huge picture": (
        own_file(camera={"model": "PINHOLE", "width": 10**9, "height": 1, "params": [1, 1, 1, 1]}),
        "width",
    ),
    "text for a number": (
        own_file(camera={"model": "PINHOLE", "width": 9, "height": 9, "params": ["1"]}),
        r"params\[0\]",
    ),
    "no frames": (own_file(frames=None), "frames"),
    "too many frames": (own_file(frames=10**7), "frames"),
    "half a frame": (own_file(frames=1.5), "frames"),
    "both kinds": (own_file(camera_to_world=[]), "either"),
    "no poses": (own_file(key_poses=[]), "key_poses"),
    "poses missing": (own_file(key_poses=None), "either"),
    "short pose": (with_entry(own_file(), "key_poses", 2, [[1, 0, 0, 0]]), r"key_poses\[2\]"),
    "mirrored pose": (with_entry(own_file(), "key_poses", 3, MIRRORED), r"key_poses\[3\].*rotation"),
    "scaled pose": (with_entry(own_file(), "key_poses", 1, SCALED), r"key_poses\[1\].*rotation"),
    "overflowing pose": (with_entry(own_file(), "key_poses", 1, HUGE), r"key_poses\[1\].*rotation"),
    "zero fps": (own_file(fps=0), "fps"),
    "infinite fps": (json.dumps(own_file()).replace('"fps": 24', '"fps": 1e999'), "fps"),
    "loop by word": (own_file(loop="yes"), "loop"),
    "fisheye": (nerfstudio_file(camera_type="fisheye"), "perspective"),
    "empty nerfstudio": (nerfstudio_file(camera_path=[]), "camera_path"),
    "no size": (nerfstudio_file(render_width=None), "render_width"),
    "nerfstudio without poses": (nerfstudio_file(camera_path=[{"fov": 50}]), r"camera_path\[0\]\.camera_to_world"),
    "nerfstudio of words": (nerfstudio_file(camera_path=["a"]), "camera_path"),
    "flat view": (nerfstudio_file(camera_path=[nerfstudio_file()["camera_path"][0] | {"fov": 180}]), "fov"),
    "no cameras listed": (transforms_file(frames=[]), "frames"),
    "cameras of words": (transforms_file(frames=["a"]), "frames"),
    "a camera without pose": (with_entry(transforms_file(), "frames", 2, {}), r"frames\[2\]\.transform_matrix"),
    "a list without lens": (transforms_file(fl_x=None, fl_y=None), r"frames\[0\].*focal length"),
    "a list of huge pictures": (transforms_file(w=10**9), r"frames\[0\].*w"),
    "a list with another lens": (transforms_file(ftheta_p0=1.0), "ftheta_p0"),
    "zoom": (
        with_entry(nerfstudio_file(), "camera_path", 2, nerfstudio_file()["camera_path"][2] | {"fov": 40}),
        r"camera_path\[2\]\.fov.*zoom",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_wrong_path_files_are_refused_by_place(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    with pytest.raises(DataError, match=message) as caught:
        read_path_file(write(tmp_path, content))
    assert "path.json" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_path_files_are_read_only_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, own_file())
    monkeypatch.setattr(path_files, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes"):
        read_path_file(file)


def test_rotations_with_few_digits_are_mended(tmp_path: Path) -> None:
    rounded = np.round(keys_on_a_bend(), 4)
    path = read_path_file(write(tmp_path, own_file(camera_to_world=rounded.tolist(), key_poses=None, frames=None)))
    rotation = path.camera_to_world[:, :, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (6, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(
        quaternions_from_rotations(rotation), quaternions_from_rotations(keys_on_a_bend()[:, :, :3]), atol=1e-3
    )
