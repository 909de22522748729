"""What makes a listed photo unusable: its pose, its camera, its file."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Bool, Float64
from infnerf_tiles.data.codecs import check_photo, photo_size
from infnerf_tiles.errors import CameraError, PhotoError
from infnerf_tiles.geometry.border import border_positions, view_angles
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.geometry.rotation import nearest_rotations

_ROTATION_TOLERANCE = 0.02  # off by more than text files with 2 decimals are: a scale or shear, not rounding
_EXACT_ROTATION = 1e-9


def clean_poses(camera_to_world: Float64) -> tuple[Float64, list[str | None]]:
    """Poses with rotations made orthonormal, and why each one cannot be used.

    `camera_to_world`: float64[n, 3, 4]. Rotations up to 0.02 from orthonormal are replaced by the nearest rotation;
    larger deviations, mirrored and non-finite poses get a reason (their rows stay as they were).
    """
    poses = camera_to_world.copy()
    finite: Bool = np.asarray(np.isfinite(poses).all(axis=(1, 2)))
    rotations = np.where(finite[:, None, None], poses[:, :, :3], np.eye(3))
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max(axis=(1, 2), initial=0.0)
        mirrored = np.asarray(np.linalg.det(rotations) < 0)
    skewed = ~(deviation <= _ROTATION_TOLERANCE)
    inexact = np.flatnonzero(finite & ~skewed & ~mirrored & (deviation > _EXACT_ROTATION))
    if len(inexact):
        poses[inexact, :, :3] = nearest_rotations(poses[inexact, :, :3])
    reasons: list[str | None] = [None] * len(poses)
    for i in np.flatnonzero(~finite):
        reasons[i] = "the pose is not finite (NaN or infinity)"
    for i in np.flatnonzero(finite & mirrored):
        reasons[i] = "the pose is mirrored (determinant -1); export it with a right-handed camera frame"
    for i in np.flatnonzero(finite & skewed & ~mirrored):
        reasons[i] = (
            f"the pose is not a rotation (off by {deviation[i]:.2g}, expected at most {_ROTATION_TOLERANCE}); "
            "remove scale and shear from its 3x3 part"
        )
    return poses, reasons


def camera_problems(cameras: Sequence[Camera | str], downscale: int) -> list[str | None]:
    """Why each camera, at stored size, cannot be used after a reduction by `downscale`, or None."""
    problems: list[str | None] = [camera if isinstance(camera, str) else None for camera in cameras]
    at, read = [i for i, p in enumerate(problems) if p is None], [c for c in cameras if not isinstance(c, str)]
    # all at once, as every photo may have a camera of its own; what that is not sure of is looked at by itself
    for i, camera, angle in zip(at, read, view_angles(read).tolist(), strict=True):
        if min(camera.width, camera.height) < downscale:
            problems[i] = f"its camera is {camera.width}x{camera.height}, less than one pixel at 1/{downscale} size"
        elif isnan(angle):
            problems[i] = _border_problem(camera)
    return problems


def _border_problem(camera: Camera) -> str | None:
    """Why not every pixel has a ray, or None."""
    try:
        unproject(camera, border_positions(camera))
    except CameraError as error:
        return str(error)
    return None


def file_problem(path: Path, mask_path: Path | None, camera: Camera) -> str | None:
    """Why a photo and its mask cannot be used with a camera (at stored size), or None. Opens both files."""
    try:
        size = check_photo(path)
        mask_size = None if mask_path is None else photo_size(mask_path)
    except PhotoError as error:
        return str(error)
    if size != (camera.width, camera.height):
        return _size_problem(size, camera)
    if mask_size is not None and mask_size != size:
        return f"its mask is {mask_size[0]}x{mask_size[1]}, the photo is {size[0]}x{size[1]}"
    return None


def _size_problem(size: tuple[int, int], camera: Camera) -> str:
    got = f"the photo is {size[0]}x{size[1]}, its camera is {camera.width}x{camera.height}"
    if size == (camera.height, camera.width):
        return f"{got}; the photo was rotated after the poses were computed (EXIF orientation), use the original"
    return f"{got}; use the photos that the poses were computed from"
