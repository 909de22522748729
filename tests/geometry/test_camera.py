"""Camera models and posed cameras."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.camera import PARAM_NAMES, Camera, PosedCameras, project, unproject

SIMPLE_PINHOLE = Camera("SIMPLE_PINHOLE", 640, 480, (500.0, 321.0, 239.0))
PINHOLE = Camera("PINHOLE", 640, 480, (500.0, 510.0, 321.0, 239.0))
CAMERAS = [
    SIMPLE_PINHOLE,
    PINHOLE,
    Camera("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.21)),
    Camera("RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.3, 0.12)),
    Camera("RADIAL", 640, 480, (500.0, 320.0, 240.0, 0.9, 0.5)),
    Camera("OPENCV", 640, 480, (500.0, 510.0, 322.0, 241.0, -0.25, 0.08, 0.012, -0.02)),
    Camera("OPENCV", 640, 480, (500.0, 510.0, 322.0, 241.0, -0.21, 0.0, 0.003, -0.004)),
    Camera("OPENCV_FISHEYE", 640, 480, (330.0, 335.0, 320.0, 240.0, 0.08, -0.02, 0.004, -0.0007)),
    # more than 180 degrees in the corners
    Camera("OPENCV_FISHEYE", 640, 480, (210.0, 215.0, 320.0, 240.0, 0.02, 0.001, 0.0, 0.0)),
    Camera("FULL_OPENCV", 640, 480, (500.0, 510.0, 320.0, 240.0, 0.4, 0.1, 0.003, -0.004, 0.02, 0.6, 0.15, 0.03)),
    Camera("FULL_OPENCV", 640, 480, (400.0, 410.0, 320.0, 240.0, -0.3, 0.1, 0.01, -0.004, 0.02, -0.1, 0.05, 0.01)),
    Camera("OPENCV_K4", 640, 480, (500.0, 510.0, 322.0, 241.0, -0.2, 0.08, 0.004, -0.003, 0.02, 0.015)),
]


def plain_formula(camera: Camera, point: Float64) -> tuple[float, float]:
    """The published model, one point at a time."""
    p = dict(zip(PARAM_NAMES[camera.model], camera.params, strict=True))
    x, y = point[0] / point[2], point[1] / point[2]
    r = math.hypot(x, y)
    k = [p.get(f"k{i}", 0.0) for i in range(7)]
    if camera.model == "OPENCV_FISHEYE":
        theta = math.atan(r)
        bent = theta * (1 + k[1] * theta**2 + k[2] * theta**4 + k[3] * theta**6 + k[4] * theta**8)
        u, v = x * bent / r, y * bent / r
    elif camera.model == "OPENCV_K4":
        radial = 1 + k[1] * r**2 + k[2] * r**4 + k[3] * r**6 + k[4] * r**8
        u = x * radial + 2 * p["p1"] * x * y + p["p2"] * (r**2 + 2 * x**2)
        v = y * radial + p["p1"] * (r**2 + 2 * y**2) + 2 * p["p2"] * x * y
    else:
        radial = (1 + k[1] * r**2 + k[2] * r**4 + k[3] * r**6) / (1 + k[4] * r**2 + k[5] * r**4 + k[6] * r**6)
        p1, p2 = p.get("p1", 0.0), p.get("p2", 0.0)
        u = x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
        v = y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
    return p.get("fx", p.get("f", 0.0)) * u + p["cx"], p.get("fy", p.get("f", 0.0)) * v + p["cy"]


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: str(camera.model))
def test_projection_follows_the_published_formulas(camera: Camera) -> None:
    points = np.random.default_rng(0).uniform([-0.4, -0.3, 1.0], [0.4, 0.3, 1.2], (200, 3)) * 7.0
    xy, valid = project(camera, points)
    assert valid.all()
    np.testing.assert_allclose(xy, [plain_formula(camera, point) for point in points], atol=1e-9)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: str(camera.model))
def test_every_pixel_has_a_ray_that_projects_back_onto_it(camera: Camera) -> None:
    x, y = np.meshgrid(np.arange(0, 640, 7) + 0.5, np.arange(0, 480, 7) + 0.5)
    xy = np.column_stack([x.ravel(), y.ravel()])
    xy = np.concatenate([xy, [[0, 0], [640, 480], [camera.cx, camera.cy]]])
    directions = unproject(camera, xy)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-15)
    distance = np.random.default_rng(0).uniform(0.01, 1e4, (len(xy), 1))
    back, valid = project(camera, directions * distance)
    assert valid.all()
    np.testing.assert_allclose(back, xy, rtol=0, atol=2e-9)
    camera.check_rays()


@settings(max_examples=150)
@given(
    st.sampled_from(["SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "OPENCV_K4"]),
    st.lists(st.floats(-0.6, 0.6), min_size=8, max_size=8),
    st.integers(0, 2**32),
)
def test_unprojection_finds_the_point_that_was_projected_whatever_the_distortion(
    model: str, coefficients: list[float], seed: int
) -> None:
    names = PARAM_NAMES[model]
    intrinsics = [300.0, 320.0, 240.0] if names[0] == "f" else [300.0, 310.0, 320.0, 240.0]
    strength = [
        c * (0.05 if name.startswith("p") else 1.0)
        for c, name in zip(coefficients, names[len(intrinsics) :], strict=False)
    ]
    camera = Camera(model, 640, 480, (*intrinsics, *strength))
    rng = np.random.default_rng(seed)
    # stay off the fold itself, where many points share a pixel to within rounding
    reach = min(camera.distortion.max_radius, 1.0) * 0.9
    angle, radius = rng.uniform(0, 2 * np.pi, 50), reach * rng.random(50)
    slant = np.tan(radius) if model == "OPENCV_FISHEYE" else radius
    points = np.column_stack([slant * np.cos(angle), slant * np.sin(angle), np.ones(50)])
    xy, valid = project(camera, points)
    is_radial = camera.distortion.tangential == (0.0, 0.0)
    if is_radial:
        assert valid.all()
    try:
        directions = unproject(camera, xy[valid])
    except CameraError:
        # strong tangential terms may fold beside the radius that the radial part allows
        assert not is_radial
        return
    back, again = project(camera, directions)
    assert again.all()
    np.testing.assert_allclose(back, xy[valid], rtol=0, atol=1e-8)
    if is_radial:
        np.testing.assert_allclose(directions[:, :2] / directions[:, 2:], points[valid, :2], atol=1e-7)


def test_pixels_beyond_the_fold_have_no_ray() -> None:
    camera = Camera("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.3))
    # g(r) = r − 0.3 r³ turns at r = 1 / sqrt(0.9), where it is 2/3 of that
    turn = 1 / math.sqrt(0.9)
    assert camera.distortion.max_radius == pytest.approx(turn, rel=1e-12)
    unproject(camera, np.array([[320.0 + 500 * (turn * 2 / 3 - 1e-6), 240.0]]))
    with pytest.raises(CameraError, match=r"none for 1 of 2, the first at \(0.0, 0.0\)"):
        unproject(camera, np.array([[320.0, 240.0], [0.0, 0.0]]))
    with pytest.raises(CameraError, match="folds over"):
        camera.check_rays()


def test_points_beyond_the_fold_or_behind_are_not_valid() -> None:
    camera = Camera("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.3))
    points = np.array([[0, 0, 1.0], [1.0, 0, 1], [1.06, 0, 1], [0, 0, -1], [0, 0, 0], [1, 0, 0], [np.nan, 0, 1]])
    xy, valid = project(camera, points)
    assert valid.tolist() == [True, True, False, False, False, False, False]
    assert np.isfinite(xy).all()
    _, valid = project(PINHOLE, points)
    assert valid.tolist() == [True, True, True, False, False, False, False]


def test_angles_beyond_a_fisheyes_fold_are_not_valid() -> None:
    camera = Camera("OPENCV_FISHEYE", 640, 480, (200.0, 200.0, 320.0, 240.0, -0.3, 0.0, 0.0, 0.0))
    # g(θ) = θ − 0.3 θ³ turns at 1 / sqrt(0.9) = 60.4 degrees
    angles = np.radians([60.0, 61.0, 120.0])
    _, valid = project(camera, np.column_stack([np.sin(angles), np.zeros(3), np.cos(angles)]))
    assert valid.tolist() == [True, False, False]


def test_points_where_tangential_distortion_folds_over_are_not_valid() -> None:
    camera = Camera("OPENCV", 640, 480, (500.0, 500.0, 320.0, 240.0, 0.0, 0.0, 0.0, 0.3))
    # u = x + 0.9 x² turns at x = −1 / 1.8
    _, valid = project(camera, np.array([[-0.55, 0, 1.0], [-0.56, 0, 1.0], [0.56, 0, 1.0]]))
    assert valid.tolist() == [True, False, True]


@pytest.mark.parametrize("camera", [CAMERAS[4], CAMERAS[5], CAMERAS[9]], ids=lambda camera: str(camera.model))
def test_the_jacobian_is_the_derivative(camera: Camera) -> None:
    x, y = np.random.default_rng(0).uniform(-0.7, 0.7, (2, 50))
    distort, h = camera.distortion._distort, 1e-6
    _, _, xx, cross, yy = distort(x, y)
    along_x = (np.array(distort(x + h, y)[:2]) - np.array(distort(x - h, y)[:2])) / (2 * h)
    along_y = (np.array(distort(x, y + h)[:2]) - np.array(distort(x, y - h)[:2])) / (2 * h)
    np.testing.assert_allclose(along_x, [xx, cross], atol=1e-8)
    np.testing.assert_allclose(along_y, [cross, yy], atol=1e-8)


def test_a_fisheye_sees_beside_and_behind_itself() -> None:
    wide = Camera("OPENCV_FISHEYE", 2000, 2000, (300.0, 300.0, 1000.0, 1000.0, 0.0, 0.0, 0.0, 0.0))
    points = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, -1.0], [0.0, 0.0, 2.0], [0.0, 0.0, -2.0]])
    xy, valid = project(wide, points)
    assert valid.tolist() == [True, True, True, False]
    expected = np.array([[1000 + 150 * np.pi, 1000], [1000 + 225 * np.pi, 1000], [1000, 1000]])
    np.testing.assert_allclose(xy[:3], expected)
    np.testing.assert_allclose(unproject(wide, xy[:2])[1], [math.sqrt(0.5), 0, -math.sqrt(0.5)], atol=1e-12)


@pytest.mark.parametrize(
    ("camera", "complaint"),
    [
        ({"model": "THIN_PRISM_FISHEYE"}, "THIN_PRISM_FISHEYE"),
        ({"params": (500.0, 510.0, 321.0)}, "expected 4 parameters"),
        ({"params": (500.0, math.nan, 321.0, 239.0)}, "finite"),
        ({"params": (500.0, 510.0, 1e300, 239.0)}, "sensible"),
        ({"params": (500.0, 0.0, 321.0, 239.0)}, "focal"),
        ({"params": (-500.0, 500.0, 321.0, 239.0)}, "focal"),
        ({"width": 0}, "0x480"),
    ],
)
def test_impossible_cameras_are_refused(camera: dict[str, object], complaint: str) -> None:
    with pytest.raises(CameraError, match=complaint):
        replace(PINHOLE, **camera)  # type: ignore[arg-type]


def test_focal_length_is_the_geometric_mean() -> None:
    assert PINHOLE.focal == pytest.approx(math.sqrt(500 * 510))
    assert SIMPLE_PINHOLE.focal == SIMPLE_PINHOLE.fx == SIMPLE_PINHOLE.fy == 500.0


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: str(camera.model))
def test_a_reduced_camera_sees_the_same_directions_at_scaled_pixels(camera: Camera) -> None:
    small = camera.scaled_down(3)
    assert (small.width, small.height) == (213, 160)
    xy = np.random.default_rng(0).uniform(0, [639, 480], (100, 2))
    np.testing.assert_allclose(unproject(small, xy / 3), unproject(camera, xy), atol=1e-12)


def test_reductions_that_leave_nothing_are_refused() -> None:
    assert PINHOLE.scaled_down(480).height == 1
    with pytest.raises(CameraError, match="640x480"):
        PINHOLE.scaled_down(481)
    with pytest.raises(ValueError, match="factor"):
        PINHOLE.scaled_down(0)


def poses(count: int, seed: int = 0) -> Float64:
    rng = np.random.default_rng(seed)
    rotations, _ = np.linalg.qr(rng.normal(size=(count, 3, 3)))
    rotations[np.linalg.det(rotations) < 0, :, 0] *= -1
    return np.concatenate([rotations, rng.normal(size=(count, 3, 1)) * 50], axis=2)


def posed(count: int = 6) -> PosedCameras:
    chosen = (CAMERAS[1], CAMERAS[5], CAMERAS[7])
    return PosedCameras(chosen, np.arange(count, dtype=np.int32) % 3, poses(count))


def test_rays_of_many_photos_hit_the_pixels_that_they_came_from() -> None:
    cameras = posed()
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 6, 500)
    xy = rng.uniform(0, [640, 480], (500, 2))
    origins, directions = cameras.rays(photo, xy)
    np.testing.assert_array_equal(origins, cameras.centres[photo])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-14)
    distance = rng.uniform(1, 100, (500, 1))
    for one in range(6):
        rows = photo == one
        back, depth, visible = cameras.project(one, (origins + directions * distance)[rows])
        np.testing.assert_allclose(back, xy[rows], atol=1e-7)
        np.testing.assert_allclose(depth, distance[rows, 0])
        assert visible.all()


def test_rays_of_one_photo_broadcast_and_none_are_fine() -> None:
    cameras = posed()
    xy = np.array([[10.5, 20.5], [300.5, 200.5]])
    np.testing.assert_array_equal(cameras.rays(4, xy)[1], cameras.rays(np.array([4, 4]), xy)[1])
    origins, directions = cameras.rays(np.empty(0, dtype=np.int64), np.empty((0, 2)))
    assert origins.shape == directions.shape == (0, 3)


def test_axes_are_x_right_y_down_z_forward() -> None:
    # looks along world +y with world z up, from (1, 2, 3)
    pose = np.array([[[1.0, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3]]])
    cameras = PosedCameras((Camera("PINHOLE", 100, 80, (100.0, 100.0, 50.0, 40.0)),), np.zeros(1, dtype=np.int32), pose)
    world = np.array([[1.0, 12, 3], [2.0, 12, 3], [1.0, 12, 4], [1.0, -8, 3], [9.0, 12, 3]])
    xy, depth, visible = cameras.project(0, world)
    np.testing.assert_allclose(xy[:3], [[50, 40], [60, 40], [50, 30]])
    np.testing.assert_allclose(depth[:2], [10, math.sqrt(101)])
    assert visible.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(cameras.forwards, [[0, 1, 0]])


def test_subset_keeps_order_and_drops_unused_intrinsics() -> None:
    cameras = posed()
    chosen = cameras.subset([5, 2])
    assert chosen.num_photos == 2
    assert chosen.cameras == (CAMERAS[7],)
    np.testing.assert_array_equal(chosen.camera_to_world, cameras.camera_to_world[[5, 2]])
    by_mask = cameras.subset(np.array([True, False, False, False, True, False]))
    assert [by_mask.camera(i) for i in range(2)] == [CAMERAS[1], CAMERAS[5]]
    np.testing.assert_allclose(by_mask.focals, [CAMERAS[1].focal, CAMERAS[5].focal])


def test_reduced_posed_cameras_cast_the_same_rays() -> None:
    cameras = posed()
    xy = np.array([[30.5, 40.5]])
    np.testing.assert_allclose(cameras.scaled_down(2).rays(1, xy / 2)[1], cameras.rays(1, xy)[1], atol=1e-12)
    np.testing.assert_allclose(cameras.scaled_down(2).focals, cameras.focals / 2)


def test_poses_and_indices_that_cannot_be_are_refused() -> None:
    index = np.zeros(3, dtype=np.int32)
    for columns, factor in ((slice(3, 4), np.nan), (slice(0, 3), 2.0), (slice(0, 3), -1.0), (slice(0, 3), np.inf)):
        pose = poses(3)
        pose[1, :, columns] *= factor
        with pytest.raises(CameraError, match="1 of 3 photos, the first at row 1"):
            PosedCameras((PINHOLE,), index, pose)
    with pytest.raises(CameraError, match="camera index"):
        PosedCameras((PINHOLE,), index + 1, poses(3))
    with pytest.raises(ValueError, match="camera_to_world"):
        PosedCameras((PINHOLE,), index, poses(2))


def test_posed_cameras_own_their_arrays() -> None:
    pose = poses(1)
    cameras = PosedCameras((PINHOLE,), np.zeros(1, dtype=np.int32), pose)
    pose[:] = 0
    assert np.abs(cameras.camera_to_world).max() > 0
    with pytest.raises(ValueError, match="read-only"):
        cameras.camera_to_world[0, 0, 0] = 1
