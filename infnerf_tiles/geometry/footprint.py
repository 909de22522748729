"""Footprint and wanted level, the one definition that growth, routing, training and drawing share."""

import numpy as np
from numpy.typing import ArrayLike

from infnerf_tiles.arrays import Float64, Int32


def gsd(edge_root: float, cells: int, level: ArrayLike) -> Float64:
    """Ground sampling distance of a level, world units: edge of its nodes / cells per edge."""
    return np.asarray(edge_root / cells / np.exp2(np.asarray(level, dtype=np.float64)))


def footprint(distance: ArrayLike, focal: ArrayLike, pyramid: ArrayLike = 0) -> Float64:
    """Edge of a pixel's back-projection, world units.

    `distance` along the ray, world units; `focal` in pixels of pyramid level 0; `pyramid` level p. Broadcast.
    """
    t, f = np.asarray(distance, dtype=np.float64), np.asarray(focal, dtype=np.float64)
    return np.asarray(t * np.exp2(np.asarray(pyramid, dtype=np.float64)) / f)


def wanted_level(gsd_root: float, footprint: ArrayLike, lod_bias: float = 0.0) -> Float64:
    """λ = log2(GSD_0 / footprint) + lod_bias, a real number; +inf for a footprint of zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(gsd_root / np.asarray(footprint, dtype=np.float64)) + lod_bias)


def level_and_weight(wanted: ArrayLike, deepest: ArrayLike) -> tuple[Int32, Float64]:
    """Finest level drawn and its weight.

    `wanted` λ and `deepest` (level of the deepest existing node on the sample's path, >= 0), broadcast. Returns
    (d int32, β float64): d = clamp(ceil(λ), 0, deepest), β = clamp(λ − (d − 1), 0, 1), and β = 1 at the root. The pair
    is continuous in λ: a level enters with weight 0.
    """
    lam = np.asarray(wanted, dtype=np.float64)
    d = np.clip(np.ceil(lam), 0, np.asarray(deepest, dtype=np.float64))
    beta = np.where(d == 0, 1.0, np.clip(lam - (d - 1), 0.0, 1.0))
    return d.astype(np.int32), beta
