"""Sparse points as depth targets: the ray from a camera to a point that it saw meets nothing before the point.

Only tracks say that. A likely observer of a point may well have something in front of it, which would be trained away.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Float64, Int32, Int64
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.kept import facts_of

MAX_ERROR = 2.0
"""Points with a larger reprojection error, in pixels of the stored photos, are no targets."""
MIN_TRACK = 3
RAY_SHARE = 0.2
"""Rays to points, as a share of the rays to pixels of a step."""
HALF_WIDTH = 4.0
"""A ray's weight belongs within that many footprints of its point."""


@dataclass(frozen=True, kw_only=True)
class DepthBatch:
    """Rays to points drawn for one step; all arrays have one entry per ray."""

    photo: Int32
    origins: Float64
    """float64 [D, 3], world."""
    directions: Float64
    """float64 [D, 3], unit, world."""
    distance: Float64
    """float64 [D], world units."""


class DepthTargets:
    """Observations (photo, point) of a treelet's sparse points."""

    def __init__(self, centres: Float64, photo: Int32, xyz: Float64, point: Int32 | None = None):
        """centres: float64 [photos, 3]. photo: int32 [k]. xyz: float64 [m, 3]; point: int32 [k], row of each
        observation's point there, None if every observation has its own."""
        self.centres, self.photo, self.xyz = centres, photo, xyz
        self.point: Int32 = np.arange(len(photo), dtype=np.int32) if point is None else point

    @property
    def count(self) -> int:
        return len(self.photo)

    @classmethod
    def of_treelet(cls, context: Context, top: NodeId) -> "DepthTargets":
        """Observations by training photos of the reliable points in the treelet's cube; none without tracks."""
        points, cameras = context.photos.points, context.photos.cameras
        empty = cls(cameras.centres, np.empty(0, np.int32), np.empty((0, 3)))
        if points is None or not len(points.track_photos):
            return empty
        inside = facts_of(context.photos).sorted_points(points.xyz, context.store.header.root).within(top)
        lengths = points.track_offsets[inside + 1] - points.track_offsets[inside]
        good = (lengths >= MIN_TRACK) & (points.error[inside] <= MAX_ERROR)
        inside, lengths = inside[good], lengths[good]
        # the observations of each point lie one after the other
        first = points.track_offsets[inside] - np.cumsum(lengths) + lengths
        seen: Int64 = np.repeat(first, lengths) + np.arange(lengths.sum())
        owner = np.repeat(inside.astype(np.int32), lengths)
        trains = ~context.photos.is_test[points.track_photos[seen]]
        return cls(cameras.centres, points.track_photos[seen[trains]], points.xyz, owner[trains])

    def draw(self, rng: np.random.Generator, count: int) -> DepthBatch:
        """Draw `count` observations uniformly."""
        k = rng.integers(0, self.count, count)
        photo = self.photo[k]
        origins = self.centres[photo]
        away = self.xyz[self.point[k]] - origins
        distance = np.linalg.norm(away, axis=1)
        return DepthBatch(
            photo=photo,
            origins=origins,
            directions=away / np.maximum(distance, 1e-12)[:, None],
            distance=distance,
        )


def near_points(t: Tensor, dt: Tensor, distance: Tensor, footprint: Tensor) -> Tensor:
    """bool [M]: which samples at t, dt float32 [M] are as near to their ray's point as its pixel allows.

    distance, footprint: [M], distance of each sample's point and footprint of its ray at distance 1.
    """
    # a sample stands for an interval, so half of it counts too
    return (t.to(distance.dtype) - distance).abs() <= HALF_WIDTH * footprint * distance + 0.5 * dt


def mass_loss(mass: Tensor) -> Tensor:
    """-log of the weight [D] that rays have near their points: DS-NeRF (Deng et al. 2022) with a box for its bell."""
    return -torch.log(mass + 1e-2)


def point_loss(weights: Tensor, samples: Samples, first: int, distance: Tensor, footprint: Tensor) -> Tensor:
    """Mean of `mass_loss` over rays to points.

    Args:
        weights: float32 [M] of all samples. first: rays from this one on lead to points.
        distance: float64 [D], distance of each such ray's point. footprint: float64 [D], at distance 1.
    """
    begin = int(samples.ray_start[first])
    ray = samples.ray[begin:].long() - first
    near = near_points(samples.t[begin:], samples.dt[begin:], distance[ray], footprint[ray])
    mass = torch.zeros(distance.shape[0]).index_add(0, ray, weights[begin:] * near)
    return mass_loss(mass).mean()
