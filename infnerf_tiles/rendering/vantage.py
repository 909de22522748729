"""What posed photos tell about the scene as a whole: where up is, what they look at, which camera to film it with."""

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.camera import Camera, PosedCameras

# The camera axes that may point up (upright photos, photos that look down, photos stored on their side), for each the
# axis that a photographer then holds level, and an advantage in the choice where photos do not tell.
_UP_AXES = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
_LEVEL_AXES = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_ADVANTAGE = np.array([0.01, 0.0, -0.1])
_SIDE = 2  # row of the photos on their side
_LEVEL_PRIOR = 0.01  # variance of the level axes (1 = all over the horizon) at which they count as much as the mean
_Z = np.array([0.0, 0.0, 1.0])
_Z_ADVANTAGE = 0.03
_Z_SNAP = np.cos(np.radians(25.0))


def world_up(cameras: PosedCameras) -> Float64:
    """Unit vector float64[3], world, that points away from the ground, guessed from how people hold cameras.

    People turn cameras about the vertical more than any other way. So the camera axis that is most alike in all photos
    is the vertical one: the image's up in photos taken on foot, the way back along the view in aerial photos that look
    down. Its mean is then made perpendicular to the axis that is held level, as far as that axis turns at all.
    Photos that all look the same way, heading included, leave that choice to the axis nearer to the world's z.

    A guess within 25 degrees of the world's z axis is taken for z: that frame has been levelled by somebody who knew
    (georeferenced, or turned by the reconstruction), while the z of an untouched reconstruction points into a photo.
    """
    rotation = cameras.camera_to_world[:, :, :3]
    means = np.einsum("nij,aj->nai", rotation, _UP_AXES).mean(axis=0)
    best = int(np.argmax(np.linalg.norm(means, axis=1) + _ADVANTAGE + _Z_ADVANTAGE * means @ _Z))
    if best == _SIDE and means[best] @ cameras.forwards.mean(axis=0) > 0:
        means[best] *= -1  # on which side is not known, but more people look down than up
    level = rotation @ _LEVEL_AXES[best]
    spread = level.T @ level / len(level)
    up = np.linalg.solve(spread + _LEVEL_PRIOR * np.eye(3), means[best])
    length = float(np.linalg.norm(up))
    # Cameras that point everywhere in every roll have no vertical of their own.
    if length < 1e-9 or up @ _Z > _Z_SNAP * length:
        return _Z.copy()
    return up / length


def focus_point(cameras: PosedCameras) -> Float64:
    """World point float64[3] nearest to all optical axes in the least-squares sense.

    Axes that are parallel, or miss each other so widely that the point is not in front of the cameras, meet nowhere:
    the result then lies ahead of the cameras at the distance of their own spread.
    """
    centres, forward = cameras.centres, cameras.forwards
    spread = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean()) or 1.0
    ahead = centres.mean(axis=0) + forward.mean(axis=0) * spread
    # Sum of the projections perpendicular to each axis, with a weak pull towards `ahead` that decides what they do not.
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    pull = 1e-3 * len(centres)
    point: Float64 = np.linalg.solve(
        across.sum(axis=0) + pull * np.eye(3), np.einsum("nij,nj->i", across, centres) + pull * ahead
    )
    depth = np.median(np.einsum("ni,ni->n", point - centres, forward))
    return point if depth > spread / 4 else ahead


def path_camera(cameras: PosedCameras, size: tuple[int, int] | None = None) -> Camera:
    """A pinhole camera like the one that took most photos, for pictures of `size` (width, height; default: as it is).

    Of another shape, the picture shows the part of that camera's view that fills it: never more than the photos showed.
    """
    index = int(np.bincount(cameras.camera_index).argmax()) if cameras.num_photos else 0
    return pinhole(cameras.cameras[index], size)


def pinhole(camera: Camera, size: tuple[int, int] | None = None) -> Camera:
    """`camera` without its distortion and with a centred principal point, for pictures of `size` (width, height)."""
    width, height = size or (camera.width, camera.height)
    focal = camera.focal * max(width / camera.width, height / camera.height)
    return Camera(model="PINHOLE", width=width, height=height, params=(focal, focal, width / 2, height / 2))
