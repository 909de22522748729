"""Axis-aligned boxes in world coordinates."""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, check_shape

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Aabb:
    """The half-open box [lo, hi), world units. `lo` and `hi` are (x, y, z) with lo <= hi, else ValueError."""

    lo: Vector
    hi: Vector

    def __post_init__(self) -> None:
        lo, hi = (_vector(name, value) for name, value in (("lo", self.lo), ("hi", self.hi)))
        if not all(a <= b for a, b in zip(lo, hi, strict=True)):
            raise ValueError(f"box: expected lo <= hi on every axis, got lo {lo} and hi {hi}")
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @property
    def centre(self) -> Float64:
        """float64[3], world."""
        centre: Float64 = (np.asarray(self.lo) + np.asarray(self.hi)) / 2
        return centre

    @property
    def size(self) -> Float64:
        """float64[3], world units."""
        size: Float64 = np.asarray(self.hi) - np.asarray(self.lo)
        return size

    @property
    def corners(self) -> Float64:
        """float64[8, 3], world; corner c = dx + 2 dy + 4 dz has bit 0 on hi where the bit is set."""
        bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
        return np.where(bits == 1, np.asarray(self.hi), np.asarray(self.lo))

    def contains(self, points: Float64) -> Bool:
        """bool[n]: which of float64[n, 3] world points lie in [lo, hi)."""
        check_shape("points", points, (None, 3))
        inside: Bool = np.logical_and.reduce((points >= np.asarray(self.lo)) & (points < np.asarray(self.hi)), axis=1)
        return inside

    def intersect_rays(self, origins: Float64, directions: Float64) -> tuple[Float64, Float64, Bool]:
        """Interval of each ray inside the closed box.

        `origins`, `directions`: float64[n, 3], world; directions need not be unit, t counts in their length.
        Returns (near float64[n], far float64[n], hit bool[n]) with 0 <= near <= far where hit; elsewhere near and far
        are 0. A ray that lies in a face counts as inside.
        """
        check_shape("origins", origins, (None, 3))
        check_shape("directions", directions, (None, 3))
        lo, hi = np.asarray(self.lo), np.asarray(self.hi)
        parallel = directions == 0
        step = np.where(parallel, 1.0, directions)
        first, second = (lo - origins) / step, (hi - origins) / step
        # a parallel ray is limited by its slab either not at all or entirely
        between = (origins >= lo) & (origins <= hi)
        enter = np.where(parallel, np.where(between, -np.inf, np.inf), np.minimum(first, second))
        leave = np.where(parallel, np.where(between, np.inf, -np.inf), np.maximum(first, second))
        near, far = np.maximum(enter.max(axis=1), 0.0), leave.min(axis=1)
        hit = near <= far
        return np.where(hit, near, 0.0), np.where(hit, far, 0.0), hit


def _vector(name: str, value: Vector) -> Vector:
    x, y, z = (float(v) for v in value)
    if not np.isfinite((x, y, z)).all():
        raise ValueError(f"box {name}: expected three finite numbers, got {(x, y, z)}")
    return x, y, z
