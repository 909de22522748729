"""Which photos see each sparse point: those of its track, or likely ones where the data set knows of no track."""

import weakref
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Bool, Int32, Int64
from infnerf_tiles.data.records import Points
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.visibility import gather_rows, likely_observers

MIN_TRACK = 3
"""Photos that have to see a point for it to count."""
MIN_UNTRACKED = 0.01
"""Share of points without tracks from which on they are a cloud of their own, and not leftovers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observers:
    """The photos that see point i are photos[offsets[i]:offsets[i + 1]]; offsets int64[m + 1], photos int32[k].

    likely: bool[m], whether they were worked out from the geometry. Good for how finely and how well a place is seen,
    where the octree grows and which photos a region needs. No measurement: where a surface lies along a ray only a
    true track says. reliable: bool[m], seen by MIN_TRACK photos; if the observers are likely ones and there are fewer
    photos in all, by each of those.
    """

    offsets: Int64
    photos: Int32
    likely: Bool
    reliable: Bool

    @property
    def lengths(self) -> Int64:
        """int64[m]: how many photos see each point."""
        lengths: Int64 = np.diff(self.offsets)
        return lengths

    def points_seen_by(self, photos: Int64) -> Int64:
        """int64, sorted rows of the points that some of int64[n] `photos` see."""
        return np.unique(self.owners(np.flatnonzero(np.isin(self.photos, photos))))

    def owners(self, observations: Int64) -> Int64:
        """int64[n]: the points of int64[n] rows of `photos`."""
        return np.searchsorted(self.offsets, observations, side="right") - 1


def observers(points: Points, cameras: PosedCameras) -> Observers:
    """Who sees each point: its track; where the data set has none for it, the photos in whose images it lies unhidden.

    Likely observers are worked out only if at least MIN_UNTRACKED of the points are `untracked`. The answer for the
    same objects is kept.
    """
    if (known := _known.get(points)) is not None and known[0]() is cameras:
        return known[1]
    lengths = points.track_lengths
    likely: Bool = np.zeros(points.num_points, np.bool_)
    offsets, photos = points.track_offsets, points.track_photos
    if points.num_points and points.untracked.mean() >= MIN_UNTRACKED:
        likely = points.untracked
        found = likely_observers(points.xyz, cameras)
        starts = np.where(likely, len(photos) + found[0][:-1], offsets[:-1])
        lengths = np.where(likely, np.diff(found[0]), lengths)
        offsets, photos = gather_rows(np.concatenate([photos, found[1]]), starts, lengths)
    enough = np.where(likely, max(1, min(MIN_TRACK, cameras.num_photos)), MIN_TRACK)
    made = Observers(offsets=offsets, photos=photos, likely=likely, reliable=np.asarray(lengths >= enough))
    _known[points] = (weakref.ref(cameras), made)
    return made


_known: "weakref.WeakKeyDictionary[Points, tuple[weakref.ref[PosedCameras], Observers]]" = weakref.WeakKeyDictionary()
