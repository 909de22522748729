"""Which nodes a part of a picture can be drawn with: from ids alone, without reading anything.

Never too few: every node that a march of these rays draws with, or descends through, is among them.
"""

import math
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64, check_shape
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import MarchSettings

_SLACK = 1e-9  # relative; covers the rounding of positions and levels here and in the march
_ROUNDING = 1e-12  # of the root cube's edge
MIN_FORWARD = 0.1
"""Cosine below which rays are too far off the axis to be bounded by planes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RayBundle:
    """Rays from one point, by what bounds them all.

    origin: float64[3], world. least, most: float64[3], bounds of the unit directions. normals: float64[k, 3], unit,
    inwards: every point ahead on a ray of the bundle has (point - origin) . normal >= 0 for each. footprint: edge of a
    pixel's back-projection at distance 1.
    """

    origin: Float64
    least: Float64
    most: Float64
    normals: Float64
    footprint: float


def bundle_of(origin: Float64, directions: Float64, footprint: float, axes: Float64) -> RayBundle:
    """The planes around unit rays float64[n, 3] (world, n >= 1) from float64[3] `origin`, whatever the lens did.

    axes: float64[3, 3], the camera's axes as columns (right, down, forward), along which the rays are laid out. Where
    the rays spread too widely to be bounded by planes there are none.
    """
    check_shape("directions", directions, (None, 3))
    least, most = directions.min(axis=0), directions.max(axis=0)
    right, down, forward = axes.T
    ahead = directions @ forward
    middle = directions.sum(axis=0)
    spread = float(np.linalg.norm(middle)) / len(directions)
    if ahead.min() < MIN_FORWARD and spread > MIN_FORWARD:
        # off to the side of a wide lens: planes around the middle of the rays instead
        forward = middle / (spread * len(directions))
        right = np.cross(down if abs(forward @ down) < 0.9 else axes[:, 2], forward)
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        ahead = directions @ forward
    if ahead.min() < MIN_FORWARD:
        normals = np.empty((0, 3))
        return RayBundle(origin=origin, least=least, most=most, normals=normals, footprint=footprint)
    slopes = [directions @ side / ahead for side in (right, down)]
    ranges = tuple((float(slope.min()), float(slope.max())) for slope in slopes)
    return bundle_between(origin, least, most, ranges, footprint, np.stack([right, down, forward], axis=1))


def bundle_between(
    origin: Float64,
    least: Float64,
    most: Float64,
    slopes: tuple[tuple[float, float], ...],
    footprint: float,
    axes: Float64,
) -> RayBundle:
    """The bundle of rays with directions between `least` and `most`, float64[3] each, of which right and down are in
    these ranges ("slopes", one each) where forward is 1. `axes` as in `bundle_of`."""
    right, down, forward = axes.T
    planes = [forward]
    for side, (low, high) in zip((right, down), slopes, strict=True):
        planes += [side - (low - _SLACK) * forward, (high + _SLACK) * forward - side]
    normals = np.array(planes)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return RayBundle(origin=origin, least=least, most=most, normals=normals, footprint=footprint)


def select_nodes(
    octree: Octree,
    root: RootCube,
    bundle: RayBundle,
    lattice: MarchSettings,
    *,
    nearest: float = 0.0,
    farthest: float = math.inf,
) -> Int64:
    """int64[k] keys, ascending, of the nodes that samples of a bundle can need; ancestors included.

    nearest, farthest: only samples at these distances count, world units.

    A node of level d > 0 is needed where its parent is and a ray of the bundle may have a sample in its cube that
    wants more than level d − 1; wanted levels fall with distance, so the nearest one decides.
    """
    nearest = max(nearest * (1 - _SLACK), lattice.near)
    farthest *= 1 + _SLACK
    frontier: Int64 = np.zeros(min(octree.num_nodes, 1), dtype=np.int64)
    chosen = [frontier]
    wanted_at_1 = math.log2(lattice.gsd_root / bundle.footprint) + lattice.lod_bias
    origin = bundle.origin - np.asarray(root.origin)  # first, so that large map coordinates cost no digits
    while len(frontier):
        children = octree.children[frontier].ravel()
        below = children[children >= 0].astype(np.int64)
        if not len(below):
            break
        level = int(octree.levels[below[0]])
        edge = root.node_edge(level)
        half = 0.5 * edge * (1 + _SLACK) + _ROUNDING * root.edge
        middle = (octree.xyz[below] + 0.5) * edge - origin
        inside, near = _reachable(middle, half, bundle, nearest, farthest)
        with np.errstate(divide="ignore"):
            inside &= wanted_at_1 - np.log2(near) > level - 1 - _SLACK
        frontier = below[inside]
        chosen.append(frontier)
    rows: Int64 = np.concatenate(chosen)
    return octree.keys[rows]


def _reachable(
    middle: Float64, half: float, bundle: RayBundle, nearest: float, farthest: float
) -> tuple[Bool, Float64]:
    """(which cubes may hold samples bool[n], distance of the nearest such sample float64[n]).

    middle: float64[n, 3], centres relative to the origin of the rays, world units; half: half an edge.
    """
    offset = np.abs(middle)
    near = np.linalg.norm(np.maximum(offset - half, 0.0), axis=1)
    far = np.linalg.norm(offset + half, axis=1)
    inside = (near <= farthest) & (far >= nearest)
    # the box around all that the rays pass between the two distances
    low = np.where(bundle.least < 0, farthest, nearest) * bundle.least
    high = np.where(bundle.most > 0, farthest, nearest) * bundle.most
    inside &= ((middle + half >= low) & (middle - half <= high)).all(axis=1)
    if len(bundle.normals):
        reach = middle @ bundle.normals.T + half * np.abs(bundle.normals).sum(axis=1)
        inside &= (reach >= 0).all(axis=1)
    return inside, np.maximum(near, nearest)
