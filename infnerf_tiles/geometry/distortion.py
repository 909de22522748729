"""Lens distortion: the map from ideal to distorted image-plane coordinates (focal length 1), and its inverse."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.polynomial import polynomial

from infnerf_tiles.arrays import Bool, Float64

_MAX_STEPS = 100
_QUICK_STEPS = 6
_ROUNDING = 1e-14  # relative; what counts as solved without further ado
_BLOCK = 8192
_MAX_RADIUS = 1e6  # an ideal plane coordinate beyond this (90 degrees less a microradian) counts as "no ray"


@dataclass(frozen=True)
class Distortion:
    """Radial and tangential distortion of one camera.

    Radial: q(s) = (n_0 + n_1 s + n_2 s² + ...) / (d_0 + d_1 s + ...) with s = r², so that a radius r becomes
    g(r) = r q(r²). r is the ideal plane radius tan θ, or with `fisheye` the angle θ itself. tangential:
    OpenCV's p1 and p2.
    """

    numerator: tuple[float, ...] = (1.0,)
    denominator: tuple[float, ...] = (1.0,)
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @cached_property
    def max_radius(self) -> float:
        """Radius up to which g grows strictly: its first turning point or pole, or the model's own limit."""
        return _max_radius(self.numerator, self.denominator, self.fisheye)

    @property
    def _is_radial(self) -> bool:
        return self.tangential == (0.0, 0.0)

    @property
    def _is_identity(self) -> bool:
        return self._is_radial and not self.fisheye and not any(self.numerator[1:]) and not any(self.denominator[1:])

    def project(self, points: Float64) -> tuple[Float64, Bool]:
        """Distorted plane coordinates float64[n, 2] of camera-frame points float64[n, 3], and where they are valid."""
        x, y, z = points.T
        radius = np.hypot(x, y)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.fisheye:
                theta = np.arctan2(radius, z)
                scale = np.where(radius > 0, self._radial(theta**2)[0] * theta / radius, 0.0)
                valid = (theta < self.max_radius) & ((radius > 0) | (z > 0))
                return np.where(valid[:, None], points[:, :2] * scale[:, None], 0.0), valid
            ideal = points[:, :2] / z[:, None]
            if self._is_identity:
                valid = (z > 0) & np.isfinite(ideal).all(axis=1)
                return np.where(valid[:, None], ideal, 0.0), valid
            valid = (z > 0) & (np.hypot(ideal[:, 0], ideal[:, 1]) < self.max_radius)
            ideal = np.where(valid[:, None], ideal, 0.0)
            u, v, xx, cross, yy = self._distort(ideal[:, 0], ideal[:, 1])
            if not self._is_radial:
                valid &= xx * yy > cross * cross
            return np.stack([u, v], axis=1), valid

    def unproject(self, plane: Float64) -> tuple[Float64, Float64]:
        """Unit directions float64[n, 3] of distorted plane coordinates float64[n, 2].

        The second result, float64[n], is how far (on the plane) each direction is from its position when projected
        back, inf where there is no ray.
        """
        directions, miss = np.empty((len(plane), 3)), np.empty(len(plane))
        # in blocks that stay in the processor's cache
        for start in range(0, len(plane), _BLOCK):
            block = slice(start, start + _BLOCK)
            directions[block], miss[block] = self._unproject(plane[block])
        return directions, miss

    def _unproject(self, plane: Float64) -> tuple[Float64, Float64]:
        if self._is_identity:
            return _unit(plane), np.zeros(len(plane))
        target = np.hypot(plane[:, 0], plane[:, 1])
        radius, miss = self._invert_radius(target)
        with np.errstate(divide="ignore", invalid="ignore"):
            towards = np.where(target[:, None] > 0, plane / target[:, None], 0.0)
        if self.fisheye:
            return np.concatenate([towards * np.sin(radius)[:, None], np.cos(radius)[:, None]], axis=1), miss
        ideal = towards * radius[:, None]
        if not self._is_radial:
            ideal, miss = self._invert_plane(plane, ideal)
        return _unit(ideal), miss

    def _radial(self, s: Float64) -> tuple[Float64, Float64]:
        """q(s) and dq/ds."""
        num, num_slope = _horner(self.numerator, s)
        if not any(self.denominator[1:]):
            return num, num_slope
        den, den_slope = _horner(self.denominator, s)
        q = num / den
        return q, (num_slope - q * den_slope) / den

    def _distort(self, x: Float64, y: Float64) -> tuple[Float64, Float64, Float64, Float64, Float64]:
        """Distorted position (u, v) of the ideal position (x, y), and du/dx, du/dy = dv/dx, dv/dy; float64[n] each."""
        p1, p2 = self.tangential
        xx, xy, yy = x * x, x * y, y * y
        q, slope = self._radial(xx + yy)
        slope *= 2
        a, b = p1 * x + p2 * y, p1 * y + p2 * x
        u = x * q + 2 * p1 * xy + p2 * (3 * xx + yy)
        v = y * q + 2 * p2 * xy + p1 * (xx + 3 * yy)
        return u, v, q + xx * slope + 2 * b + 4 * p2 * x, xy * slope + 2 * a, q + yy * slope + 2 * b + 4 * p1 * y

    def _invert_radius(self, target: Float64) -> tuple[Float64, Float64]:
        """Solves g(r) = target on [0, max_radius); returns (r, |g(r) − target|), the second inf where there is none."""
        limit = self.max_radius * (1 - 1e-12)
        radius = np.minimum(target, 0.5 * self.max_radius)
        with np.errstate(all="ignore"):
            for _ in range(_QUICK_STEPS):
                value, slope = self._grow(radius)
                radius = radius - (value - target) / slope
            miss = np.abs(self._grow(radius)[0] - target)
            # on [0, max_radius) g has one solution, so whatever got there plainly is right
            slow = ~((miss <= _ROUNDING * (1 + target)) & (radius >= 0) & (radius < limit))
        if slow.any():
            radius[slow] = self._bracket(target[slow])
            miss[slow] = np.abs(self._grow(radius[slow])[0] - target[slow])
        return radius, np.where(np.isfinite(target) & (radius < limit), miss, np.inf)

    def _grow(self, r: Float64) -> tuple[Float64, Float64]:
        """g(r) and g'(r)."""
        s = r * r
        q, slope = self._radial(s)
        return r * q, q + 2 * s * slope

    def _bracket(self, target: Float64) -> Float64:
        """As _invert_radius, by Newton steps kept inside a shrinking bracket: none is thrown past the turning point."""
        lo, hi = np.zeros_like(target), np.full_like(target, self.max_radius)
        radius = np.minimum(target, 0.5 * self.max_radius)
        for _ in range(_MAX_STEPS):
            with np.errstate(all="ignore"):
                value, slope = self._grow(radius)
                lo = np.where(value < target, radius, lo)
                hi = np.where(value < target, hi, radius)
                step = radius - (value - target) / slope
            step = np.where((step > lo) & (step < hi), step, 0.5 * (lo + hi))
            step = np.where(value == target, radius, step)
            if (np.abs(step - radius) <= 4e-16 * np.maximum(radius, 1e-12)).all():
                break
            radius = step
        return radius

    def _invert_plane(self, plane: Float64, start: Float64) -> tuple[Float64, Float64]:
        """Solves the full map from a start that leaves out the tangential part; (ideal float64[n, 2], miss float64[n]).

        A step that does not bring a position closer is halved, so the solution stays on the branch of the start.
        """
        x, y = start.T.copy()
        damping = np.ones(len(plane))
        with np.errstate(all="ignore"):
            u, v, xx, cross, yy = self._distort(x, y)
            du, dv = u - plane[:, 0], v - plane[:, 1]
            scale = _ROUNDING * (1 + np.abs(plane).max(axis=1))
            for step in range(_MAX_STEPS):
                miss = np.hypot(du, dv)
                # the last digits need one more step than the rest
                if step > 2 and (~(miss > scale) | (damping < 1e-9)).all():
                    break
                factor = damping / (xx * yy - cross * cross)
                trial_x, trial_y = x - factor * (yy * du - cross * dv), y - factor * (xx * dv - cross * du)
                u, v, *slopes = self._distort(trial_x, trial_y)
                trial_du, trial_dv = u - plane[:, 0], v - plane[:, 1]
                closer = np.hypot(trial_du, trial_dv) < miss
                damping = np.where(closer, np.minimum(1.0, 2 * damping), 0.5 * damping)
                x, y = np.where(closer, trial_x, x), np.where(closer, trial_y, y)
                du, dv = np.where(closer, trial_du, du), np.where(closer, trial_dv, dv)
                xx, cross, yy = (np.where(closer, n, o) for n, o in zip(slopes, (xx, cross, yy), strict=True))
            one_to_one = (xx * yy > cross * cross) & (np.hypot(x, y) < self.max_radius)
        ideal = np.where(one_to_one[:, None], np.stack([x, y], axis=1), 0.0)
        return ideal, np.where(one_to_one, np.hypot(du, dv), np.inf)


@lru_cache(maxsize=1 << 12)  # photos with focal lengths of their own mostly share a distortion
def _max_radius(numerator: tuple[float, ...], denominator: tuple[float, ...], fisheye: bool) -> float:
    num, den = np.array(numerator), np.array(denominator)
    s = np.array([0.0, 1.0])
    # sign of g'(r) as a polynomial in s: (N + 2 s N') D − 2 s N D'
    slope = polynomial.polysub(
        polynomial.polymul(polynomial.polyadd(num, 2 * polynomial.polymul(s, polynomial.polyder(num))), den),
        2 * polynomial.polymul(s, polynomial.polymul(num, polynomial.polyder(den))),
    )
    limit = np.pi if fisheye else _MAX_RADIUS
    return float(np.sqrt(min([limit**2, *_positive_roots(slope), *_positive_roots(den)])))


def _horner(coefficients: tuple[float, ...], s: Float64) -> tuple[Float64, Float64]:
    """The polynomial and its derivative."""
    value, slope = np.full_like(s, coefficients[-1]), np.zeros_like(s)
    for c in reversed(coefficients[:-1]):
        slope = slope * s + value
        value = value * s + c
    return value, slope


def _positive_roots(coefficients: Float64) -> list[float]:
    """Positive roots of a polynomial whose constant term is 1 (any order)."""
    # solved for 1 / s: the constant term leads then, so that tiny high coefficients divide nothing
    inverse = polynomial.polyroots(coefficients[::-1])
    real = inverse.real[(np.abs(inverse.imag) <= 1e-9 * np.abs(inverse.real)) & (inverse.real > 1 / _MAX_RADIUS**2)]
    return [1 / float(u) for u in real]


def _unit(plane: Float64) -> Float64:
    vector = np.concatenate([plane, np.ones((len(plane), 1))], axis=1)
    vector /= np.sqrt(np.einsum("ni,ni->n", vector, vector))[:, None]
    return vector
