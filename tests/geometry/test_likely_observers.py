"""Likely observers: against the truth in a city, with closed forms, and within their bounds of time and memory."""

import numpy as np
import pytest

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.visibility import MIN_KEPT, gather_rows, likely_observers
from infnerf_tiles.synthetic.flight import plan_flight
from infnerf_tiles.synthetic.scene import City, block_bounds
from infnerf_tiles.synthetic.tracks import make_tracks

CAMERA = Camera("PINHOLE", 640, 480, (400.0, 400.0, 320.0, 240.0))


def looking(centres: Float64, targets: Float64, camera: Camera = CAMERA) -> PosedCameras:
    forward = (targets - centres) / np.linalg.norm(targets - centres, axis=1, keepdims=True)
    right = np.cross(forward, [0.03, 0.05, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    pose = np.stack([right, np.cross(forward, right), forward, centres], axis=2)
    return PosedCameras((camera,), np.zeros(len(centres), np.int32), pose)


def seen_by(found: tuple[Int64, Int32], num_photos: int) -> Bool:
    """bool[m, n]: which photo is said to see which point."""
    offsets, photos = found
    seen: Bool = np.zeros((len(offsets) - 1, num_photos), np.bool_)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    seen[owner, photos] = True
    assert seen.sum() == len(photos)  # nobody is named twice
    return seen


def in_image(points: Float64, cameras: PosedCameras) -> Bool:
    return np.stack([cameras.project(i, points)[2] for i in range(cameras.num_photos)], axis=1)


def walls() -> tuple[Float64, PosedCameras]:
    """2,000 points on a wall, 2,000 on a larger one behind it, and cameras in front."""
    rng = np.random.default_rng(0)
    near = np.stack([rng.uniform(-2, 2, 2000), np.full(2000, 6.0), rng.uniform(-1.5, 1.5, 2000)], axis=1)
    far = np.stack([rng.uniform(-8, 8, 2000), np.full(2000, 12.0), rng.uniform(-6, 6, 2000)], axis=1)
    x = np.linspace(-1.0, 1.0, 5)
    centres = np.stack([x, np.zeros(5), np.zeros(5)], axis=1)
    return np.concatenate([near, far]), looking(centres, centres + np.array([0.0, 1.0, 0.0]))


def test_what_a_wall_hides_is_not_seen_and_what_it_does_not_hide_is() -> None:
    points, cameras = walls()
    seen, inside = seen_by(likely_observers(points, cameras), 5), in_image(points, cameras)
    assert not (seen & ~inside).any()
    # where the sight of a far point crosses the near wall's plane, half way
    crossing = (points[2000:, None] + cameras.centres) / 2
    covered = (np.abs(crossing[..., 0]) < 2) & (np.abs(crossing[..., 2]) < 1.5)
    far = seen[2000:]
    assert (covered & inside[2000:]).sum() > 1000
    assert far[covered & inside[2000:]].mean() < 0.05
    assert far[~covered & inside[2000:]].mean() > 0.85  # but for cells that the wall's rim runs through
    assert seen[:2000][inside[:2000]].all()


def test_ground_at_a_grazing_angle_hides_nothing_of_itself() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-20, 20, 20_000), rng.uniform(1, 60, 20_000), np.zeros(20_000)], axis=1)
    cameras = looking(np.array([[0.0, 0.0, 1.7]]), np.array([[0.0, 10.0, 1.0]]))
    seen, inside = seen_by(likely_observers(points, cameras), 1), in_image(points, cameras)
    assert inside.sum() > 5000
    assert seen[inside].mean() > 0.97


@pytest.mark.parametrize(("num_photos", "num_points"), [(40, 4000), (9, 600)])
def test_a_city_from_the_air_is_seen_by_those_who_truly_see_it(num_photos: int, num_points: int) -> None:
    area = block_bounds((2, 2))
    cameras = plan_flight(area, num_photos=num_photos, size=(160, 120), seed=0)
    truth = make_tracks(City.generate((6, 6), 0), cameras, num_points, 0).points
    true = seen_by((truth.track_offsets, truth.track_photos), num_photos)
    seen, inside = seen_by(likely_observers(truth.xyz, cameras), num_photos), in_image(truth.xyz, cameras)
    assert seen[true].mean() > 0.97
    assert true[seen].mean() > 0.8
    away = np.linalg.norm(truth.xyz[:, None] - cameras.centres, axis=2) / cameras.focals
    finest, truly = (np.where(s, away, np.inf).min(axis=1) for s in (seen, true))
    # what growth follows from: the finest footprint, within a quarter of a level for nine in ten
    assert (np.abs(np.log2(finest / truly)) < 0.25).mean() > 0.9
    assert seen[inside].mean() < 1.0


def test_neither_the_order_of_points_nor_of_photos_counts() -> None:
    points, cameras = walls()
    rng = np.random.default_rng(1)
    rows, photos = rng.permutation(len(points)), rng.permutation(5)
    seen = seen_by(likely_observers(points, cameras), 5)
    other = seen_by(likely_observers(points[rows], cameras.subset(photos)), 5)
    np.testing.assert_array_equal(other, seen[rows][:, photos])


def test_projections_are_bounded_and_neighbours_share_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    points, cameras = walls()
    full = seen_by(likely_observers(points, cameras), 5)
    counted = []
    project = PosedCameras.project

    def counting(self: PosedCameras, photo: int, world: Float64) -> tuple[Float64, Float64, Bool]:
        counted.append(len(world))
        return project(self, photo, world)

    monkeypatch.setattr(PosedCameras, "project", counting)
    found = likely_observers(points, cameras, max_pairs=4000)
    assert 1000 < sum(counted) <= 4000 + 5
    assert (seen_by(found, 5) == full).mean() > 0.9


def test_observations_are_bounded_and_the_finest_stay() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (500, 3)) * [1.0, 1.0, 0.02]
    away = np.linspace(3.0, 9.0, 60)
    cameras = looking(np.stack([0.1 * away, -0.1 * away, away], axis=1), np.zeros((60, 3)))
    full = seen_by(likely_observers(points, cameras), 60)
    assert full.sum() == 500 * 60
    seen = seen_by(likely_observers(points, cameras, max_observations=500 * 20), 60)
    assert (seen.sum(axis=1) == 20).all()
    finest = np.argsort(np.linalg.norm(points[:, None] - cameras.centres, axis=2), axis=1)[:, :10]
    assert np.take_along_axis(seen, finest, axis=1).all()
    assert seen.any(axis=0).all()  # the photos from far above, too
    assert seen[:, 40:].sum(axis=0).min() > 30
    least = seen_by(likely_observers(points, cameras, max_observations=1), 60)
    assert (least.sum(axis=1) == MIN_KEPT).all()


def test_few_points_few_photos_and_strays() -> None:
    nobody = PosedCameras((), np.empty(0, np.int32), np.empty((0, 3, 4)))
    points, cameras = walls()
    for some, who in ((points[:0], cameras), (points, nobody)):
        offsets, photos = likely_observers(some, who)
        assert offsets.tolist() == [0] * (len(some) + 1)
        assert photos.tolist() == []
    one = cameras.subset([2])
    np.testing.assert_array_equal(seen_by(likely_observers(points[:1], one), 1), [[True]])
    np.testing.assert_array_equal(seen_by(likely_observers(points[:1] - [0.0, 12.0, 0.0], one), 1), [[False]])
    at_camera = np.concatenate([one.centres, np.repeat(points[:1], 9, axis=0)])
    assert seen_by(likely_observers(at_camera, one), 1)[:, 0].tolist() == [False] + [True] * 9
    # a point on its own in its part of the image is seen, however many lie nearer elsewhere
    assert seen_by(likely_observers(np.array([[-3.0, 6.0, 0.0], [3.0, 90.0, 0.0], [0.5, 3.0, 0.0]]), one), 1).all()
    strayed = np.concatenate([points, np.random.default_rng(0).normal(0.0, 1e9, (40, 3))])
    np.testing.assert_array_equal(
        seen_by(likely_observers(strayed, cameras), 5)[:2000], seen_by(likely_observers(points, cameras), 5)[:2000]
    )


def test_a_fisheye_sees_behind_itself() -> None:
    camera = Camera("OPENCV_FISHEYE", 640, 480, (150.0, 150.0, 320.0, 240.0, 0.02, 0.001, 0.0, 0.0))
    points = np.random.default_rng(0).normal(0.0, 1.0, (3000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    cameras = looking(np.zeros((1, 3)), np.array([[0.0, 1.0, 0.0]]), camera)
    seen, inside = seen_by(likely_observers(points, cameras), 1), in_image(points, cameras)
    assert (inside[:, 0] & (points[:, 1] < 0)).any()
    np.testing.assert_array_equal(seen, inside)


@pytest.mark.parametrize("most", [None, 1, 2, 5])
def test_rows_are_gathered_as_by_a_loop(most: int | None) -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(1000).astype(np.int32)
    lengths = rng.integers(0, 12, 200)
    starts = rng.integers(0, 980, 200)
    phase = rng.random(200)
    offsets, out = gather_rows(values, starts, lengths, most=most, phase=phase)
    for i in range(200):
        row = values[starts[i] : starts[i] + lengths[i]].tolist()
        got = out[offsets[i] : offsets[i + 1]].tolist()
        if most is None or len(row) <= most:
            assert got == row
            continue
        half = (most + 1) // 2
        assert len(got) == len(set(got)) == most
        assert got[:half] == row[:half]
        assert set(got[half:]) <= set(row[half:])
