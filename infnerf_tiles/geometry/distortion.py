"""Lens distortion: the map from ideal to distorted image-plane coordinates (focal length 1), and its inverse."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import polynomial

from infnerf_tiles.arrays import Bool, Float64

_MAX_STEPS = 100
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
        num, den = np.array(self.numerator), np.array(self.denominator)
        s = np.array([0.0, 1.0])
        # sign of g'(r) as a polynomial in s: (N + 2 s N') D − 2 s N D'
        slope = polynomial.polysub(
            polynomial.polymul(polynomial.polyadd(num, 2 * polynomial.polymul(s, polynomial.polyder(num))), den),
            2 * polynomial.polymul(s, polynomial.polymul(num, polynomial.polyder(den))),
        )
        limit = np.pi if self.fisheye else _MAX_RADIUS
        return float(np.sqrt(min([limit**2, *_positive_roots(slope), *_positive_roots(den)])))

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
                scale = np.where(radius > 0, self._radial(theta**2) * theta / radius, 0.0)
                valid = (theta < self.max_radius) & ((radius > 0) | (z > 0))
                return np.where(valid[:, None], points[:, :2] * scale[:, None], 0.0), valid
            ideal = points[:, :2] / z[:, None]
            if self._is_identity:
                valid = (z > 0) & np.isfinite(ideal).all(axis=1)
                return np.where(valid[:, None], ideal, 0.0), valid
            valid = (z > 0) & (np.hypot(ideal[:, 0], ideal[:, 1]) < self.max_radius)
            ideal = np.where(valid[:, None], ideal, 0.0)
            plane, jacobian = self._distort(ideal)
            if not self._is_radial:
                valid &= _determinant(jacobian) > 0
            return plane, valid

    def unproject(self, plane: Float64) -> tuple[Float64, Float64]:
        """Unit directions float64[n, 3] of distorted plane coordinates float64[n, 2].

        The second result, float64[n, 2], is how far each direction is from its position when projected back, inf where
        there is no ray.
        """
        if self._is_identity:
            return _unit(plane, np.ones(len(plane))), np.zeros_like(plane)
        target = np.hypot(plane[:, 0], plane[:, 1])
        radius, miss = self._invert_radius(target)
        with np.errstate(divide="ignore", invalid="ignore"):
            towards = np.where(target[:, None] > 0, plane / target[:, None], 0.0)
        if self.fisheye:
            directions = np.concatenate([towards * np.sin(radius)[:, None], np.cos(radius)[:, None]], axis=1)
            return directions, towards * miss[:, None]
        ideal = towards * radius[:, None]
        residual = towards * miss[:, None]
        if not self._is_radial:
            ideal, residual = self._newton(plane, ideal)
        return _unit(ideal, np.ones(len(ideal))), residual

    def _radial(self, s: Float64) -> Float64:
        """q(s)."""
        value: Float64 = _horner(self.numerator, s) / _horner(self.denominator, s)
        return value

    def _radial_slope(self, s: Float64) -> Float64:
        """dq/ds."""
        num, den = _horner(self.numerator, s), _horner(self.denominator, s)
        num_slope, den_slope = (_horner(_derivative(c), s) for c in (self.numerator, self.denominator))
        slope: Float64 = (num_slope * den - num * den_slope) / den**2
        return slope

    def _distort(self, ideal: Float64) -> tuple[Float64, Float64]:
        """Distorted positions float64[n, 2] and Jacobians float64[n, 2, 2] of ideal positions float64[n, 2]."""
        x, y = ideal[:, 0], ideal[:, 1]
        p1, p2 = self.tangential
        s = x * x + y * y
        q, dq = self._radial(s), 2 * self._radial_slope(s)
        out = np.stack(
            [x * q + 2 * p1 * x * y + p2 * (s + 2 * x * x), y * q + p1 * (s + 2 * y * y) + 2 * p2 * x * y], axis=1
        )
        cross = x * y * dq + 2 * p1 * x + 2 * p2 * y
        xx = q + x * x * dq + 2 * p1 * y + 6 * p2 * x
        yy = q + y * y * dq + 6 * p1 * y + 2 * p2 * x
        return out, np.stack([np.stack([xx, cross], axis=1), np.stack([cross, yy], axis=1)], axis=1)

    def _invert_radius(self, target: Float64) -> tuple[Float64, Float64]:
        """Solves g(r) = target on [0, max_radius); returns (r, g(r) − target), the second inf where there is none.

        Newton kept inside a shrinking bracket, so that steep distortion cannot throw it past the turning point.
        """
        lo, hi = np.zeros_like(target), np.full_like(target, self.max_radius)
        radius = np.minimum(target, 0.5 * self.max_radius)
        active = np.arange(len(target))
        for _ in range(_MAX_STEPS):
            r = radius[active]
            q = self._radial(r * r)
            miss = r * q - target[active]
            below = miss < 0
            lo[active] = np.where(below, r, lo[active])
            hi[active] = np.where(below, hi[active], r)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                step = r - miss / (q + 2 * r * r * self._radial_slope(r * r))
            a, b = lo[active], hi[active]
            step = np.where((step > a) & (step < b), step, 0.5 * (a + b))
            step = np.where(miss == 0, r, step)
            moving = np.abs(step - r) > 4e-16 * np.maximum(r, 1e-12)
            radius[active] = step
            active = active[moving]
            if not len(active):
                break
        miss = radius * self._radial(radius * radius) - target
        reachable = np.isfinite(target) & (radius < self.max_radius * (1 - 1e-12))
        return radius, np.where(reachable, miss, np.inf)

    def _newton(self, plane: Float64, start: Float64) -> tuple[Float64, Float64]:
        """Solves the full map from a start that leaves out the tangential part; (ideal, residual), inf as above.

        A step that does not bring a position closer is halved, so the solution stays on the branch of the start.
        """
        ideal = start.copy()
        with np.errstate(all="ignore"):
            value, jacobian = self._distort(ideal)
            residual = value - plane
            damping = np.ones(len(plane))
            active = np.arange(len(plane))
            for _ in range(_MAX_STEPS):
                (a, b), (c, d) = jacobian[active, 0].T, jacobian[active, 1].T
                u, v = residual[active].T
                step = np.stack([d * u - b * v, a * v - c * u], axis=1) / _determinant(jacobian[active])[:, None]
                step *= damping[active, None]
                trial = ideal[active] - step
                value, trial_jacobian = self._distort(trial)
                trial_residual = value - plane[active]
                closer = _squared(trial_residual) < _squared(residual[active])
                rows = active[closer]
                ideal[rows], residual[rows], jacobian[rows] = (
                    trial[closer],
                    trial_residual[closer],
                    trial_jacobian[closer],
                )
                damping[active] = np.where(closer, np.minimum(1.0, 2 * damping[active]), 0.5 * damping[active])
                # once rounding alone decides, no step brings anything closer
                active = active[(np.abs(step) > 4e-16 * (1 + np.abs(trial))).any(axis=1)]
                if not len(active):
                    break
            one_to_one = (_determinant(jacobian) > 0) & (np.hypot(ideal[:, 0], ideal[:, 1]) < self.max_radius)
        return np.where(one_to_one[:, None], ideal, 0.0), np.where(one_to_one[:, None], residual, np.inf)


def _horner(coefficients: tuple[float, ...], s: Float64) -> Float64:
    value = np.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value *= s
        value += c
    return value


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(i * c for i, c in enumerate(coefficients))[1:] or (0.0,)


def _positive_roots(coefficients: Float64) -> list[float]:
    trimmed = polynomial.polytrim(coefficients)
    if len(trimmed) < 2:
        return []
    roots = polynomial.polyroots(trimmed)
    real = roots.real[np.abs(roots.imag) <= 1e-9 * np.maximum(np.abs(roots.real), 1e-9)]
    return [float(v) for v in real if v > 0]


def _determinant(jacobian: Float64) -> Float64:
    value: Float64 = jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0]
    return value


def _squared(vectors: Float64) -> Float64:
    value: Float64 = np.einsum("ni,ni->n", vectors, vectors)
    return value


def _unit(plane: Float64, z: Float64) -> Float64:
    vector = np.concatenate([plane, z[:, None]], axis=1)
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    return vector
