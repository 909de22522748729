"""The surface of a scene as coloured points, each in the node that drew it: pictures at the photos' places, lifted."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Bool, Float32, Float64, Int64, UInt8
from infnerf_tiles.errors import BudgetError, SettingsError
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, encode_keys, key_levels
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.vantage import pinhole
from infnerf_tiles.rendering.video import to_uint8

OPAQUE = 0.9
"""Opacity from which a pixel shows a surface."""
_EDGE = 0.1  # relative change of depth to a neighbour beyond which a pixel may lie between two surfaces
_POINT_BYTES = 60  # of a point while points are merged
_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""(photos done, photos in all)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """Points in nodes. xyz: float64[n, 3], world. rgb: uint8[n, 3], sRGB. keys: int64[n], of the node whose cells are
    as fine as what the point was seen with."""

    xyz: Float64
    rgb: UInt8
    keys: Int64

    @property
    def num_points(self) -> int:
        """Number of points n."""
        return len(self.xyz)

    def subset(self, rows: Bool | Int64) -> "Cloud":
        """Some of the points."""
        return Cloud(xyz=self.xyz[rows], rgb=self.rgb[rows], keys=self.keys[rows])


def surface_mask(picture: Picture) -> Bool:
    """bool[h, w]: pixels that show one surface, not sky, not a silhouette."""
    depth = picture.depth
    seen = np.isfinite(depth) & (1.0 - picture.transmittance > OPAQUE)
    padded = np.pad(np.where(seen, depth, np.nan), 1, mode="edge")
    here = padded[1:-1, 1:-1]
    for beside in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        with np.errstate(invalid="ignore"):
            seen &= ~(np.abs(beside - here) > _EDGE * here)
    return seen


def collect(
    renderer: Renderer,
    *,
    pyramid: int = 0,
    affine: Float32 | Float64 | None = None,
    node: NodeId | None = None,
    max_points: int = 50_000_000,
    progress: Progress | None = None,
) -> Cloud:
    """The points of what the photos' cameras see, one per cell of the node that drew them.

    pyramid: pictures are photos reduced by 2^pyramid. node: only what lies in that cube. BudgetError if there are more
    than `max_points`, SettingsError if the scene has no such node or no photos.
    """
    scene = renderer.scene
    if node is not None and scene.octree.index_of(np.array([node.key]))[0] < 0:
        raise SettingsError(f"export: expected a node of the scene, got {node}; 'info --json' tells how deep it is")
    if not scene.cameras.num_photos:
        raise SettingsError("export: expected a scene with photos' poses, got none")
    cells = scene.header.cells
    empty = Cloud(xyz=np.empty((0, 3)), rgb=np.empty((0, 3), np.uint8), keys=np.empty(0, np.int64))
    parts = [empty]
    held = 0
    for photo in range(scene.cameras.num_photos):
        camera = scene.cameras.camera(photo)
        size = max(1, camera.width >> pyramid), max(1, camera.height >> pyramid)
        picture_camera = pinhole(camera, size)
        pose = scene.cameras.camera_to_world[photo]
        picture = renderer.render(picture_camera, pose, affine=affine)
        new = _lift(renderer, picture, picture_camera.params, pose)
        if node is not None:
            deep = key_levels(new.keys) >= node.level
            inside = deep.copy()
            inside[deep] = ancestor_keys(new.keys[deep], node.level) == node.key
            new = new.subset(inside)
        parts.append(_thinned(new, renderer, cells))
        held += parts[-1].num_points
        if held > max(2 * max_points, 1 << 22) or photo == scene.cameras.num_photos - 1:
            parts = [_thinned(joined(parts), renderer, cells)]
            held = parts[0].num_points
            if held > max_points:
                raise BudgetError(
                    f"export: expected up to {max_points:,} points ({max_points * _POINT_BYTES / 2**30:.1f} GiB), got "
                    f"more; ask for more with --max-points, for reduced pictures with --pyramid, or for one --node"
                )
        if progress is not None:
            progress(photo + 1, scene.cameras.num_photos)
    return joined(parts)


def thinned_to_parents(cloud: Cloud, renderer: Renderer) -> Cloud:
    """The points of one level's nodes as points of their parents: one per cell there, the first of each."""
    scene = renderer.scene
    levels = key_levels(cloud.keys)
    return _thinned(
        Cloud(xyz=cloud.xyz, rgb=cloud.rgb, keys=ancestor_keys(cloud.keys, levels - 1)), renderer, scene.header.cells
    )


def _lift(renderer: Renderer, picture: Picture, intrinsics: tuple[float, ...], pose: Float64) -> Cloud:
    """The points of a pinhole picture's surface pixels."""
    scene = renderer.scene
    rows, columns = np.nonzero(surface_mask(picture))
    fx, fy, cx, cy = intrinsics
    local = np.stack([(columns + 0.5 - cx) / fx, (rows + 0.5 - cy) / fy, np.ones(len(rows))], axis=1)
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    xyz = pose[:, 3] + (local * picture.depth[rows, columns][:, None].astype(np.float64)) @ pose[:, :3].T
    unit = scene.header.root.to_unit(xyz)
    inside = ((unit >= 0) & (unit < 1)).all(axis=1)
    xyz, unit, rows, columns = xyz[inside], unit[inside], rows[inside], columns[inside]
    wanted = np.clip(np.rint(picture.level[rows, columns]), 0, scene.octree.depth).astype(np.int32)
    deepest = scene.octree.deepest_level(unit, scene.octree.depth)
    levels = np.minimum(wanted, deepest)
    cell = np.floor(unit * np.exp2(levels)[:, None]).astype(np.int64)
    return Cloud(xyz=xyz, rgb=to_uint8(picture.rgb[rows, columns]), keys=encode_keys(levels, cell))


def _thinned(cloud: Cloud, renderer: Renderer, cells: int) -> Cloud:
    """The first point of each cell of each node, by node and cell."""
    levels = key_levels(cloud.keys)
    unit = renderer.scene.header.root.to_unit(cloud.xyz)
    place = np.floor(unit * (np.exp2(levels) * cells)[:, None]).astype(np.int64) % cells
    cell = (place[:, 2] * cells + place[:, 1]) * cells + place[:, 0]
    order = np.lexsort((cell, cloud.keys))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(cloud.keys[order]) != 0) | (np.diff(cell[order]) != 0)
    return cloud.subset(order[first])


def joined(parts: list[Cloud]) -> Cloud:
    """Several clouds as one."""
    return Cloud(
        xyz=np.concatenate([part.xyz for part in parts]),
        rgb=np.concatenate([part.rgb for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
    )
