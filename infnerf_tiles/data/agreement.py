"""The sparse points of a COLMAP model, brought into the world of a transforms file that was made from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from infnerf_tiles.arrays import Float64, Int32, Int64
from infnerf_tiles.data.names import parent_folders
from infnerf_tiles.data.records import Listing, Points

_TOLERANCE = 1e-3
"""How far poses may differ that count as the same: elements of rotations, and centres in spreads of all cameras."""
_FEWEST = 3  # photos that fix a frame
# nerfstudio turns COLMAP's world so that z points up; its older versions did so without writing it down
_TURN_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])


def points_of_model(listing: Listing, model: Listing, applied: Sequence[Float64]) -> Points | str:
    """The model's points in the world of `listing`, with tracks as its rows; else why they cannot be taken.

    applied: float64[3, 4] each, the transforms from the model's world that the file may mean.
    """
    if model.points is None or not model.points.num_points:
        return "it has no points"
    rows = _rows(listing.names, model.names)
    common = np.flatnonzero(rows >= 0)
    if len(common) < max(_FEWEST, (len(listing.names) + 1) // 2):
        return f"only {len(common)} of the {len(listing.names)} photos have a name of its {len(model.names)}"
    then, now = model.camera_to_world[common], listing.camera_to_world[rows[common]]
    tried = [*applied, np.eye(3, 4), _TURN_UP]
    misses = [_miss(then, now, transform) for transform in tried]
    best = int(np.argmin(misses))
    if not misses[best] <= _TOLERANCE:
        return f"its poses differ from the file's (by {misses[best]:.2g} of the cameras' spread)"
    turn, shift = tried[best][:, :3], tried[best][:, 3]
    photo_of: Int32 = rows.astype(np.int32)
    points = model.points.renumbered(photo_of)
    return replace(points, xyz=points.xyz @ turn.T + shift)


def _rows(names: Sequence[str], others: Sequence[str]) -> Int64:
    """int64[n]: the row in `names` of each of `others`, which may leave out the folders that all names share; -1 for
    none."""
    rows = {name: row for row, name in enumerate(names)}
    prefix = ""
    for folder in parent_folders(names):
        prefix += f"{folder}/"
        rows |= {name.removeprefix(prefix): row for row, name in enumerate(names)}
    return np.array([rows.get(name, -1) for name in others], np.int64)


def _miss(then: Float64, now: Float64, transform: Float64) -> float:
    """The largest difference between poses float64[n, 3, 4], transformed and wanted; inf if one is not finite."""
    turn, shift = transform[:, :3], transform[:, 3]
    with np.errstate(all="ignore"):
        scale = np.cbrt(np.linalg.det(turn))
        centres = then[:, :, 3] @ turn.T + shift
        spread = np.linalg.norm(now[:, :, 3] - now[:, :, 3].mean(axis=0), axis=1).max()
        moved = np.linalg.norm(centres - now[:, :, 3], axis=1).max() / spread
        turned = np.abs((turn / scale) @ then[:, :, :3] - now[:, :, :3]).max()
    worst = max(float(moved), float(turned)) if np.isfinite(moved) and np.isfinite(turned) else np.inf
    return float(worst)
