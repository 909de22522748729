"""Partition: what follows from poses and points alone. `plan` shows it, `build` writes it."""

import logging
from dataclasses import dataclass

import numpy as np
from infnerf_tiles.pipelines.given_bounds import given_root_cube

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.data.observers import observers
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.errors import BudgetError, SettingsError
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.bounds import (
    convergence_point,
    finest_level,
    point_wanted_levels,
    root_cube_from_cameras,
    root_cube_from_points,
)
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.node_id import RootCube, child_keys, decode_keys
from infnerf_tiles.geometry.octree import Octree, Treelet, band_root_levels, cut, grow_from_points
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.inputs import scene_inputs

logger = logging.getLogger(__name__)

MAX_POINT_ERROR = 3.0
"""Points with a larger reprojection error, in pixels of the stored photos, are no evidence."""
_CAMERA_GROWN_NODES = 160
_SAMPLED_PHOTOS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """The octree of a data set and how it is cut.

    evidence: int64[k], rows of the points that count. inside: bool[m], which points lie in the root cube. gsd_root:
    GSD of level 0, world units. node_limit: most nodes that the scene may ever have, growth included.
    """

    photos: PosedPhotos
    settings: Settings
    evidence: Int64
    inside: Bool
    root: RootCube
    gsd_root: float
    max_level: int
    octree: Octree
    bands: tuple[int, ...]
    treelets: tuple[Treelet, ...]
    node_limit: int

    @property
    def shape(self) -> FieldShape:
        """Sizes of the scene's field."""
        s = self.settings
        return FieldShape(cells=s.octree.cells, table_size=1 << s.field.table_log2, features=s.field.features)

    @property
    def nodes_per_level(self) -> tuple[int, ...]:
        """Nodes of each level, the root's first."""
        return tuple(int(n) for n in np.bincount(self.octree.levels, minlength=self.max_level + 1))

    @property
    def treelets_per_band(self) -> tuple[int, ...]:
        """Treelets of each band, the coarsest first."""
        return tuple(int(n) for n in np.bincount([t.band for t in self.treelets], minlength=len(self.bands)))

    @property
    def photo_pixels(self) -> int:
        """Pixels of all training photos, without their pyramids."""
        photos = np.bincount(self.photos.cameras.camera_index[~self.photos.is_test])
        return sum(int(n) * c.width * c.height for n, c in zip(photos, self.photos.cameras.cameras, strict=False))

    @property
    def pyramid_pixels(self) -> int:
        """Pixels of all training photos and their pyramids."""
        photos = np.bincount(self.photos.cameras.camera_index[~self.photos.is_test])
        return sum(
            int(n) * sum((c.width >> p) * (c.height >> p) for p in range(num_pyramid_levels(c.width, c.height)))
            for n, c in zip(photos, self.photos.cameras.cameras, strict=False)
        )

    def with_height(self, treelet_height: int) -> "Partition":
        """The same octree, cut into treelets of another height."""
        octree = self.settings.octree.model_copy(update={"treelet_height": treelet_height})
        bands = band_root_levels(self.max_level, treelet_height)
        return Partition(
            photos=self.photos, settings=self.settings.model_copy(update={"octree": octree}), evidence=self.evidence,
            inside=self.inside, root=self.root, gsd_root=self.gsd_root, max_level=self.max_level, octree=self.octree,
            bands=bands, treelets=cut(self.octree, bands), node_limit=self.node_limit,
        )  # fmt: skip


def partition(photos: PosedPhotos, settings: Settings, bounds: tuple[float, ...] | None = None) -> Partition:
    """Derive bounds, grow the octree and cut it.

    bounds: (x, y, z, X, Y, Z) of what the root cube has to hold, world units. Errors: DatasetError, CameraError,
    SettingsError (also for bounds that hold nothing the photos show), BudgetError (more nodes than octree.max_nodes).
    """
    if bool(photos.is_test.all()):
        raise SettingsError("data.test_every: every photo is held out for testing, none is left to train; raise it")
    o = settings.octree
    evidence = reliable_points(photos)
    root = _root_cube(photos, evidence, settings, bounds)
    gsd_root = float(gsd(root.edge, o.cells, 0))
    max_level = _max_level(photos, root, settings)
    octree, inside = _octree(photos, evidence, root, max_level, gsd_root, settings)
    told = len(evidence) > 0 and (octree.num_nodes > 1 or max_level == 0)
    if photos.points is not None and photos.points.num_points and not told:
        logger.warning(
            "%s: %d sparse points, of which %d are well seen, tell too little of what the photos show: the octree "
            "starts from the cameras alone and grows while it trains; check that the points lie in the frame of the "
            "poses, or leave them out", photos.root, photos.points.num_points, len(evidence),
        )  # fmt: skip
        octree = _octree_from_cameras(photos, root, max_level, gsd_root)
    if octree.num_nodes > o.max_nodes:
        raise BudgetError(
            f"octree: {octree.num_nodes} nodes are more than octree.max_nodes = {o.max_nodes}; raise it, raise "
            f"data.downscale, or lower octree.max_level below {max_level}"
        )
    bands = band_root_levels(max_level, o.treelet_height)
    limit = o.max_nodes
    if told:  # without points, what training sees is all there is to grow from
        limit = min(limit, int(np.ceil(octree.num_nodes * (1.0 + o.growth))))
    return Partition(
        photos=photos, settings=settings, evidence=evidence, inside=inside, root=root, gsd_root=gsd_root,
        max_level=max_level, octree=octree, bands=bands, treelets=cut(octree, bands), node_limit=limit,
    )  # fmt: skip


def scene_partition(store: SceneStore, photos: PosedPhotos, settings: Settings) -> Partition:
    """The partition of a scene as it is now, growth included."""
    index, header = store.read_index(), store.header
    evidence = reliable_points(photos)
    inside: Bool = np.ones(0, np.bool_)
    if photos.points is not None:
        unit = header.root.to_unit(photos.points.xyz)
        inside = np.asarray(((unit >= 0) & (unit < 1)).all(axis=1))
    octree = Octree.from_keys(index.keys)
    limit = scene_inputs(header).node_limit
    return Partition(
        photos=photos, settings=settings, evidence=evidence, inside=inside, root=header.root,
        gsd_root=float(gsd(header.root.edge, header.cells, 0)), max_level=header.max_level, octree=octree,
        bands=header.band_levels, treelets=cut(octree, header.band_levels),
        node_limit=max(octree.num_nodes, settings.octree.max_nodes if limit is None else limit),
    )  # fmt: skip


def reliable_points(photos: PosedPhotos) -> Int64:
    """Rows of the sparse points that count as evidence: seen by enough photos, small enough error."""
    points = photos.points
    if points is None:
        return np.empty(0, np.int64)
    return np.flatnonzero((points.error <= MAX_POINT_ERROR) & observers(points, photos.cameras).reliable)


def _root_cube(
    photos: PosedPhotos, evidence: Int64, settings: Settings, bounds: tuple[float, ...] | None
) -> RootCube:
    if bounds is not None:
        return given_root_cube(photos, evidence, bounds)
    if photos.points is not None and len(evidence):
        return root_cube_from_points(photos.points.xyz[evidence], photos.cameras)
    return root_cube_from_cameras(photos.cameras, settings.octree.reach)


def _max_level(photos: PosedPhotos, root: RootCube, settings: Settings) -> int:
    o, points = settings.octree, photos.points
    if points is None:
        return finest_level(root, o.cells, photos.cameras, o.max_level)
    seen = observers(points, photos.cameras)
    return finest_level(
        root, o.cells, photos.cameras, o.max_level,
        points=points.xyz, track_offsets=seen.offsets, track_photos=seen.photos,
    )  # fmt: skip


def _octree(
    photos: PosedPhotos, evidence: Int64, root: RootCube, max_level: int, gsd_root: float, settings: Settings
) -> tuple[Octree, Bool]:
    """The octree at the start, and which points lie inside the bounds."""
    points, o = photos.points, settings.octree
    if points is None or not len(evidence):
        return _octree_from_cameras(photos, root, max_level, gsd_root), np.ones(0, np.bool_)
    unit = root.to_unit(points.xyz)
    inside: Bool = np.asarray(((unit >= 0) & (unit < 1)).all(axis=1))
    seen = observers(points, photos.cameras)
    wanted = point_wanted_levels(points.xyz, seen.offsets, seen.photos, photos.cameras, gsd_root)
    octree = grow_from_points(
        unit[evidence], wanted[evidence] + o.lod_bias, max_level, o.min_points, True, cells_per_edge=o.cells
    )
    return octree, inside


def _octree_from_cameras(photos: PosedPhotos, root: RootCube, max_level: int, gsd_root: float) -> Octree:
    """Without points: coarse nodes around what the cameras look at; training grows the rest from what it sees."""
    cameras = photos.cameras
    sample = np.unique(np.linspace(0, cameras.num_photos - 1, _SAMPLED_PHOTOS).astype(np.int64))
    focus = convergence_point(cameras)
    if focus is None:
        focus = cameras.centres.mean(axis=0)
    reach = float(np.median(np.linalg.norm(cameras.centres - focus, axis=1)))
    keys = np.zeros(1, np.int64)
    everything = [keys]
    for level in range(1, max_level + 1):
        keys = child_keys(keys).ravel()
        _, xyz = decode_keys(keys)
        edge = root.edge / 2.0**level
        centre: Float64 = np.array(root.origin) + (xyz + 0.5) * edge
        near = np.abs(centre - focus).max(axis=1) <= reach + edge
        seen = np.zeros(len(keys), np.int64)
        for photo in sample.tolist():
            seen += cameras.project(photo, centre)[2]
        wanted = np.log2(gsd_root * np.median(cameras.focals) / max(reach, 1e-9))
        keys = keys[near & (seen >= min(3, len(sample))) & (wanted >= level - 0.5)]
        if not len(keys) or sum(len(k) for k in everything) + len(keys) > _CAMERA_GROWN_NODES:
            break
        everything.append(keys)
    return Octree.from_keys(np.concatenate(everything))
