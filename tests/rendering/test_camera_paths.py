"""Camera paths: geometry of the generated ones, what the photos tell, and path files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import DataError, DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import look_at, quaternions_from_rotations, rotations_from_quaternions
from infnerf_tiles.rendering import path_files
from infnerf_tiles.rendering.camera_paths import (
    PATH_KINDS,
    CameraPath,
    dataset,
    default_orbit,
    flythrough,
    interpolate,
    make_path,
    orbit,
    read_path_file,
    spiral,
    write_path_file,
)
from infnerf_tiles.rendering.vantage import focus_point, path_camera, world_up

CAMERA = Camera(model="PINHOLE", width=320, height=240, params=(300.0, 300.0, 160.0, 120.0))
Z = np.array([0.0, 0.0, 1.0])


def posed(eyes: Float64, targets: Float64, up: Float64 = Z, cameras: tuple[Camera, ...] = (CAMERA,)) -> PosedCameras:
    index = np.arange(len(eyes), dtype=np.int32) % len(cameras)
    return PosedCameras(cameras=cameras, camera_index=index, camera_to_world=look_at(eyes, targets, up))


def turned(cameras: PosedCameras, rotation: Float64) -> PosedCameras:
    """The same photos in a world frame turned by a rotation."""
    return PosedCameras(
        cameras=cameras.cameras, camera_index=cameras.camera_index, camera_to_world=rotation @ cameras.camera_to_world
    )


def survey() -> PosedCameras:
    """A drone's lawnmower pattern: straight down, the heading turned by half a circle on every other line."""
    x, y = np.meshgrid(np.arange(6.0), np.arange(6.0), indexing="ij")
    eyes = np.stack([x.ravel() * 10, y.ravel() * 10, np.full(36, 50.0)], axis=1)
    poses = look_at(eyes, eyes - [0, 0, 50.0], np.array([0.0, 1.0, 0.0]))
    poses[x.ravel() % 2 == 1, :, :2] *= -1
    tilt = rotations_from_quaternions(np.random.default_rng(0).normal([1, 0, 0, 0], [0, 0.03, 0.03, 0.1], size=(36, 4)))
    poses[:, :, :3] = poses[:, :, :3] @ tilt
    return PosedCameras(cameras=(CAMERA,), camera_index=np.zeros(36, dtype=np.int32), camera_to_world=poses)


def walk(pitch: float = -0.1, heading_spread: float = math.pi) -> PosedCameras:
    """Photos on foot, camera held upright, looking in many directions."""
    rng = np.random.default_rng(1)
    eyes = np.column_stack([rng.uniform(0, 20, size=(40, 2)), rng.normal(1.7, 0.05, size=40)])
    heading = rng.uniform(-heading_spread, heading_spread, size=40)
    targets = eyes + np.column_stack([np.cos(heading), np.sin(heading), np.full(40, math.tan(pitch))])
    return posed(eyes, targets)


def circle(tilt: float) -> PosedCameras:
    """Photos around an object, looking down at it by `tilt` radians."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    eyes = 5 * np.column_stack([np.cos(angle), np.sin(angle), np.full(24, math.tan(tilt))]) + [3.0, 4.0, 1.0]
    return posed(eyes, np.broadcast_to([3.0, 4.0, 1.0], eyes.shape))


def on_its_side(cameras: PosedCameras) -> PosedCameras:
    """The same photos with the camera turned by a quarter about its view: portrait shots stored as landscape."""
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    poses = cameras.camera_to_world.copy()
    poses[:, :, :3] = poses[:, :, :3] @ quarter
    return PosedCameras(cameras=cameras.cameras, camera_index=cameras.camera_index, camera_to_world=poses)


CAPTURES = {
    "survey": survey(),
    "walk": walk(),
    "walk looking one way": walk(heading_spread=0.6),
    "portrait walk": on_its_side(walk()),
    "low circle": circle(0.2),
    "high circle": circle(1.2),
    "half way": circle(math.pi / 4),
}


@pytest.mark.parametrize("name", CAPTURES)
def test_world_up_is_found_in_any_world_frame(name: str) -> None:
    rotation = rotations_from_quaternions(np.random.default_rng(2).normal(size=(5, 4)))
    for turn in rotation:
        up = world_up(turned(CAPTURES[name], turn))
        assert np.degrees(np.arccos(np.clip(up @ turn @ Z, -1, 1))) < 3.0
        assert np.linalg.norm(up) == pytest.approx(1.0)


def test_photos_pitched_down_in_one_direction_do_not_tilt_the_vertical_much() -> None:
    pitch = -0.35
    up_is_minus_y = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # the frame of an untouched reconstruction
    up = world_up(turned(walk(pitch=pitch, heading_spread=0.7), up_is_minus_y))
    assert np.arccos(up @ up_is_minus_y @ Z) < abs(pitch) / 3


def test_photos_from_above_with_one_heading_are_told_from_photos_of_a_wall_by_the_world_frame() -> None:
    eyes = np.array([[x, y, 50.0] for x in range(4) for y in range(4)])
    from_a_kite = posed(eyes, eyes + np.array([0.0, 15.0, -50.0]), up=np.array([0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(world_up(from_a_kite), Z)
    of_a_wall = posed(eyes, eyes + np.array([0.0, 50.0, -15.0]))
    np.testing.assert_array_equal(world_up(of_a_wall), Z)


def test_focus_is_where_the_photos_look() -> None:
    np.testing.assert_allclose(focus_point(circle(0.4)), [3.0, 4.0, 1.0], atol=0.02)


def test_focus_of_parallel_views_lies_in_front_of_them() -> None:
    eyes = np.array([[x, y, 10.0] for x in range(3) for y in range(3)])
    focus = focus_point(posed(eyes, eyes - Z))
    np.testing.assert_allclose(focus[:2], [1.0, 1.0], atol=1e-9)
    assert focus[2] < 10.0


def test_focus_of_shaky_views_from_above_is_not_among_the_cameras() -> None:
    assert focus_point(survey())[2] < 40.0


def test_path_camera_is_the_most_used_one_and_shows_no_more_than_it() -> None:
    rare = Camera(model="PINHOLE", width=100, height=100, params=(50.0, 50.0, 50.0, 50.0))
    common = Camera(model="SIMPLE_RADIAL", width=400, height=300, params=(400.0, 210.0, 140.0, 0.1))
    cameras = PosedCameras(
        cameras=(rare, common),
        camera_index=np.array([1, 0, 1], np.int32),
        camera_to_world=circle(0.1).camera_to_world[:3],
    )
    assert path_camera(cameras) == Camera(model="PINHOLE", width=400, height=300, params=(400.0, 400.0, 200.0, 150.0))
    for size in ((1280, 720), (300, 600), (400, 300)):
        wide = path_camera(cameras, size)
        assert (wide.width, wide.height) == size
        half_views = (wide.width / wide.fx / 2, wide.height / wide.fy / 2)
        assert half_views[0] <= 0.5 + 1e-12
        assert half_views[1] <= 0.375 + 1e-12
        assert half_views[0] == pytest.approx(0.5) or half_views[1] == pytest.approx(0.375)


@pytest.mark.parametrize("up", [Z, np.array([1.0, 2.0, 0.5]), np.array([-1.0, 0.0, 0.0])])
def test_orbit_is_a_level_circle_that_looks_at_its_target(up: Float64) -> None:
    centre, target = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 2.0])
    path = orbit(CAMERA, centre=centre, radius=4.0, height=2.5, look_at=target, frames=16, up=up)
    axis = up / np.linalg.norm(up)
    offset = path.camera_to_world[:, :, 3] - centre
    np.testing.assert_allclose(offset @ axis, 2.5, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(offset - 2.5 * axis, axis=1), 4.0, atol=1e-9)
    np.testing.assert_allclose(path.camera_to_world[:, :, 0] @ axis, 0.0, atol=1e-9)  # level horizon
    assert (path.camera_to_world[:, :, 1] @ axis < 0).all()  # y is down
    towards = target - path.camera_to_world[:, :, 3]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(path.camera_to_world[:, :, 2], towards, atol=1e-9)
    # Closed: the step from the last frame to the first is like any other.
    steps = np.linalg.norm(offset - np.roll(offset, 1, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0])


def test_spiral_shrinks_by_the_same_factor_every_frame() -> None:
    path = spiral(CAMERA, centre=np.zeros(3), radius=8.0, height=4.0, frames=31, zoom=4.0)
    distance = np.linalg.norm(path.camera_to_world[:, :, 3], axis=1)
    np.testing.assert_allclose(distance[0] / distance[-1], 4.0)
    np.testing.assert_allclose(distance[1:] / distance[:-1], 4.0 ** (-1 / 30))


def keys_on_a_bend() -> Float64:
    """Unevenly spaced poses that look ahead along a winding road."""
    t = np.array([0.0, 0.5, 1.5, 1.8, 3.0, 4.2])
    eyes = np.column_stack([10 * t, 6 * np.sin(t), 2 + 0.5 * np.cos(2 * t)])
    return look_at(eyes, eyes + np.column_stack([np.full(6, 10.0), 6 * np.cos(t), np.full(6, -1.0)]), Z)


def turn_angles(poses: Float64) -> Float64:
    relative = poses[:-1, :, :3].transpose(0, 2, 1) @ poses[1:, :, :3]
    cosine = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))), dtype=np.float64)


@pytest.mark.parametrize("loop", [False, True])
def test_flight_passes_its_keys_at_constant_speed(loop: bool) -> None:
    keys = keys_on_a_bend()
    poses = flythrough(CAMERA, keys, frames=400, loop=loop).camera_to_world
    speed = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=1)
    if not loop:  # the way back turns by half a circle and may be slower for it
        np.testing.assert_allclose(speed, speed.mean(), rtol=0.01)
        np.testing.assert_allclose(poses[0], keys[0], atol=1e-9)
        np.testing.assert_allclose(poses[-1], keys[-1], atol=1e-9)
    np.testing.assert_array_less(speed, 1.6 * speed.mean())
    for key in keys:
        nearest = np.argmin(np.linalg.norm(poses[:, :, 3] - key[:, 3], axis=1))
        assert np.linalg.norm(poses[nearest, :, 3] - key[:, 3]) < speed.max()
        assert turn_angles(np.stack([poses[nearest], key]))[0] < 3.0
    np.testing.assert_allclose(np.linalg.det(poses[:, :, :3]), 1.0)


@pytest.mark.parametrize("loop", [False, True])
def test_flight_has_no_kinks_in_place_or_orientation(loop: bool) -> None:
    def sharpest(frames: int) -> tuple[float, float]:
        """(largest bend between steps, largest change of the turning between steps), degrees."""
        poses = flythrough(CAMERA, keys_on_a_bend(), frames=frames, loop=loop).camera_to_world
        if loop:
            poses = np.concatenate([poses, poses[:2]])  # across the seam
        step = np.diff(poses[:, :, 3], axis=0)
        direction = step / np.linalg.norm(step, axis=1, keepdims=True)
        bend = np.degrees(np.arccos(np.clip((direction[1:] * direction[:-1]).sum(axis=1), -1, 1)))
        return float(bend.max()), float(np.abs(np.diff(turn_angles(poses))).max())

    # On a smooth curve they shrink with the step and with its square; a corner, or a jump in the rate, would not.
    (bend, change), (finer_bend, finer_change) = sharpest(1000), sharpest(4000)
    assert finer_bend < 0.4 * bend
    assert finer_change < 0.15 * change


def test_flight_through_every_hemisphere_of_quaternions_takes_the_short_way() -> None:
    angles = np.radians(np.arange(0, 720, 40))  # two full turns: the quaternion changes sign on the way
    eyes = np.column_stack([angles, np.zeros_like(angles), np.zeros_like(angles)])
    keys = look_at(eyes, eyes + np.column_stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)]), Z)
    keys = keys[:, :, :]
    poses = flythrough(CAMERA, keys, frames=681).camera_to_world
    np.testing.assert_allclose(turn_angles(poses), 1.0, atol=0.1)


def test_turning_on_the_spot_is_a_turn_and_not_a_cut() -> None:
    here, there = np.zeros((1, 3)), np.array([[10.0, 0.0, 0.0]])
    ahead, aside = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    keys = np.concatenate([look_at(here, ahead, Z), look_at(there, there + ahead, Z), look_at(there, there + aside, Z)])
    assert turn_angles(flythrough(CAMERA, keys, frames=100).camera_to_world).max() < 6.0
    only_turning = flythrough(CAMERA, keys[1:], frames=91).camera_to_world
    np.testing.assert_allclose(turn_angles(only_turning), 1.0, atol=0.7)


def test_flight_with_repeated_or_single_keys_stands_still() -> None:
    key = keys_on_a_bend()[:1]
    for keys in (key, np.repeat(key, 3, axis=0)):
        for loop in (False, True):
            poses = flythrough(CAMERA, keys, frames=5, loop=loop).camera_to_world
            np.testing.assert_allclose(poses, np.repeat(key, 5, axis=0))
    repeated = np.repeat(keys_on_a_bend(), 2, axis=0)
    np.testing.assert_allclose(
        flythrough(CAMERA, repeated, frames=50).camera_to_world,
        flythrough(CAMERA, keys_on_a_bend(), frames=50).camera_to_world,
    )


def test_interpolation_passes_photos_in_order() -> None:
    cameras = walk(heading_spread=0.5)
    order = np.argsort(cameras.centres[:, 0])
    poses = cameras.camera_to_world[order]
    path = interpolate(CAMERA, poses, frames=2000)
    centres = path.camera_to_world[:, :, 3]
    nearest = [int(np.argmin(np.linalg.norm(centres - eye, axis=1))) for eye in poses[:, :, 3]]
    assert max(np.linalg.norm(centres[i] - eye) for i, eye in zip(nearest, poses[:, :, 3], strict=True)) < 0.2
    assert interpolate(CAMERA, poses, frames=45).num_frames == 45  # fewer frames than photos to pass


def test_dataset_path_is_the_photos_own() -> None:
    cameras = circle(0.3)
    path = dataset(cameras, size=(64, 48), fps=10)
    np.testing.assert_array_equal(path.camera_to_world, cameras.camera_to_world)
    assert path.fps == pytest.approx(10)
    assert (path.camera.width, path.camera.height) == (64, 48)
    assert dataset(cameras, frames=3).num_frames == 3


@pytest.mark.parametrize("name", CAPTURES)
def test_default_orbit_looks_at_the_content_from_where_the_photos_were(name: str) -> None:
    cameras = CAPTURES[name]
    centre = np.array([25.0, 25.0, 0.0]) if name == "survey" else np.array([3.0, 4.0, 1.0])
    path = default_orbit(cameras, centre, frames=8)
    height = path.camera_to_world[:, 2, 3] - centre[2]
    np.testing.assert_allclose(height, np.median(cameras.centres[:, 2] - centre[2]), rtol=0.15, atol=0.6)
    towards = centre - path.camera_to_world[:, :, 3]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(path.camera_to_world[:, :, 2], towards, atol=1e-9)


@pytest.mark.parametrize("kind", PATH_KINDS)
@pytest.mark.parametrize("name", ["survey", "walk"])
def test_every_named_path_can_be_made_from_photos(kind: str, name: str) -> None:
    path = make_path(kind, CAPTURES[name], frames=12, size=(80, 60), fps=24)
    assert path.num_frames == 12
    assert (path.camera.width, path.camera.height) == (80, 60)
    assert path.fps == pytest.approx(24)
    PosedCameras(  # which refuses anything but rotations
        cameras=(path.camera,), camera_index=np.zeros(12, dtype=np.int32), camera_to_world=path.camera_to_world
    )
    if name == "survey":
        assert (path.camera_to_world[:, 2, 3] > 5.0).all()  # stays above the ground


def test_unknown_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="orbit, spiral, flythrough, interpolate, dataset or a path file, got 'orbits'"
    ):
        make_path("orbits", survey())
    with pytest.raises(SettingsError, match=r"missing\.json"):
        make_path(str(tmp_path / "missing.json"), survey())
    with pytest.raises(SettingsError, match="frames"):
        make_path("orbit", survey(), frames=0)
    with pytest.raises(DatasetError, match="poses"):
        make_path("orbit", survey().subset(np.array([], dtype=np.int64)))


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
    "something else": ({"frames": []}, "camera_path"),
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


def test_a_path_checks_its_shapes() -> None:
    poses = keys_on_a_bend()
    with pytest.raises(ValueError, match="times"):
        CameraPath(camera=CAMERA, camera_to_world=poses, times=np.zeros(3))
    with pytest.raises(ValueError, match="frames"):
        CameraPath(camera=CAMERA, camera_to_world=poses[:0], times=np.zeros(0))
    assert CameraPath(camera=CAMERA, camera_to_world=poses[:1], times=np.zeros(1)).fps > 0
