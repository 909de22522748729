"""Borders of many cameras at once: the same answers as one camera at a time."""

import math

import numpy as np
import pytest

from infnerf_tiles.data.checks import camera_problems
from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.border import border_positions, view_angles
from infnerf_tiles.geometry.camera import PARAM_NAMES, Camera, unproject


def random_cameras(strength: float, count: int = 150) -> list[Camera]:
    """Cameras of all models and sizes, with coefficients of about `strength`, some of them zero."""
    rng = np.random.default_rng(int(strength * 1000))
    made = []
    for _ in range(count):
        model = str(rng.choice(list(PARAM_NAMES)))
        width, height = (int(v) for v in rng.integers(1, 6000, 2))
        focal = max(width, height) * float(np.exp(rng.uniform(-1.2, 1.2)))
        of_name = {"f": focal, "fx": focal, "fy": focal * rng.uniform(0.95, 1.05), "cx": width / 2, "cy": 0.4 * height}
        params = []
        for name in PARAM_NAMES[model]:
            coefficient = rng.normal() * strength * (0.05 if name[0] == "p" else 1.0) * (rng.random() < 0.8)
            params.append(float(of_name.get(name, coefficient)))
        made.append(Camera(model, width, height, tuple(params)))
    return made


def farthest(camera: Camera) -> float | None:
    """The angle of the farthest border ray, one camera at a time; None if one is missing."""
    try:
        directions = unproject(camera, border_positions(camera))
    except CameraError:
        return None
    return float(np.arctan2(np.hypot(directions[:, 0], directions[:, 1]), directions[:, 2]).max())


@pytest.mark.parametrize(("strength", "share"), [(0.01, 0.99), (0.3, 0.9), (5.0, 0.7), (100.0, 0.6)])
def test_a_number_is_the_angle_of_the_farthest_border_ray(strength: float, share: float) -> None:
    cameras = random_cameras(strength)
    expected = [farthest(camera) for camera in cameras]
    good = sum(angle is not None for angle in expected)
    assert 0 < good < len(cameras)
    quick = 0
    for camera, angle, truth in zip(cameras, view_angles(cameras).tolist(), expected, strict=True):
        if not math.isnan(angle):
            assert truth is not None, camera
            assert angle == pytest.approx(truth, abs=1e-6)
            quick += 1
    assert quick >= share * good


def test_the_answers_are_those_of_one_camera_at_a_time() -> None:
    cameras = [*random_cameras(0.3), "no such camera", Camera("PINHOLE", 3, 900, (500.0, 500.0, 1.0, 450.0))]
    problems = camera_problems(cameras, 4)
    for camera, problem in zip(cameras, problems, strict=True):
        if isinstance(camera, str):
            assert problem == camera
        elif min(camera.width, camera.height) < 4:
            assert "less than one pixel at 1/4 size" in str(problem)
        else:
            assert (problem is None) == (farthest(camera) is not None)
            assert problem is None or "folds over" in problem
    assert camera_problems([], 1) == []


def test_cameras_of_their_own_cost_no_look_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an ordinary lens was looked at by itself")

    monkeypatch.setattr("infnerf_tiles.data.checks.unproject", never)
    lens = (320.0, 240.0, -0.25, 0.08, 0.012, -0.02)
    cameras = [Camera("OPENCV", 640, 480, (500.0 + 0.01 * i, 510.0, *lens)) for i in range(2000)]
    assert camera_problems(cameras, 1) == [None] * 2000
