"""Rotations: matrices, quaternions (w, x, y, z: COLMAP's order) and the pose that looks at a point."""

import numpy as np

from infnerf_tiles.arrays import Float64, check_shape


def look_at(eye: Float64, target: Float64, up: Float64) -> Float64:
    """Camera-to-world poses, float64[n, 3, 4] (OpenCV axes), at `eye` looking at `target` with a level horizon.

    `eye` and `target`: float64[n, 3], world; `up`: float64[3], any length but 0. A camera that looks exactly along `up`
    has no level horizon and gets an arbitrary one; one whose target is its eye looks along the first horizontal axis.
    """
    check_shape("eye", eye, (None, 3))
    check_shape("target", target, (None, 3))
    up = up / np.linalg.norm(up)
    # A world axis that is far from `up` stands in wherever a direction is not defined.
    aside = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    forward = _unit(target - eye, aside)
    right = _unit(np.cross(forward, up), np.cross(up, aside))
    down = np.cross(forward, right)
    return np.stack([right, down, forward, eye], axis=2)


def rotations_from_quaternions(quaternions: Float64) -> Float64:
    """float64[n, 3, 3] rotation matrices from float64[n, 4] quaternions (w, x, y, z) of any length but 0."""
    check_shape("quaternions", quaternions, (None, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    # [3, 3, n] -> [n, 3, 3]
    return np.moveaxis(np.array(rows), 2, 0)


def quaternions_from_rotations(rotations: Float64) -> Float64:
    """Unit quaternions float64[n, 4] (w, x, y, z), w >= 0, from float64[n, 3, 3] rotation matrices."""
    check_shape("rotations", rotations, (None, 3, 3))
    r = rotations
    trace = np.trace(r, axis1=1, axis2=2)
    # 4 q q^T is linear in the matrix; its largest column is free of cancellation at every angle.
    outer = np.empty((len(r), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        outer[:, i + 1, i + 1] = 1 - trace + 2 * r[:, i, i]
        outer[:, 0, i + 1] = outer[:, i + 1, 0] = r[:, k, j] - r[:, j, k]
        outer[:, j + 1, k + 1] = outer[:, k + 1, j + 1] = r[:, k, j] + r[:, j, k]
    largest = np.argmax(np.einsum("nii->ni", outer), axis=1)
    q: Float64 = outer[np.arange(len(r)), largest]
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    return np.where(q[:, :1] < 0, -q, q)


def nearest_rotations(matrices: Float64) -> Float64:
    """The rotation nearest to each of float64[n, 3, 3] matrices: takes rounding errors out of poses from files."""
    check_shape("matrices", matrices, (None, 3, 3))
    u, _, vt = np.linalg.svd(matrices)
    # The last axis is turned over where U V^T would be a mirror image.
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotations: Float64 = u @ vt
    return rotations


def _unit(vectors: Float64, fallback: Float64) -> Float64:
    """Vectors float64[n, 3] at length 1; `fallback` where one is too short to have a direction."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = length > 1e-12
    unit = vectors / np.where(known, length, 1.0)
    return np.where(known, unit, fallback / np.linalg.norm(fallback))
