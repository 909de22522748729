"""Which patches belong to which treelet of a band, by what the committed bands above show along their rays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, Int64
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.node_id import encode_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, Rays, Samples
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixels import Patches, patch_points
from infnerf_tiles.training.shared import Shared

RAYS_PER_EDGE = 2
"""Rays cast per patch edge to find out where its pixels end."""
MIN_SHARE = 0.05
"""A treelet that holds more than this share of a ray's weight gets the ray's patch."""
CROSSING_SHARE = 0.15
"""Share of the patches that only cross a treelet's occupied cells and go along, so that air there is penalised."""
_MARGIN_VOXELS = 2.0
_LEVEL_MARGIN = 0.25
_RAYS_AT_ONCE = 1 << 15


@dataclass(frozen=True, kw_only=True)
class BandCut:
    """One band's place in the octree."""

    top: int
    """Level of its treelet roots."""
    bottom: int
    """Deepest level of its nodes."""
    root_keys: Int64
    """int64 [k], sorted keys of its treelets' roots."""


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """(ray, treelet) pairs: a ray has samples in the treelet's cube."""

    ray: Int64
    treelet: Int64
    weight: Float32


def assign_patches(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> Mapping[int, Int64]:
    """Numbers of the patches of each treelet of the band, by root key.

    A patch belongs to a treelet that holds more than MIN_SHARE of one of its rays' weight at a fitting level, and so do
    the patches around it; part of those that only cross its occupied cells go along. Photos, octree and committed
    bands decide alone: the same call gives the same answer.
    """
    num, treelets = patches.count, len(band.root_keys)
    if not treelets:
        return {}
    hit: dict[int, list[Int64]] = {k: [] for k in range(treelets)}
    cross: dict[int, list[Int64]] = {k: [] for k in range(treelets)}
    per_patch = RAYS_PER_EDGE**2
    at_once = max(1, _RAYS_AT_ONCE // per_patch)
    for first in range(0, num, at_once):
        part = patches.select(np.arange(first, min(first + at_once, num), dtype=np.int32))
        pairs, fits, ends = _cast(context, arena, shared, part, band, octree)
        strong = fits[pairs.ray] & ((pairs.weight > MIN_SHARE) | ~ends[pairs.ray])
        patch = pairs.ray // per_patch + first
        for k in range(treelets):
            mine = pairs.treelet == k
            if mine.any():
                hit[k].append(np.unique(patch[mine & strong]))
                cross[k].append(np.unique(patch[mine & ~strong & fits[pairs.ray]]))
    result = {}
    for k, key in enumerate(band.root_keys.tolist()):
        inside = np.unique(np.concatenate([np.empty(0, np.int64), *hit[k]]))
        grown = _dilated(patches, inside)
        only = np.setdiff1d(np.unique(np.concatenate([np.empty(0, np.int64), *cross[k]])), grown)
        chosen = only[np.random.default_rng((key, 1)).random(len(only)) < CROSSING_SHARE]
        result[key] = np.union1d(grown, chosen)
    return result


def _cast(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> tuple[_Pairs, Bool, Bool]:
    """Cast the patches' rays: pairs with treelets, and per ray whether its level fits the band and whether it ends."""
    cameras, root = context.photos.cameras, context.store.header.root
    xy = patch_points(patches, RAYS_PER_EDGE)
    per_patch = xy.shape[1]
    photo = np.repeat(patches.photo, per_patch)
    pyramid = np.repeat(patches.pyramid, per_patch)
    flat = xy.reshape(-1, 2)
    # a patch at the right or bottom edge may reach past the photo
    size = np.array([[c.width, c.height] for c in cameras.cameras], np.float64)[cameras.camera_index[photo]]
    origins, directions = cameras.rays(photo, np.minimum(flat, size - 0.5))
    footprint = np.exp2(pyramid.astype(np.float64)) / cameras.focals[photo]
    device = arena.device
    unit, towards = root.to_unit(origins), directions / root.edge
    rays = Rays(
        origins=torch.from_numpy(unit).to(device),
        directions=torch.from_numpy(towards).to(device),
        footprint=torch.from_numpy(footprint).to(device),
        offset=torch.full((len(photo),), 0.5, dtype=torch.float64, device=device),
    )
    basis = direction_basis(torch.from_numpy(directions).to(device))
    kernels = for_device(device)
    samples = kernels.march(rays, arena, context.march(2.0), keep=256, adapt=True)
    sigma, colour = shade(arena, shared.decoder, samples, basis)
    _, transmittance, depth, weights = kernels.composite(
        samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-3
    )
    opacity = 1.0 - transmittance.cpu().numpy()
    distance = depth.cpu().numpy() / np.maximum(opacity, 1e-6)
    pairs = _pairs(samples, weights.cpu().numpy(), unit, towards, band, context.shape.cells)
    width = np.maximum(distance, 1e-9) * footprint
    fits = _level_fits(context, unit + distance[:, None] * towards, width, pyramid, photo, band, octree)
    return pairs, fits, opacity > 0.5


def _pairs(
    samples: Samples, weights: Float32, origins: Float64, directions: Float64, band: BandCut, node_cells: int
) -> _Pairs:
    """Sum each ray's weights by treelet; a sample within two voxels above of a face counts on both sides of it."""
    ray = samples.ray.cpu().numpy().astype(np.int64)
    distance = samples.t.cpu().numpy()[:, None].astype(np.float64)
    unit: Float64 = origins[ray] + distance * directions[ray]
    cells, count = 1 << band.top, len(band.root_keys)
    # a voxel of the level above is two cells of the band's root nodes
    margin = _MARGIN_VOXELS * 2.0 / node_cells
    pair: list[Int64] = []
    weight: list[Float32] = []
    for c in range(8 if band.top else 1):
        shift = np.array([2 * (c & 1) - 1, (c & 2) - 1, (c >> 1 & 2) - 1]) * (margin if band.top else 0.0)
        at = np.floor(unit * cells + shift).astype(np.int64)
        inside = np.flatnonzero(((at >= 0) & (at < cells)).all(axis=1))
        keys = encode_keys(np.full(len(inside), band.top), at[inside])
        row = np.minimum(np.searchsorted(band.root_keys, keys), count - 1)
        found = band.root_keys[row] == keys
        pair.append(np.unique(ray[inside][found] * count + row[found], return_index=True)[0])
        total = np.bincount(ray[inside][found] * count + row[found], weights[inside][found]) if found.any() else None
        weight.append(np.empty(0, np.float32) if total is None else total[pair[-1]].astype(np.float32))
    unique, inverse = np.unique(np.concatenate(pair), return_inverse=True)
    largest = np.zeros(len(unique), np.float32)
    np.maximum.at(largest, inverse, np.concatenate(weight))
    return _Pairs(ray=unique // count, treelet=unique % count, weight=largest)


def _level_fits(
    context: Context,
    unit: Float64,
    width: Float64,
    pyramid: Int32,
    photo: Int32,
    band: BandCut,
    octree: Octree,
) -> Bool:
    """bool [Q]: whether the ray's pixel wants levels of this band where it ends, at `unit`, `width` world units wide.

    Too coarse for the band: its parents take it. Too fine: a deeper band takes it, unless none exists there or the
    photo has no coarser level (then the band learns the mean of what it cannot resolve).
    """
    wanted = np.log2(context.gsd_root / width)
    wanted += context.settings.octree.lod_bias
    coarse_enough = wanted <= band.bottom + _LEVEL_MARGIN
    nothing_below = octree.deepest_level(unit) <= band.bottom
    cameras = context.photos.cameras
    levels = np.array([num_pyramid_levels(c.width) for c in cameras.cameras])
    coarsest = pyramid == levels[cameras.camera_index[photo]] - 1
    fine_enough = (wanted > band.top - 1 - _LEVEL_MARGIN) if band.top else np.ones(len(wanted), np.bool_)
    fits: Bool = fine_enough & (coarse_enough | nothing_below | coarsest)
    return fits


def _dilated(patches: Patches, chosen: Int64) -> Int64:
    """The chosen patches and their neighbours in the same photo and pyramid level."""
    if not len(chosen):
        return chosen
    span = 1 << 16
    image = patches.photo.astype(np.int64) * 32 + patches.pyramid
    place = (image * span + patches.row + 1) * span + patches.column + 1
    order = np.argsort(place)
    wanted = (place[chosen][:, None] + np.array([r * span + c for r in (-1, 0, 1) for c in (-1, 0, 1)])).ravel()
    at = np.minimum(np.searchsorted(place[order], wanted), len(order) - 1)
    return np.unique(order[at][place[order][at] == wanted])
