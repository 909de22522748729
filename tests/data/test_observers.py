"""Who sees a point: its track where there is one, likely observers where there never was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capture_files import write_capture

from infnerf_tiles.arrays import Bool
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.observers import MIN_TRACK, observers
from infnerf_tiles.data.records import Points, points_without_tracks


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PosedPhotos:
    folder = tmp_path_factory.mktemp("observers")
    write_capture(folder, names=tuple(f"{i}.jpg" for i in range(8)))
    return read_dataset(folder, check_photos=False)


def of(photos: PosedPhotos) -> Points:
    assert photos.points is not None
    return photos.points


def some_tracks(points: Points, kept: Bool) -> Points:
    """The points of which only bool[m] `kept` have tracks."""
    of_observation = np.repeat(kept, points.track_lengths)
    lengths = np.where(kept, points.track_lengths, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(points, track_offsets=offsets, track_photos=points.track_photos[of_observation])


def test_tracks_are_taken_as_they_are(photos: PosedPhotos) -> None:
    points = of(photos)
    seen = observers(points, photos.cameras)
    assert seen.photos is points.track_photos
    assert seen.offsets is points.track_offsets
    assert not seen.likely.any()
    np.testing.assert_array_equal(seen.reliable, points.track_lengths >= MIN_TRACK)


def test_points_without_tracks_get_observers_in_whose_images_they_lie(photos: PosedPhotos) -> None:
    points = points_without_tracks(of(photos).xyz, of(photos).rgb)
    seen = observers(points, photos.cameras)
    assert seen.likely.all()
    assert seen.lengths.sum() > points.num_points
    for photo in range(photos.num_photos):
        rows = seen.points_seen_by(np.array([photo]))
        assert photos.cameras.project(photo, points.xyz[rows])[2].all()
        np.testing.assert_array_equal(rows, seen.owners(np.flatnonzero(seen.photos == photo)))
    assert observers(points, photos.cameras) is seen
    few = photos.cameras.subset([0])
    alone = observers(points, few)
    assert alone.reliable.mean() > 0.9  # one photo is all there is
    np.testing.assert_array_equal(alone.reliable, alone.lengths == 1)


def test_a_mixture_keeps_the_tracks_it_has(photos: PosedPhotos) -> None:
    points = of(photos)
    kept = np.arange(points.num_points) % 2 == 0
    mixed = some_tracks(points, kept)
    seen, likely = observers(mixed, photos.cameras), observers(some_tracks(points, ~kept & kept), photos.cameras)
    np.testing.assert_array_equal(seen.likely, ~kept)
    for i in range(points.num_points):
        whole = points.track_photos, points.track_offsets
        source = whole if kept[i] else (likely.photos, likely.offsets)
        expected = source[0][source[1][i] : source[1][i + 1]]
        np.testing.assert_array_equal(seen.photos[seen.offsets[i] : seen.offsets[i + 1]], expected)


def test_a_leftover_is_no_cloud(photos: PosedPhotos) -> None:
    points = of(photos)
    many = np.tile(points.xyz, (200 // points.num_points + 1, 1))
    blown = Points(
        xyz=many, rgb=np.zeros((len(many), 3), np.uint8), error=np.zeros(len(many), np.float32),
        track_offsets=3 * np.arange(len(many) + 1), track_photos=np.zeros(3 * len(many), np.int32),
    )  # fmt: skip
    kept = np.ones(len(many), np.bool_)
    kept[0] = False
    seen = observers(some_tracks(blown, kept), photos.cameras)
    assert seen.lengths[0] == 0
    assert not seen.likely.any()


def test_points_whose_photos_went_do_not_get_others(photos: PosedPhotos, tmp_path: Path) -> None:
    rows = np.array([6, 7])
    fewer = photos.select(rows, photos.is_test[rows])
    gone = of(fewer).track_lengths == 0
    assert gone.any()
    assert not of(fewer).untracked.any()
    seen = observers(of(fewer), fewer.cameras)
    assert (seen.lengths[gone] == 0).all()
    assert not seen.likely.any()
    # but those that never had a track stay without one
    bare = replace(photos, points=points_without_tracks(of(photos).xyz, of(photos).rgb))
    assert of(bare.select(rows, photos.is_test[rows])).untracked.all()
