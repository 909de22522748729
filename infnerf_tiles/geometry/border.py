"""How far many cameras see from their optical axes, and that their images' borders have rays: all cameras at once."""

from collections.abc import Sequence
from math import comb

import numpy as np

from infnerf_tiles.arrays import AnyArray, Bool, Float64
from infnerf_tiles.geometry.camera import PIXEL_TOLERANCE, Camera

_RADIAL_STEPS = 12
_PLANE_STEPS = 8
_ROUNDING = 1e-14
_SURE = 1e-3
"""A polynomial that starts at 1 and keeps this far above zero has no root that rounding could bring about."""
_MAX_TAN, _MAX_ANGLE = 1e5, 3.0  # well within what a distortion may map


def border_positions(camera: Camera) -> Float64:
    """float64[9, 2], pixels: corners and midpoints of the image's border, and its middle.

    Enough to find a distortion that folds over inside the image.
    """
    x, y = (np.array([0.5, 0.5 * size, size - 0.5]) for size in (camera.width, camera.height))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(9, 2)


def view_angles(cameras: Sequence[Camera]) -> Float64:
    """float64[c], radians: the largest angle between a camera's optical axis and the ray of a border position.

    A number means that `unproject` finds all of the camera's border positions. NaN: this quick look is not sure of it,
    `unproject` has to tell (of ordinary lenses it always is).
    """
    if not cameras:
        return np.empty(0)
    lens = [camera.distortion for camera in cameras]
    focal = np.array([(c.fx, c.fy) for c in cameras])
    centre = np.array([(c.cx, c.cy) for c in cameras])
    plane = (np.stack([border_positions(c) for c in cameras]) - centre[:, None]) / focal[:, None]
    num, den = _padded([d.numerator for d in lens]), _padded([d.denominator for d in lens])
    tangential = np.array([d.tangential for d in lens])
    fisheye = np.array([d.fisheye for d in lens], np.bool_)

    target = np.hypot(plane[..., 0], plane[..., 1])
    with np.errstate(all="ignore"):
        radius, miss = _invert_radius(num, den, target)
        ideal = plane * np.where(target > 0, radius / target, 1.0)[..., None]
        reach, sure = radius, (miss <= _ROUNDING * (1 + target)) & (radius >= 0)
        bent: Bool = np.asarray(tangential.any(axis=1))
        if bent.any():
            full, full_miss, straight = _invert_plane(num, den, tangential, plane, ideal)
            reach = np.where(bent[:, None], np.hypot(full[..., 0], full[..., 1]), radius)
            miss = np.where(bent[:, None], full_miss, miss)
            sure &= straight | ~bent[:, None]
        sure &= miss * focal.max(axis=1)[:, None] <= 0.5 * PIXEL_TOLERANCE
        farthest = reach.max(axis=1)
        good: Bool = sure.all(axis=1) & (farthest < np.where(fisheye, _MAX_ANGLE, _MAX_TAN))
        good &= _grows(num, den, 1.001 * np.maximum(farthest, radius.max(axis=1)) ** 2)
        angles: Float64 = np.where(fisheye, farthest, np.arctan(farthest))
    return np.where(good, angles, np.nan)


def _padded(coefficients: Sequence[tuple[float, ...]]) -> Float64:
    """float64[c, most]: the polynomials of all cameras, by rising power, with zeros at the end."""
    out = np.zeros((len(coefficients), max(len(c) for c in coefficients)))
    for row, values in zip(out, coefficients, strict=True):
        row[: len(values)] = values
    return out


def _value(coefficients: Float64, s: Float64) -> tuple[Float64, Float64]:
    """Polynomials float64[c, d + 1] and their derivatives at float64[c, 9] places."""
    value, slope = np.zeros_like(s), np.zeros_like(s)
    for column in coefficients.T[::-1]:
        slope = slope * s + value
        value = value * s + column[:, None]
    return value, slope


def _factor(num: Float64, den: Float64, s: Float64) -> tuple[Float64, Float64]:
    """q(s) of `Distortion` and dq/ds."""
    (above, rise), (below, fall) = _value(num, s), _value(den, s)
    q = above / below
    return q, (rise - q * fall) / below


def _invert_radius(num: Float64, den: Float64, target: Float64) -> tuple[Float64, Float64]:
    """Solves g(r) = target by plain Newton steps: (r, |g(r) − target|)."""
    radius = target.copy()
    for _ in range(_RADIAL_STEPS):
        q, slope = _factor(num, den, radius * radius)
        radius -= (radius * q - target) / (q + 2 * radius * radius * slope)
    return radius, np.abs(radius * _factor(num, den, radius * radius)[0] - target)


def _invert_plane(
    num: Float64, den: Float64, tangential: Float64, plane: Float64, start: Float64
) -> tuple[Float64, Float64, Bool]:
    """As `Distortion` solves the full map where every step is a full one: (ideal, miss, whether that was so)."""
    p1, p2 = tangential[:, :1], tangential[:, 1:]
    scale = _ROUNDING * (1 + np.abs(plane).max(axis=-1))

    def distort(x: Float64, y: Float64) -> tuple[Float64, Float64, Float64, Float64, Float64]:
        q, slope = _factor(num, den, x * x + y * y)
        a, b = p1 * x + p2 * y, p1 * y + p2 * x
        du = x * q + 2 * p1 * x * y + p2 * (3 * x * x + y * y) - plane[..., 0]
        dv = y * q + 2 * p2 * x * y + p1 * (x * x + 3 * y * y) - plane[..., 1]
        across = 2 * (x * y * slope + a)
        return du, dv, q + 2 * x * x * slope + 2 * b + 4 * p2 * x, across, q + 2 * y * y * slope + 2 * b + 4 * p1 * y

    x, y = start[..., 0], start[..., 1]
    du, dv, xx, cross, yy = distort(x, y)
    straight: Bool = np.ones(x.shape, np.bool_)
    for _ in range(_PLANE_STEPS):
        miss, factor = np.hypot(du, dv), 1 / (xx * yy - cross * cross)
        trial_x, trial_y = x - factor * (yy * du - cross * dv), y - factor * (xx * dv - cross * du)
        trial = distort(trial_x, trial_y)
        closer = np.hypot(trial[0], trial[1]) < miss
        straight &= closer | (miss <= scale)
        x, y = np.where(closer, trial_x, x), np.where(closer, trial_y, y)
        du, dv, xx, cross, yy = (np.where(closer, n, o) for n, o in zip(trial, (du, dv, xx, cross, yy), strict=True))
    miss = np.hypot(du, dv)
    straight &= (miss <= scale) & (xx * yy > cross * cross)
    return np.stack([x, y], axis=-1), miss, straight


def _grows(num: Float64, den: Float64, end: Float64) -> Bool:
    """bool[c]: whether g surely grows, without a pole, for r² from 0 to float64[c] `end`.

    A polynomial lies between the least and the largest of its Bernstein coefficients.
    """
    powers_num, powers_den = np.arange(num.shape[1]), np.arange(den.shape[1])
    # as in Distortion.max_radius: (N + 2 s N') D − 2 s N D'
    slope = _product(num * (1 + 2 * powers_num), den) - _product(num, den * (2 * powers_den))
    sure: Bool = np.ones(len(num), np.bool_)
    for polynomial in (slope, den):
        degree = polynomial.shape[1] - 1
        scaled = polynomial * end[:, None] ** np.arange(degree + 1)
        share = np.array([[comb(i, j) / comb(degree, j) for i in range(degree + 1)] for j in range(degree + 1)])
        sure &= (scaled @ share > _SURE).all(axis=1)
    return sure


def _product(a: Float64, b: Float64) -> Float64:
    """Polynomials float64[c, i] times float64[c, j]: float64[c, i + j − 1]."""
    out: AnyArray = np.zeros((len(a), a.shape[1] + b.shape[1] - 1))
    for j in range(b.shape[1]):
        out[:, j : j + a.shape[1]] += a * b[:, j : j + 1]
    return out
