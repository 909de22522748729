"""What the photos tell of a scene: which way is up, what they look at, what camera suits a path."""

import numpy as np
import pytest
from rendering.captures import CAPTURES, Z, circle, posed, survey, turned, walk

from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import rotations_from_quaternions
from infnerf_tiles.rendering.vantage import focus_point, path_camera, world_up


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
