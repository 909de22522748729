"""Intrinsics from transforms.json: nerfstudio's, instant-ngp's and Blender's keys, of a frame or of the whole file."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.camera import Camera

_PERSPECTIVE = frozenset({"SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE"})
_FISHEYE = frozenset({"OPENCV_FISHEYE", "FISHEYE"})
_SUPPORTED = ", ".join(sorted(_PERSPECTIVE | _FISHEYE | {"FULL_OPENCV"}))
# instant-ngp's other lenses and a moving shutter: ignoring them would bend every ray
_UNSUPPORTED_KEYS = ("ftheta_p0", "latlong", "equirectangular", "orthographic")


def frame_camera(
    frame: Mapping[str, Any], common: Mapping[str, Any], stored_size: Callable[[], tuple[int, int]]
) -> Camera:
    """The camera of one frame; keys of the frame win over those of the file.

    stored_size: called when the file does not say w and h. CameraError with the reason if it cannot be used.
    """

    def number(key: str) -> float | None:
        value = frame.get(key, common.get(key))
        if value is None:
            return None
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError(value)
            return float(value)  # some programs write numbers as texts
        except (ValueError, OverflowError):
            raise CameraError(f"{key}: expected a number, got {value!r:.40}") from None

    def flag(key: str) -> bool:
        return bool(frame.get(key, common.get(key)))

    unsupported = [key for key in _UNSUPPORTED_KEYS if flag(key)]
    if unsupported:
        raise CameraError(f"{unsupported[0]}: expected a perspective or OpenCV fisheye lens; undistort the photos")
    width, height = _size(number("w"), number("h"), stored_size)
    fx = number("fl_x") or _focal_from_angle(number("camera_angle_x"), number("x_fov"), width)
    fy = number("fl_y") or _focal_from_angle(number("camera_angle_y"), number("y_fov"), height)
    if fx is None and fy is None:
        raise CameraError("focal length: expected fl_x or camera_angle_x, got neither")
    fx, fy = fx or fy or 0.0, fy or fx or 0.0
    cx, cy = number("cx"), number("cy")
    pinhole = (fx, fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    model = frame.get("camera_model", common.get("camera_model"))
    if not isinstance(model, str | None):
        raise CameraError(f"camera_model: expected one of {_SUPPORTED}, got {model!r:.40}")
    if model is None:
        model = "OPENCV_FISHEYE" if flag("is_fisheye") else "OPENCV"
    k1, k2, k3, k4, k5, k6, p1, p2 = (number(key) or 0.0 for key in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2"))
    params: tuple[float, ...]
    if model == "FULL_OPENCV":
        name, params = model, (*pinhole, k1, k2, p1, p2, k3, k4, k5, k6)
    elif model in _FISHEYE:
        if p1 or p2:
            raise CameraError(f"{model}: expected no tangential distortion, got p1 {p1}, p2 {p2}; undistort the photos")
        name, params = "OPENCV_FISHEYE", (*pinhole, k1, k2, k3, k4)
    elif model in _PERSPECTIVE:
        # k4 is an r^8 term here but a denominator in FULL_OPENCV, so only k3 carries over
        if k5 or k6:
            raise CameraError(f"{model}: expected k5 and k6 to be 0, got {k5} and {k6}; FULL_OPENCV has them")
        if k4:
            name, params = "OPENCV_K4", (*pinhole, k1, k2, p1, p2, k3, k4)
        elif k3:
            name, params = "FULL_OPENCV", (*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
        elif k1 or k2 or p1 or p2:
            name, params = "OPENCV", (*pinhole, k1, k2, p1, p2)
        else:
            name, params = "PINHOLE", pinhole
    else:
        raise CameraError(f"camera_model: expected one of {_SUPPORTED}, got {model!r:.40}; undistort the photos")
    return Camera(model=name, width=width, height=height, params=params)


def _size(width: float | None, height: float | None, stored_size: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    if width is None or height is None:
        return stored_size()
    if not (math.isfinite(width) and math.isfinite(height)) or width != round(width) or height != round(height):
        raise CameraError(f"w, h: expected whole numbers of pixels, got {width} and {height}")
    return round(width), round(height)


def _focal_from_angle(radians: float | None, degrees: float | None, size: int) -> float | None:
    """Focal length in pixels from a full viewing angle over `size` pixels."""
    angle = radians if radians is not None else None if degrees is None else math.radians(degrees)
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise CameraError(f"viewing angle: expected more than 0 and less than pi, got {angle}")
    return 0.5 * size / math.tan(0.5 * angle)
