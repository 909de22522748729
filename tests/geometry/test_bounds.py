"""Root cube, deepest level and wanted levels from points and cameras."""

import numpy as np
import pytest

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.bounds import (
    convergence_point,
    finest_level,
    point_wanted_levels,
    root_cube_from_cameras,
    root_cube_from_points,
)
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.geometry.octree import inside_unit, unit_cells

CAMERA = Camera("PINHOLE", 400, 300, (400.0, 400.0, 200.0, 150.0))


def looking(centres: Float64, targets: Float64, camera: Camera = CAMERA) -> PosedCameras:
    forward = targets - centres
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    # any direction that is not parallel to the axis does for the image's x
    right = np.cross(forward, np.where(np.abs(forward[:, 2:]) > 0.9, [1.0, 0, 0], [0, 0, 1.0]))
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    pose = np.stack([right, down, forward, centres], axis=2)
    return PosedCameras((camera,), np.zeros(len(centres), dtype=np.int32), pose)


def survey(height: float = 100.0, ground: float = 30.0) -> PosedCameras:
    x, y = np.meshgrid(np.linspace(-180, 180, 7), np.linspace(-90, 90, 5))
    at = np.column_stack([x.ravel(), y.ravel(), np.full(x.size, ground)])
    return looking(at + np.array([0, 0, height]), at)


def flat_city(seed: int = 0, count: int = 20_000) -> Float64:
    """Ground at z = 30, a tenth of the points on roofs up to 20 higher, 0.3 % anywhere."""
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-200, 200, count), rng.uniform(-100, 100, count), rng.normal(30, 0.1, count)])
    points[: count // 10, 2] += rng.uniform(3, 20, count // 10)
    stray = count * 3 // 1000
    points[-stray:] = rng.normal(0, 1, (stray, 3)) * 5000
    return points


def share_inside(root: RootCube, points: Float64) -> float:
    return float(inside_unit(root.to_unit(points)).mean())


def test_the_cube_holds_the_city_and_ignores_stray_points() -> None:
    points = flat_city()
    root = root_cube_from_points(points, survey())
    assert share_inside(root, points) >= 0.99
    # the photos' ground reaches 50 m past the outermost cameras along x
    assert 460 <= root.edge <= 520


def test_flat_ground_is_far_from_every_node_face_and_most_of_the_cube_is_on_the_cameras_side() -> None:
    points = flat_city()
    root = root_cube_from_points(points, survey())
    height = float(root.to_unit(np.array([[0.0, 0.0, 30.0]]))[0, 2])
    assert 0.3 < height < 0.36
    for level in range(1, 6):
        fraction = height * 2**level % 1
        assert 0.2 < fraction < 0.8
    # the city lies in a single layer of nodes for as long as it fits
    kept = points[inside_unit(root.to_unit(points)) & (np.abs(points[:, 2] - 40) < 15)]
    assert len(np.unique(unit_cells(root.to_unit(kept), 2)[:, 2])) == 1
    below = root_cube_from_points(points * [1, 1, -1], looking(-survey().centres, -survey().centres + [0, 0, 1.0]))
    assert 0.64 < float(below.to_unit(np.array([[0.0, 0.0, -30.0]]))[0, 2]) < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_at_least_99_percent_of_the_points_are_inside_even_if_each_axis_has_its_own_strays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 10, (10_000, 3))
    for axis in range(3):
        rows = slice(axis * 90, axis * 90 + 90)
        points[rows, axis] += rng.choice([-1000, 1000], 90)
    assert share_inside(root_cube_from_points(points, survey()), points) >= 0.99


def test_a_handful_of_points_is_all_held() -> None:
    points = np.array([[0.0, 0, 0], [100, 0, 0], [0, 80, 10]])
    assert share_inside(root_cube_from_points(points, survey()), points) == 1.0


def test_ground_that_only_photo_corners_show_is_held() -> None:
    points = np.random.default_rng(0).uniform([-20, -20, 0], [20, 20, 1], (500, 3))
    cameras = looking(np.array([[0.0, 0, 100]]), np.zeros((1, 3)))
    root = root_cube_from_points(points, cameras)
    # 400 px at f = 400 px from 100 m: the photo is 100 m wide, along y here
    assert inside_unit(root.to_unit(np.array([[0, 45.0, 0.5], [0, -45.0, 0.5]]))).all()
    assert root.edge > 90
    assert root.edge < 130


def test_points_that_give_no_bounds_are_refused() -> None:
    apart = looking(np.array([[0.0, 0, 5]]), np.array([[0.0, 0, 10]]))
    for points in (np.empty((0, 3)), np.full((5, 3), np.nan)):
        with pytest.raises(DatasetError, match="at least one finite point"):
            root_cube_from_points(points, apart)
    with pytest.raises(DatasetError, match="spread"):
        root_cube_from_points(np.zeros((5, 3)), apart)


def ring(radius: float = 5.0, count: int = 24, target: tuple[float, float, float] = (10.0, 20.0, 1.0)) -> PosedCameras:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    centre = np.array(target)
    offset = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, 0.5 * radius)])
    return looking(centre + offset, np.tile(centre, (count, 1)))


def test_convergence_point_is_where_the_axes_meet() -> None:
    near = convergence_point(ring())
    assert near is not None
    np.testing.assert_allclose(near, [10.0, 20.0, 1.0], atol=1e-9)
    # far from the world's origin, as map coordinates are
    far = convergence_point(ring(target=(5e5, 5.7e6, 100.0)))
    assert far is not None
    np.testing.assert_allclose(far, [5e5, 5.7e6, 100.0], atol=1e-6)


def test_surveys_and_panoramas_converge_nowhere() -> None:
    assert convergence_point(survey()) is None
    inward = ring()
    outward = looking(inward.centres, 2 * inward.centres - [10.0, 20.0, 1.0])
    assert convergence_point(outward) is None
    oblique = np.array([[1.0, 0, -1], [-1, 0, -1], [0, 1, -1], [0, -1, -1]])
    centres = survey().centres
    assert convergence_point(looking(centres, centres + oblique[np.arange(len(centres)) % 4])) is None


def test_without_points_the_cube_reaches_out_around_the_convergence_point() -> None:
    cameras = ring()
    root = root_cube_from_cameras(cameras)
    np.testing.assert_allclose(root.to_unit(np.array([[10.0, 20.0, 1.0]])), 0.4, atol=1e-9)
    assert root.edge == pytest.approx(16 * 10.0, rel=0.05)
    assert root_cube_from_cameras(cameras, reach=4.0).edge == pytest.approx(root.edge / 4)
    assert inside_unit(root.to_unit(cameras.centres)).all()


def test_a_distant_convergence_point_widens_the_cube() -> None:
    x = np.linspace(-1, 1, 9)
    centres = np.column_stack([x, np.zeros(9), np.zeros(9)])
    cameras = looking(np.concatenate([centres, centres[:, [1, 0, 2]]]), np.tile([0.0, 0, 5.0], (18, 1)))
    root = root_cube_from_cameras(cameras, reach=1.0)
    assert root.edge == pytest.approx(5.0 / 0.4)
    assert inside_unit(root.to_unit(np.array([[0.0, 0.0, 1e-3]]))).all()


def test_a_survey_without_points_is_centred_on_its_cameras() -> None:
    root = root_cube_from_cameras(survey())
    np.testing.assert_allclose(root.to_unit(np.array([[0.0, 0.0, 130.0]])), 0.4)
    assert root.edge == pytest.approx(16 * 360.0)


def test_cameras_in_one_place_that_look_nowhere_in_common_are_refused() -> None:
    cameras = looking(np.zeros((3, 3)), np.eye(3))
    with pytest.raises(DatasetError, match="one place"):
        root_cube_from_cameras(cameras)
    with pytest.raises(DatasetError, match="at least one"):
        root_cube_from_cameras(cameras.subset([]))


def test_finest_level_follows_from_the_distance_of_the_points() -> None:
    # 100 m at f = 400 px: 0.25 m, which a root of 512 m with 128 cells reaches at level 4
    points = np.random.default_rng(0).uniform([-150, -80, 30], [150, 80, 30], (3000, 3))
    root = RootCube((-256.0, -256.0, 0.0), 512.0)
    assert finest_level(root, 128, survey(), points=points) == 4
    assert finest_level(root, 64, survey(), points=points) == 5
    assert finest_level(root, 128, survey(height=200.0), points=points) == 3
    assert finest_level(root, 128, survey(), 2, points=points) == 2
    assert finest_level(root, 128, survey(height=1e5), points=points) == 0


def test_finest_level_rounds_as_growth_does() -> None:
    points, root = np.zeros((1, 3)), RootCube((-1.0, -1.0, -1.0), 128.0)
    offsets, photos = np.array([0, 1]), np.array([0])
    for wanted, level in ((3.49, 3), (3.51, 4)):
        distance = 400.0 / 2**wanted
        cameras = looking(np.array([[0.0, 0.0, distance]]), points)
        found = finest_level(root, 128, cameras, points=points, track_offsets=offsets, track_photos=photos)
        assert found == level


def test_a_few_points_right_before_a_camera_do_not_deepen_the_octree() -> None:
    points = np.random.default_rng(0).uniform([-150, -80, 30], [150, 80, 30], (3000, 3))
    cameras, root = survey(), RootCube((-256.0, -256.0, 0.0), 512.0)
    points[:20] = cameras.centres[17] - [0, 0, 0.01]
    offsets = np.arange(3001)
    photos = np.full(3000, 17)
    assert finest_level(root, 128, cameras, points=points, track_offsets=offsets, track_photos=photos) <= 5
    assert finest_level(root, 128, cameras, points=points) == 4


def test_finest_level_without_points_follows_from_the_convergence_point() -> None:
    cameras = ring(radius=4.0)
    distance = 4.0 * np.sqrt(1.25)
    root = root_cube_from_cameras(cameras)
    assert finest_level(root, 128, cameras) == round(np.log2(root.edge / 128 * 400 / distance))
    # a survey: twice the spacing of 35 photos over 360 m is about 120 m
    assert finest_level(RootCube((0.0, 0.0, 0.0), 512.0), 128, survey()) == round(np.log2(4 * 400 / 121.7))


def test_finest_level_without_any_distance_is_refused() -> None:
    alone = looking(np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(DatasetError, match="SfM points"):
        finest_level(RootCube((0.0, 0.0, 0.0), 1.0), 128, alone)


def test_wanted_level_of_a_point_comes_from_its_finest_observer() -> None:
    wide = Camera("PINHOLE", 400, 300, (100.0, 400.0, 200.0, 150.0))  # focal 200
    index = np.array([0, 0, 1], dtype=np.int32)
    pose = np.tile(np.eye(3, 4), (3, 1, 1))
    pose[:, 2, 3] = [-8.0, -32.0, -2.0]
    cameras = PosedCameras((CAMERA, wide), index, pose)
    points = np.zeros((4, 3))
    points[3, 2] = 8.0
    # observers: {0, 1}, none, {1, 2}, {0}
    offsets, photos = np.array([0, 2, 2, 4, 5]), np.array([0, 1, 1, 2, 0], dtype=np.int32)
    found = point_wanted_levels(points, offsets, photos, cameras, gsd_root=0.64)
    # footprints 8/400, none, 2/200, 16/400
    np.testing.assert_allclose(found, [5.0, -np.inf, 6.0, 4.0])


def test_wanted_levels_agree_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    cameras, points = survey(), flat_city(count=400)
    lengths = rng.integers(0, 6, 400)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    photos = rng.integers(0, cameras.num_photos, offsets[-1])
    found = point_wanted_levels(points, offsets, photos, cameras, float(gsd(512.0, 128, 0)))
    for i, point in enumerate(points):
        seen = [np.linalg.norm(point - cameras.centres[p]) / 400 for p in photos[offsets[i] : offsets[i + 1]]]
        assert found[i] == (pytest.approx(np.log2(4.0 / min(seen))) if seen else -np.inf)
    assert point_wanted_levels(points, np.zeros(401, dtype=np.int64), photos[:0], cameras, 1.0).max() == -np.inf


def test_tracks_that_do_not_fit_are_refused() -> None:
    points, cameras = np.zeros((2, 3)), ring()
    for offsets, photos, complaint in (
        ([0, 1], [0], "track_offsets"),
        ([0, 1, 3], [0, 1], "track_offsets"),
        ([0, 2, 1], [0], "track_offsets"),
        ([0, 1, 2], [0, 24], "track_photos"),
        ([0, 1, 2], [0, -1], "track_photos"),
    ):
        with pytest.raises(ValueError, match=complaint):
            point_wanted_levels(points, np.array(offsets), np.array(photos), cameras, 1.0)
