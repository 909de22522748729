"""What makes a listed photo unusable: its pose, its camera, its file."""

import re
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
_LEAST_CHANGE = 2  # pixels by which either side differs in a photo that was resampled
_SIZED_FOLDER = re.compile(r"images(_\d+)?")
_MAX_COORDINATE = 1e100  # squares and cubes of distances stay finite
# from that far away, in distances that nine photos in ten keep, everything that those show is less than a pixel
_MAX_AWAY = 1e6
_SAME_PLACE = 1e-9  # of a coordinate: rounding of poses, no distance


def clean_poses(camera_to_world: Float64) -> tuple[Float64, list[str | None]]:
    """Poses with rotations made orthonormal, and why each one cannot be used.

    `camera_to_world`: float64[n, 3, 4]. Rotations up to 0.02 from orthonormal are replaced by the nearest rotation;
    larger deviations, mirrored and non-finite poses get a reason (their rows stay as they were). So do positions a
    million times as far from the median position as nine in ten are, which would leave no digits for the rest.
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
    _add_far(reasons, poses[:, :, 3])
    return poses, reasons


def _add_far(reasons: list[str | None], centres: Float64) -> None:
    """Fill in which of the poses without a reason stand too far away."""
    left = np.array([i for i, reason in enumerate(reasons) if reason is None], np.int64)
    most = np.abs(centres[left]).max(axis=1, initial=0.0)
    for i, coordinate in zip(left[most > _MAX_COORDINATE].tolist(), most[most > _MAX_COORDINATE].tolist(), strict=True):
        reasons[i] = f"its position has a coordinate of {coordinate:.3g}, more than {_MAX_COORDINATE:g}; correct it"
    left = left[most <= _MAX_COORDINATE]
    if not len(left):
        return
    middle = np.median(centres[left], axis=0)
    away = np.linalg.norm(centres[left] - middle, axis=1)
    typical = float(np.percentile(away, 90, method="lower"))
    if typical > _SAME_PLACE * np.abs(middle).max():  # else they stand in one place, and any distance is possible
        for k in np.flatnonzero(away > _MAX_AWAY * typical).tolist():
            reasons[left[k]] = (
                f"its position is {away[k]:.3g} away from the middle of all photos, nine in ten are within "
                f"{typical:.3g}; correct or remove its pose"
            )


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


def fitted_camera(path: Path, mask_path: Path | None, camera: Camera) -> Camera | str:
    """The camera of a photo as it is stored, or why photo and mask cannot be used. Opens both files.

    `camera` itself if the photo has its size; resized, if the photo was resampled as a whole.
    """
    try:
        size = check_photo(path)
        mask_size = None if mask_path is None else photo_size(mask_path)
    except PhotoError as error:
        return str(error)
    fitted = resampled(camera, size)
    if fitted is None:
        return f"{_size_problem(size, camera)}{_photo_of_that_size(path, camera)}"
    if mask_size is not None and mask_size != size:
        return f"its mask is {mask_size[0]}x{mask_size[1]}, the photo is {size[0]}x{size[1]}"
    return fitted


def resampled(camera: Camera, size: tuple[int, int]) -> Camera | None:
    """The camera for the same picture at another (width, height); None if that cannot be the same picture.

    Both axes have one ratio, to a pixel of the smaller picture. A size that is off by one pixel was cropped, not
    resampled.
    """
    width, height = size
    if size == (camera.width, camera.height):
        return camera
    if min(abs(width - camera.width), abs(height - camera.height)) < _LEAST_CHANGE:
        return None
    large, small = sorted(((camera.width, camera.height), size), reverse=True)
    off = abs(small[0] / large[0] - small[1] / large[1]) * min(large)
    return camera.resized(width, height) if off <= 1.0 else None


def _photo_of_that_size(path: Path, camera: Camera) -> str:
    """The end of a reason that names a folder beside the photo's own (images_4 beside images) with one that fits."""
    own = next((folder for folder in path.parents if _SIZED_FOLDER.fullmatch(folder.name)), None)
    if own is None:
        return ""
    for folder in sorted(own.parent.glob("images*")):
        other = folder / path.relative_to(own)
        try:
            if folder != own and other.is_file() and resampled(camera, photo_size(other)) is not None:
                return f"; that in {folder} fits, give --images {folder}"
        except PhotoError:
            continue
    return ""


def _size_problem(size: tuple[int, int], camera: Camera) -> str:
    got = f"the photo is {size[0]}x{size[1]}, its camera is {camera.width}x{camera.height}"
    if size == (camera.height, camera.width):
        return f"{got}; the photo was rotated after the poses were computed (EXIF orientation), use the original"
    return f"{got}, which is no common scale; use the photos that the poses were computed from"
