"""The root cube of bounds that a user gives, which have to hold something that the photos show."""

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.aabb import Aabb
from infnerf_tiles.geometry.bounds import convergence_point
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.geometry.octree import inside_unit

_SAMPLED_PHOTOS = 1024
_PLACES = np.array([0.02, 0.25, 0.5, 0.75, 0.98])  # of an image's width and height
_STEPS = (np.arange(4) + 0.5) / 4


def given_root_cube(photos: PosedPhotos, evidence: Int64, bounds: tuple[float, ...]) -> RootCube:
    """The smallest cube around (x, y, z, X, Y, Z), world units, in its middle.

    evidence: int64[k], rows of the points that count. SettingsError for a box that is none, and for one in which none
    of them lies or, without any, that no photo looks into.
    """
    lo, hi = np.array(bounds[:3], np.float64), np.array(bounds[3:], np.float64)
    if len(bounds) != 6 or not (np.isfinite(bounds).all() and (hi > lo).all()):
        raise SettingsError(f"--bounds: expected x,y,z,X,Y,Z with x < X, y < Y, z < Z, got {bounds}")
    edge = float((hi - lo).max())
    origin = (lo + hi - edge) / 2
    root = RootCube((float(origin[0]), float(origin[1]), float(origin[2])), edge)
    points = photos.points
    shown = np.empty((0, 3)) if points is None else points.xyz[evidence]
    if len(shown):
        if not inside_unit(root.to_unit(shown)).any():
            low, high = np.percentile(shown, [1, 99], axis=0)
            raise SettingsError(
                f"--bounds {_numbers(bounds)}: expected a box around what the photos show, but none of the "
                f"{len(shown):,} points that they see well lies in it: those reach from {_numbers(low)} to "
                f"{_numbers(high)}; give a box around that, in the units of the poses, or leave --bounds out"
            )
    elif not _looked_into(photos, root):
        focus, centres = convergence_point(photos.cameras), photos.cameras.centres
        where = f"look in the direction {_numbers(photos.cameras.forwards.mean(axis=0))}"
        if focus is not None:
            where = f"look at about {_numbers(focus)}"
        raise SettingsError(
            f"--bounds {_numbers(bounds)}: expected a box that the photos show, but none looks into it: they were "
            f"taken between {_numbers(centres.min(axis=0))} and {_numbers(centres.max(axis=0))} and {where}; give a "
            "box that holds what they look at, in the units of the poses, or leave --bounds out"
        )
    return root


def _looked_into(photos: PosedPhotos, root: RootCube) -> bool:
    """Whether some photo sees some of the cube: a ray of it goes through, or a place in it is in the image."""
    cameras = photos.cameras
    rows = np.unique(np.linspace(0, cameras.num_photos - 1, _SAMPLED_PHOTOS).astype(np.int64))
    photo = np.repeat(rows, len(_PLACES) ** 2)
    size = np.array([[c.width, c.height] for c in cameras.cameras], np.float64)[cameras.camera_index[photo]]
    places = np.stack(np.meshgrid(_PLACES, _PLACES, indexing="ij"), axis=-1).reshape(-1, 2)
    origin = np.array(root.origin)
    x, y, z = (origin + root.edge).tolist()
    rays = cameras.rays(photo, np.tile(places, (len(rows), 1)) * size)
    hit: Bool = Aabb(root.origin, (x, y, z)).intersect_rays(*rays)[2]
    if hit.any():
        return True
    grid: Float64 = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS, indexing="ij"), axis=-1).reshape(-1, 3)
    return any(cameras.project(row, origin + grid * root.edge)[2].any() for row in rows.tolist())


def _numbers(values: Float64 | tuple[float, ...]) -> str:
    return ",".join(f"{float(value):.6g}" for value in values)
