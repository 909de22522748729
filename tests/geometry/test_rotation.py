"""Rotations and look-at poses."""

import numpy as np

from infnerf_tiles.geometry.rotation import (
    look_at,
    nearest_rotations,
    quaternions_from_rotations,
    rotations_from_quaternions,
)


def test_quaternions_round_trip_through_matrices_at_every_angle() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(500, 4))
    half_turns = np.eye(4)  # w = 0 is where naive formulas cancel
    almost_half_turns = np.array([[1e-9, 0.6, 0.8, 0.0], [1e-9, 0.0, -0.6, 0.8]])
    q = np.concatenate([q, half_turns, almost_half_turns])
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    rotations = rotations_from_quaternions(q)
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (len(q), 1, 1)), atol=1e-12)
    back = quaternions_from_rotations(rotations)
    np.testing.assert_allclose(np.abs((back * q).sum(axis=1)), 1.0, atol=1e-12)
    assert (back[:, 0] >= 0).all()


def test_quaternion_turns_the_way_its_axis_says() -> None:
    quarter_about_z = np.array([[np.cos(np.pi / 4), 0.0, 0.0, np.sin(np.pi / 4)]])
    np.testing.assert_allclose(
        rotations_from_quaternions(quarter_about_z)[0] @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], atol=1e-12
    )


def test_look_at_has_opencv_axes_and_a_level_horizon() -> None:
    pose = look_at(np.array([[0.0, -5.0, 2.0]]), np.array([[0.0, 0.0, 2.0]]), np.array([0.0, 0.0, 3.0]))[0]
    np.testing.assert_allclose(pose[:, 0], [1.0, 0.0, 0.0], atol=1e-12)  # looking north, east is right
    np.testing.assert_allclose(pose[:, 1], [0.0, 0.0, -1.0], atol=1e-12)  # y points down
    np.testing.assert_allclose(pose[:, 2], [0.0, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(pose[:, 3], [0.0, -5.0, 2.0])


def test_look_at_gives_rotations_where_the_horizon_is_undefined() -> None:
    eye = np.array([[0.0, 0.0, 5.0], [1.0, 1.0, 1.0]])
    target = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for up in np.eye(3):
        rotations = look_at(eye, target, up)[:, :, :3]
        np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-12)
        np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (2, 1, 1)), atol=1e-12)


def test_nearest_rotation_removes_rounding_and_never_mirrors() -> None:
    rng = np.random.default_rng(1)
    true = rotations_from_quaternions(rng.normal(size=(50, 4)))
    near = nearest_rotations(true + rng.normal(scale=1e-4, size=true.shape))
    np.testing.assert_allclose(near @ near.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(near, true, atol=1e-3)
    assert (np.linalg.det(nearest_rotations(-true)) > 0).all()
