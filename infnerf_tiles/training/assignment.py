"""Which patches belong to which treelet of a band, by what the committed bands above show along their rays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, Int64
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, Rays
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixels import Patches, patch_points
from infnerf_tiles.training.ray_treelets import RayTreelets, ray_treelets
from infnerf_tiles.training.shared import Shared

RAYS_PER_EDGE = 2
"""Rays cast per patch edge to find out where its pixels end."""
MIN_SHARE = 0.05
"""A ray that leaves more than this share of its weight in a treelet shows something of it."""
CROSSING_SHARE = 0.15
"""Share of the patches that only cross a treelet's occupied cells and go along, so that air there is penalised."""
OVERLAP_COPIES = 0.15
"""Patches from around treelets, for each one that belongs to them: what bounds the pixels of all treelets together."""
_MARGIN_VOXELS = 2.0
_LEVEL_MARGIN = 0.25
_RAYS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 15}
"""By kind of device; a ray's samples take some ten kilobytes."""


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
class _Ends:
    """Per ray: whether its pixel wants this band where it ends (`fits`, with a margin; `wants`, without); opacity."""

    fits: Bool
    wants: Bool
    opacity: Float32


def assign_patches(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> Mapping[int, Int64]:
    """Numbers of the patches of each treelet of the band, by root key.

    A patch goes to a treelet as often as its rays end there: a share of its rays' weight at a level of the band is the
    chance of the patch to go along, so that over all treelets and bands each patch goes about once. Treelets also need
    what lies around: patches of which any ray leaves more than MIN_SHARE of its weight in the treelet or its margin,
    patches beside those, and part of those that only cross its occupied cells. As many of them go along as
    OVERLAP_COPIES allows, photo by photo. Photo, octree and committed bands decide alone, so that photos can be
    assigned one by one.
    """
    num, treelets = patches.count, len(band.root_keys)
    if not treelets:
        return {}
    parts: list[tuple[Int64, Float64]] = [(np.empty(0, np.int64), np.empty(0))]
    around: list[Int64] = [np.empty(0, np.int64)]
    crossing: list[Int64] = [np.empty(0, np.int64)]
    per_patch = RAYS_PER_EDGE**2
    at_once = max(1, _RAYS_AT_ONCE[arena.device.type] // per_patch)
    for first in range(0, num, at_once):
        part = patches.select(np.arange(first, min(first + at_once, num), dtype=np.int32))
        pairs, ends = _cast(context, arena, shared, part, band, octree)
        opacity = ends.opacity[pairs.ray]
        fits = ends.fits[pairs.ray]
        strong = fits & ((pairs.weight > MIN_SHARE) | (opacity <= 0.5))
        code = pairs.treelet * num + pairs.ray // per_patch + first
        # a ray that ends nowhere belongs to all that it crosses in equal parts
        share = np.where(opacity > 0.5, pairs.own / np.maximum(opacity, 1e-6), 1.0 / pairs.crossed[pairs.ray])
        share = np.where(ends.wants[pairs.ray], share, 0.0) / per_patch
        unique, inverse = np.unique(code, return_inverse=True)
        sums: Float64 = np.bincount(inverse, share, len(unique)).astype(np.float64)
        parts.append((unique, sums))
        around.append(np.unique(code[strong]))
        crossing.append(np.unique(code[fits & ~strong]))
    codes = np.concatenate([c for c, _ in parts])
    order = np.argsort(codes, kind="stable")
    codes, chance = codes[order], np.concatenate([s for _, s in parts])[order]
    near = np.unique(np.concatenate(around))
    bounds = np.arange(treelets + 1) * num
    starts = np.searchsorted(near, bounds)
    grown = [_dilated(patches, near[starts[k] : starts[k + 1]] - bounds[k]) + bounds[k] for k in range(treelets)]
    weak = np.unique(np.concatenate(crossing))
    weak = weak[_luck(band.root_keys, patches, weak, 1) < CROSSING_SHARE]
    near = np.union1d(np.concatenate([np.empty(0, np.int64), *grown]), weak)
    allowed = _overlap_share(patches, codes % num, chance, near % num)
    everything = np.union1d(codes, near)
    odds = np.zeros(len(everything))
    odds[np.searchsorted(everything, codes)] = chance
    also = np.searchsorted(everything, near)
    odds[also] = np.maximum(odds[also], allowed[patches.photo[near % num]])
    # sums of shares reach 1 up to rounding
    chosen = everything[_luck(band.root_keys, patches, everything, 0) < odds + 1e-6 * (odds > 0)]
    starts = np.searchsorted(chosen, bounds)
    return {key: chosen[starts[k] : starts[k + 1]] - bounds[k] for k, key in enumerate(band.root_keys.tolist())}


def assignment_margin(context: Context) -> float:
    """How far around a treelet's cube rays count as passing it, in edges of the cube."""
    # a voxel of the level above is two cells of the band's root nodes
    return _MARGIN_VOXELS * 2.0 / context.shape.cells


def ending_patches(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> Float64:
    """How many patches' worth of rays end on a surface in each treelet's cube, at a level of the band: float64 [k].

    What lies around a treelet, which goes along with its own patches, does not count; nor do rays that end nowhere.
    """
    total: Float64 = np.zeros(len(band.root_keys))
    per_patch = RAYS_PER_EDGE**2
    at_once = max(1, _RAYS_AT_ONCE[arena.device.type] // per_patch)
    for first in range(0, patches.count, at_once):
        part = patches.select(np.arange(first, min(first + at_once, patches.count), dtype=np.int32))
        pairs, ends = _cast(context, arena, shared, part, band, octree)
        opacity = ends.opacity[pairs.ray]
        shown = ends.wants[pairs.ray] & (opacity > 0.5)
        share = np.where(shown, pairs.own / np.maximum(opacity, 1e-6), 0.0) / per_patch
        total += np.bincount(pairs.treelet, share, len(total))
    return total


def _overlap_share(patches: Patches, core: Int64, chance: Float64, near: Int64) -> Float64:
    """Share of the patches around treelets that go along, by photo: float64 [photos]."""
    size = int(patches.photo.max(initial=0)) + 1
    mine = np.bincount(patches.photo[core], chance, size)
    others = np.bincount(patches.photo[near], minlength=size)
    share: Float64 = np.minimum(1.0, OVERLAP_COPIES * mine / np.maximum(others, 1))
    return share


def _luck(keys: Int64, patches: Patches, codes: Int64, salt: int) -> Float64:
    """A number in [0, 1) for each pair of a treelet and a patch, the same whatever else is asked for: float64 [n].

    codes: row of the treelet times number of patches, plus number of the patch.
    """
    row, chosen = np.divmod(codes, max(patches.count, 1))
    place = (patches.photo.astype(np.uint64) << np.uint64(40)) | (patches.pyramid.astype(np.uint64) << np.uint64(35))
    place |= (patches.row.astype(np.uint64) << np.uint64(16)) | patches.column.astype(np.uint64)
    with np.errstate(over="ignore"):  # SplitMix64's mixing (Steele et al. 2014)
        x = place[chosen] + (keys[row].astype(np.uint64) * 2 + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    luck: Float64 = (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return luck


def _cast(
    context: Context, arena: Arena, shared: Shared, patches: Patches, band: BandCut, octree: Octree
) -> tuple[RayTreelets, _Ends]:
    """Cast the patches' rays: pairs with treelets, and where each ray ends."""
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
    pairs = ray_treelets(
        samples, weights.cpu().numpy(), unit, towards, top=band.top, root_keys=band.root_keys,
        margin=assignment_margin(context),
    )  # fmt: skip
    width = np.maximum(distance, 1e-9) * footprint
    fits, wants = (
        _level_fits(context, unit + distance[:, None] * towards, width, pyramid, photo, band, octree, margin)
        for margin in (_LEVEL_MARGIN, 0.0)
    )
    return pairs, _Ends(fits=fits, wants=wants, opacity=opacity)


def _level_fits(
    context: Context,
    unit: Float64,
    width: Float64,
    pyramid: Int32,
    photo: Int32,
    band: BandCut,
    octree: Octree,
    margin: float,
) -> Bool:
    """bool [Q]: whether the ray's pixel wants levels of this band, up to `margin` levels off, where it ends, at `unit`,
    `width` world units wide.

    Too coarse for the band: its parents take it. Too fine: a deeper band takes it, unless none exists there or the
    photo has no coarser level (then the band learns the mean of what it cannot resolve).
    """
    wanted = np.log2(context.gsd_root / width)
    wanted += context.settings.octree.lod_bias
    coarse_enough = wanted <= band.bottom + margin
    nothing_below = octree.deepest_level(unit) <= band.bottom
    cameras = context.photos.cameras
    levels = np.array([num_pyramid_levels(c.width, c.height) for c in cameras.cameras])
    coarsest = pyramid == levels[cameras.camera_index[photo]] - 1
    fine_enough = (wanted > band.top - 1 - margin) if band.top else np.ones(len(wanted), np.bool_)
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
