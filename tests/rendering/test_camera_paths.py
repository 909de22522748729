"""Camera paths: geometry of the generated ones."""

from pathlib import Path

import numpy as np
import pytest
from rendering.captures import CAMERA, CAPTURES, Z, circle, keys_on_a_bend, posed, survey, walk

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.rendering.camera_paths import (
    PATH_KINDS,
    CameraPath,
    dataset,
    default_orbit,
    flythrough,
    interpolate,
    make_path,
    orbit,
    spiral,
)


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


@pytest.mark.parametrize("turned_by", [0.0, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("reach", [0.0, 0.7, 2.0])
def test_default_orbit_stays_on_the_side_that_was_photographed(turned_by: float, reach: float) -> None:
    angle = turned_by + np.linspace(-reach, reach, 9)
    eyes = 5 * np.column_stack([np.cos(angle), np.sin(angle), np.full(9, 0.3)])
    path = default_orbit(posed(eyes, np.zeros((9, 3))), np.zeros(3), frames=40)
    x, y = path.camera_to_world[:, 0, 3], path.camera_to_world[:, 1, 3]
    off = np.angle(np.exp(1j * (np.arctan2(y, x) - turned_by)))
    swing = max(reach, np.pi / 12)
    assert np.abs(off).max() == pytest.approx(swing, rel=0.01)
    assert off.min() == pytest.approx(-off.max(), rel=0.02)
    steps = np.linalg.norm(path.camera_to_world[:, :, 3] - np.roll(path.camera_to_world[:, :, 3], 1, axis=0), axis=1)
    assert steps.max() < 5 * swing * 2 * np.pi / 40 * 1.1  # closed, and nowhere a jump


def test_default_orbit_goes_all_around_where_photos_do() -> None:
    angle = np.linspace(0.0, 2 * np.pi, 9)[:-1]  # 45 degrees between neighbours
    eyes = 5 * np.column_stack([np.cos(angle), np.sin(angle), np.full(8, 0.3)])
    path = default_orbit(posed(eyes, np.zeros((8, 3))), np.zeros(3), frames=16)
    angles = np.unwrap(np.arctan2(path.camera_to_world[:, 1, 3], path.camera_to_world[:, 0, 3]))
    np.testing.assert_allclose(np.diff(angles), 2 * np.pi / 16)


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


def test_a_path_checks_its_shapes() -> None:
    poses = keys_on_a_bend()
    with pytest.raises(ValueError, match="times"):
        CameraPath(camera=CAMERA, camera_to_world=poses, times=np.zeros(3))
    with pytest.raises(ValueError, match="frames"):
        CameraPath(camera=CAMERA, camera_to_world=poses[:0], times=np.zeros(0))
    assert CameraPath(camera=CAMERA, camera_to_world=poses[:1], times=np.zeros(1)).fps > 0
