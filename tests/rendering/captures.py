"""Poses of photos as people take them, for the tests of camera paths."""

import math

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import look_at, rotations_from_quaternions

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


def keys_on_a_bend() -> Float64:
    """Unevenly spaced poses that look ahead along a winding road."""
    t = np.array([0.0, 0.5, 1.5, 1.8, 3.0, 4.2])
    eyes = np.column_stack([10 * t, 6 * np.sin(t), 2 + 0.5 * np.cos(2 * t)])
    return look_at(eyes, eyes + np.column_stack([np.full(6, 10.0), 6 * np.cos(t), np.full(6, -1.0)]), Z)
