"""Cones around photos: whatever a ray of a photo meets is in its cone; what lies behind it is not."""

import numpy as np
import pytest

from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.views import cone_angle, may_see

CAMERAS = (
    Camera("PINHOLE", 64, 48, (60.0, 55.0, 32.0, 24.0)),
    Camera("PINHOLE", 64, 48, (60.0, 60.0, 5.0, 60.0)),  # the principal point beyond the image
    Camera("OPENCV", 64, 48, (50.0, 50.0, 31.0, 25.0, -0.2, 0.03, 0.002, -0.001)),
    Camera("OPENCV_FISHEYE", 80, 80, (28.0, 28.0, 40.0, 40.0, 0.02, -0.004, 0.0, 0.0)),
)


def poses(rng: np.random.Generator, count: int) -> PosedCameras:
    q, _ = np.linalg.qr(rng.normal(size=(count, 3, 3)))
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    centres = rng.uniform(-20, 20, (count, 3))
    pose = np.concatenate([q, centres[:, :, None]], axis=2)
    return PosedCameras(CAMERAS, rng.integers(0, len(CAMERAS), count).astype(np.int32), pose)


def test_every_ray_is_in_its_photos_cone(rng: np.random.Generator) -> None:
    cameras = poses(rng, 40)
    for photo in range(40):
        camera = cameras.camera(photo)
        xy = rng.random((400, 2)) * [camera.width - 1, camera.height - 1] + 0.5
        _, directions = cameras.rays(photo, xy)
        angles = np.arccos(np.clip(directions @ cameras.forwards[photo], -1, 1))
        assert angles.max() <= cone_angle(camera)
        assert angles.max() > 0.6 * cone_angle(camera)


def test_a_photo_whose_ray_meets_a_sphere_may_see_it(rng: np.random.Generator) -> None:
    cameras = poses(rng, 60)
    centres, radii = rng.uniform(-25, 25, (200, 3)), rng.uniform(0.05, 3.0, 200)
    photos = np.arange(60)
    told = np.stack([may_see(cameras, photos, centres[k : k + 1], radii[k : k + 1]) for k in range(200)], axis=1)
    meets = np.zeros((60, 200), np.bool_)
    for photo in range(60):
        camera = cameras.camera(photo)
        x, y = np.meshgrid(np.linspace(0.5, camera.width - 0.5, 30), np.linspace(0.5, camera.height - 0.5, 30))
        origins, directions = cameras.rays(photo, np.stack([x.ravel(), y.ravel()], axis=1))
        away = centres[None] - origins[:, None]
        along = np.maximum((away * directions[:, None]).sum(axis=2), 0.0)
        miss = np.linalg.norm(away - along[..., None] * directions[:, None], axis=2)
        meets[photo] = (miss <= radii).any(axis=0)
    assert meets.any()
    assert not (meets & ~told).any()
    assert told.sum() < 3 * meets.sum()  # one principal point is far off the middle
    # many at once: any of them
    assert np.array_equal(may_see(cameras, photos, centres, radii), told.any(axis=1))
    assert np.array_equal(may_see(cameras, photos[5:9], centres[:3], radii[:3]), told[5:9, :3].any(axis=1))


def test_what_lies_behind_is_not_seen() -> None:
    pose = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)[None]
    cameras = PosedCameras(CAMERAS[:1], np.zeros(1, np.int32), pose)
    at = np.array([[0.0, 0.0, 10.0], [0.0, 0.0, -10.0], [0.0, 0.0, -0.5], [9.0, 0.0, 10.0]])
    assert [bool(may_see(cameras, np.zeros(1, np.int64), p[None], np.ones(1))[0]) for p in at] == [
        True, False, True, False,
    ]  # fmt: skip


def test_a_camera_without_a_ray_somewhere_may_see_all() -> None:
    folded = Camera("SIMPLE_RADIAL", 64, 48, (40.0, 32.0, 24.0, -3.0))
    assert cone_angle(folded) == pytest.approx(np.pi)
