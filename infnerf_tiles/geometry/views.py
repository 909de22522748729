"""Which photos may see a place: the cone around each photo's rays against spheres, on the safe side."""

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.camera import Camera, PosedCameras, unproject

_SIDE = 17
"""Places along each side of an image at which its rays are looked at."""
_FACTOR, _MARGIN = 1.02, 0.01
"""What rays between those places may lie further out, as a factor and in radians."""
_AT_ONCE = 64


def cone_angle(camera: Camera) -> float:
    """Radians between the optical axis and any ray of the image, at least; pi where a place has no ray."""
    steps = np.linspace(0.0, 1.0, _SIDE)
    ends = np.repeat([0.0, 1.0], _SIDE)
    border = np.concatenate(
        [np.stack([np.tile(steps, 2), ends], axis=1), np.stack([ends, np.tile(steps, 2)], axis=1)]
    ) * np.array([camera.width - 1.0, camera.height - 1.0])
    try:
        rays = unproject(camera, border + 0.5)
    except CameraError:
        return float(np.pi)
    # of a principal point beyond the image too, the outermost ray is on the border
    return min(float(np.arccos(np.clip(rays[:, 2], -1.0, 1.0)).max()) * _FACTOR + _MARGIN, float(np.pi))


def may_see(cameras: PosedCameras, photos: Int64, centres: Float64, radii: Float64) -> Bool:
    """bool[k]: whether a ray of each of the photos (int64[k] rows) may meet any of the spheres, at any distance.

    centres: float64[m, 3], world; radii: float64[m], world units. A photo that is not among them meets none for sure.
    """
    angles = np.array([cone_angle(camera) for camera in cameras.cameras])[cameras.camera_index[photos]]
    origins, axes = cameras.centres[photos], cameras.forwards[photos]
    found: Bool = np.zeros(len(photos), np.bool_)
    for first in range(0, len(centres), _AT_ONCE):
        left = np.flatnonzero(~found)
        middle, radius = centres[first : first + _AT_ONCE], radii[first : first + _AT_ONCE]
        away = middle[None] - origins[left][:, None]
        distance = np.linalg.norm(away, axis=2)
        outside = distance > radius
        reach = np.arcsin(np.minimum(radius / np.maximum(distance, 1e-300), 1.0))
        cosine = np.einsum("nmc,nc->nm", away, axes[left]) / np.maximum(distance, 1e-300)
        turned = np.arccos(np.clip(cosine, -1.0, 1.0))
        found[left] = (~outside | (turned <= angles[left][:, None] + reach)).any(axis=1)
    return found
