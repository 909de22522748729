"""Whether sparse points are those that a scene was built with: training reads them again, for depths and matter."""

import numpy as np

from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.training.inputs import PointFacts

_MOVED = 1.0  # finest GSDs; text and binary files of the same points differ in the last digits


def point_facts(photos: PosedPhotos) -> PointFacts:
    """What is kept of the points; it does not depend on the order of photos."""
    points = photos.points
    xyz = np.empty((0, 3)) if points is None else points.xyz[np.isfinite(points.xyz).all(axis=1)]
    if points is None or not len(xyz):
        return PointFacts(points=0, observations=0, centre=(0.0, 0.0, 0.0), spread=0.0)
    x, y, z = (float(value) for value in xyz.mean(axis=0))
    return PointFacts(
        points=points.num_points,
        observations=len(points.track_photos),
        centre=(x, y, z),
        spread=float(np.sqrt(((xyz - (x, y, z)) ** 2).sum(axis=1).mean())),
    )


def check_points(photos: PosedPhotos, then: PointFacts, now: PointFacts, gsd_finest: float) -> None:
    """DatasetError if points came, went or moved by more than the finest GSD (world units) on the whole."""
    moved = float(np.linalg.norm(np.subtract(now.centre, then.centre)))
    spread = abs(now.spread - then.spread)
    same = (then.points, then.observations) == (now.points, now.observations)
    if same and max(moved, spread) <= _MOVED * gsd_finest:
        return
    got = f"as many, but their middle has moved by {moved:.3g} and their spread by {spread:.3g} units"
    if not same:
        got = f"{now.points:,} with {now.observations:,} observations" if now.points else "none"
    raise DatasetError(
        f"{photos.root}: expected the {then.points:,} sparse points with {then.observations:,} observations that the "
        f"scene was built with, got {got}; put them back, build again, or go on with --accept-changes, which keeps the "
        "octree and what is trained"
    )
