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
CROSSING_COPIES = 0.2
"""Most copies of such a patch, on average over all treelets that it crosses."""
ENDLESS_COPIES = 1.0
"""Copies of a patch whose rays end nowhere (sky), on average over all treelets that it crosses."""
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
    the patches around it. Part of those that only cross its occupied cells go along, and those whose rays end nowhere
    go to about ENDLESS_COPIES of the treelets that they cross. Photo, octree and committed bands decide alone, so that
    photos can be assigned one by one.
    """
    num, treelets = patches.count, len(band.root_keys)
    if not treelets:
        return {}
    hit: list[Int64] = [np.empty(0, np.int64)]
    cross: list[Int64] = [np.empty(0, np.int64)]
    per_patch = RAYS_PER_EDGE**2
    at_once = max(1, _RAYS_AT_ONCE // per_patch)
    for first in range(0, num, at_once):
        part = patches.select(np.arange(first, min(first + at_once, num), dtype=np.int32))
        pairs, fits, ends, crossed = _cast(context, arena, shared, part, band, octree)
        patch = pairs.ray // per_patch
        luck = _luck(band.root_keys[pairs.treelet], part, patch)
        endless = ~ends[pairs.ray] & (luck < ENDLESS_COPIES / crossed[pairs.ray])
        strong = fits[pairs.ray] & ((pairs.weight > MIN_SHARE) | endless)
        weak = fits[pairs.ray] & ~strong & (luck < np.minimum(CROSSING_SHARE, CROSSING_COPIES / crossed[pairs.ray]))
        code = pairs.treelet * num + patch + first
        hit.append(np.unique(code[strong]))
        cross.append(np.unique(code[weak]))
    strongly, weakly = (np.unique(np.concatenate(codes)) for codes in (hit, cross))
    bounds = np.arange(treelets + 1) * num
    starts, weak_starts = np.searchsorted(strongly, bounds), np.searchsorted(weakly, bounds)
    result = {}
    for k, key in enumerate(band.root_keys.tolist()):
        grown = _dilated(patches, strongly[starts[k] : starts[k + 1]] - bounds[k])
        result[key] = np.union1d(grown, weakly[weak_starts[k] : weak_starts[k + 1]] - bounds[k])
    return result


def _luck(keys: Int64, patches: Patches, chosen: Int64) -> Float64:
    """A number in [0, 1) for each pair of a treelet and a patch, the same whatever else is asked for: float64 [n]."""
    place = (patches.photo.astype(np.uint64) << np.uint64(40)) | (patches.pyramid.astype(np.uint64) << np.uint64(35))
    place |= (patches.row.astype(np.uint64) << np.uint64(16)) | patches.column.astype(np.uint64)
    with np.errstate(over="ignore"):  # SplitMix64's mixing (Steele et al. 2014)
        x = place[chosen] + keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    luck: Float64 = (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return luck


def _cast(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> tuple[_Pairs, Bool, Bool, Int64]:
    """Cast the patches' rays: pairs with treelets, and per ray whether its level fits the band, whether it ends, and
    how many cubes of the band's top level it crosses."""
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
    rays = Rays(
        origins=torch.from_numpy(root.to_unit(origins)),
        directions=torch.from_numpy(directions / root.edge),
        footprint=torch.from_numpy(footprint),
        offset=torch.full((len(photo),), 0.5, dtype=torch.float64),
    )
    basis = direction_basis(torch.from_numpy(directions))
    kernels = for_device(arena.device)
    samples = kernels.march(rays, arena, context.march(2.0), keep=256, adapt=True)
    sigma, colour = shade(arena, shared.decoder, samples, basis)
    _, transmittance, depth, weights = kernels.composite(
        samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-3
    )
    opacity = 1.0 - transmittance.numpy()
    distance = depth.numpy() / np.maximum(opacity, 1e-6)
    pairs = _pairs(samples, weights.numpy(), rays, band, context.shape.cells)
    fits = _level_fits(context, rays, distance, pyramid, photo, band, octree)
    return pairs, fits, opacity > 0.5, _crossed(samples, rays, band)


def _crossed(samples: Samples, rays: Rays, band: BandCut) -> Int64:
    """int64 [Q]: cubes of the band's top level in which a ray has samples, at least 1."""
    ray = samples.ray.numpy().astype(np.int64)
    distance = samples.t.numpy()[:, None].astype(np.float64)
    unit: Float64 = rays.origins.numpy()[ray] + distance * rays.directions.numpy()[ray]
    cells = 1 << band.top
    at = np.clip(np.floor(unit * cells), 0, cells - 1).astype(np.int64)
    # samples of a ray are in order, so that a cube is one run of them
    new = (np.diff(at, axis=0, prepend=-1) != 0).any(axis=1) | (np.diff(ray, prepend=-1) != 0)
    return np.maximum(np.bincount(ray[new], minlength=rays.origins.shape[0]), 1)


def _pairs(samples: Samples, weights: Float32, rays: Rays, band: BandCut, node_cells: int) -> _Pairs:
    """Sum each ray's weights by treelet; a sample within two voxels above of a face counts on both sides of it."""
    ray = samples.ray.numpy().astype(np.int64)
    distance = samples.t.numpy()[:, None].astype(np.float64)
    unit: Float64 = rays.origins.numpy()[ray] + distance * rays.directions.numpy()[ray]
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
    rays: Rays,
    distance: Float64,
    pyramid: Int32,
    photo: Int32,
    band: BandCut,
    octree: Octree,
) -> Bool:
    """bool [Q]: whether the ray's pixel wants levels of this band where it ends.

    Too coarse for the band: its parents take it. Too fine: a deeper band takes it, unless none exists there or the
    photo has no coarser level (then the band learns the mean of what it cannot resolve).
    """
    wanted = np.log2(context.gsd_root / (np.maximum(distance, 1e-9) * rays.footprint.numpy()))
    wanted += context.settings.octree.lod_bias
    coarse_enough = wanted <= band.bottom + _LEVEL_MARGIN
    unit = rays.origins.numpy() + distance[:, None] * rays.directions.numpy()
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
