"""The survey: how many photos, from where, and what they cover."""

import numpy as np
import pytest

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.synthetic.flight import footprint_boxes, plan_flight
from infnerf_tiles.synthetic.layout import MAX_HEIGHT

AREA = (-90.0, -90.0, 90.0, 90.0)


def plan(num_photos: int = 60) -> PosedCameras:
    return plan_flight(AREA, num_photos=num_photos, size=(320, 240), seed=0)


@pytest.mark.parametrize("num_photos", [1, 2, 7, 20, 60, 333])
def test_every_survey_has_exactly_as_many_photos_as_asked_for(num_photos: int) -> None:
    cameras = plan(num_photos)
    assert cameras.num_photos == num_photos
    assert cameras.centres[:, 2].min() > MAX_HEIGHT


def test_heights_span_two_octaves_and_obliques_look_four_ways() -> None:
    cameras = plan()
    heights = cameras.centres[:, 2] / np.median(cameras.centres[:, 2])
    assert (np.abs(heights - 0.5) < 0.05).sum() >= 5
    assert (np.abs(heights - 2.0) < 0.1).sum() >= 3
    forward = cameras.forwards
    nadir = forward[:, 2] < -0.98
    assert 30 <= nadir.sum() <= 45
    oblique = forward[~nadir]
    np.testing.assert_allclose(oblique[:, 2], -np.sqrt(0.5), atol=0.12)
    quarter = np.round(np.arctan2(oblique[:, 1], oblique[:, 0]) / (np.pi / 2)).astype(int) % 4
    assert (np.bincount(quarter, minlength=4) >= 4).all()


def test_photos_have_their_top_where_the_flight_or_the_view_goes() -> None:
    cameras = plan()
    down_axis = cameras.camera_to_world[:, :, 1]
    oblique = cameras.forwards[:, 2] > -0.98
    assert (down_axis[oblique, 2] < -0.5).all()  # the image's lower edge is near, the horizon is up
    np.testing.assert_allclose(np.linalg.det(cameras.camera_to_world[:, :, :3]), 1.0, atol=1e-9)


def test_neighbouring_nadir_photos_overlap_by_three_quarters() -> None:
    cameras = plan(200)
    main = (cameras.forwards[:, 2] < -0.98) & (
        np.abs(cameras.centres[:, 2] / np.median(cameras.centres[:, 2]) - 1) < 0.1
    )
    centres = cameras.centres[main]
    gap = np.linalg.norm(centres[:, None, :2] - centres[None, :, :2], axis=2)
    gap[np.diag_indices(len(gap))] = np.inf
    footprint = centres[:, 2].mean() * np.sqrt(320 * 240) / cameras.focals[0]
    assert 0.6 < 1.0 - np.median(gap.min(axis=1)) / footprint < 0.9


def test_the_whole_area_is_seen_from_many_sides() -> None:
    cameras = plan()
    grid = np.stack(np.meshgrid(np.linspace(-85, 85, 18), np.linspace(-85, 85, 18), [0.0]), axis=-1).reshape(-1, 3)
    count = sum(cameras.project(i, grid)[2].astype(int) for i in range(cameras.num_photos))
    assert np.min(count) >= 6


def test_footprint_boxes_hold_everything_a_photo_shows() -> None:
    cameras = plan()
    boxes = footprint_boxes(cameras)
    rng = np.random.default_rng(0)
    points = rng.uniform([-400, -400, 0], [400, 400, MAX_HEIGHT], (4000, 3))
    shown = 0
    for i in range(cameras.num_photos):
        inside = cameras.project(i, points)[2]
        shown += int(inside.sum())
        assert (points[inside, :2] >= boxes[i, :2] - 2.0).all()
        assert (points[inside, :2] <= boxes[i, 2:] + 2.0).all()
    assert shown > 1000
    assert np.abs(boxes).max() < 700.0


def test_a_height_can_be_given_and_is_checked() -> None:
    cameras = plan_flight(AREA, num_photos=60, size=(320, 240), seed=0, height=180.0)
    assert np.median(cameras.centres[:, 2]) == pytest.approx(180.0, rel=0.02)
    with pytest.raises(SettingsError, match="height"):
        plan_flight(AREA, num_photos=60, size=(320, 240), seed=0, height=60.0)
    with pytest.raises(SettingsError, match="8x8"):
        plan_flight(AREA, num_photos=60, size=(4, 240), seed=0)
