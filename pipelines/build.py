"""build: read poses, derive bounds, grow and cut the octree, write the scene."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.errors import BudgetError, SettingsError, StoreError
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
from infnerf_tiles.geometry.octree import Octree, band_root_levels, cut, grow_from_points
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.documents import DOCUMENT
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.root import KNOWN_NAMES
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader
from infnerf_tiles.training.inputs import Inputs, absolute, stored_settings

_log = logging.getLogger(__name__)

MAX_POINT_ERROR = 3.0
"""Points with a larger reprojection error, in pixels of the stored photos, are no evidence."""
MIN_TRACK = 3
_CAMERA_GROWN_NODES = 160
_SAMPLED_PHOTOS = 64


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What `build` found and wrote."""

    photos: int
    test_photos: int
    rejected: tuple[tuple[str, str], ...]
    """(name, reason) of every photo that is not used."""
    points: int
    points_outside: int
    nodes_per_level: tuple[int, ...]
    treelets_per_band: tuple[int, ...]
    band_levels: tuple[int, ...]
    max_level: int
    root_edge: float
    gsd_finest: float
    pixels: int
    """Pixels of all training photos and their pyramids."""
    regions: tuple[dict[str, Any], ...] = field(default=())
    """Per treelet of the finest band: root, photos that see it, points inside."""
    peak_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{k: getattr(self, k) for k in self.__dataclass_fields__},
            "rejected": [{"name": n, "reason": r} for n, r in self.rejected],
        }


def build(
    data: Path,
    scene: str,
    settings: Settings,
    *,
    images: Path | None = None,
    crs: str | None = None,
    bounds: tuple[float, ...] | None = None,
    overwrite: bool = False,
) -> BuildReport:
    """Partition a data set and write an untrained scene.

    bounds: (x, y, z, X, Y, Z) of what the root cube has to hold, world units. Errors: DatasetError, CameraError,
    SettingsError, BudgetError (more nodes than octree.max_nodes), StoreError (there is a scene already).
    """
    photos = read_dataset(data, images=images, downscale=settings.data.downscale, test_every=settings.data.test_every)
    if bool(photos.is_test.all()):
        raise SettingsError("data.test_every: every photo is held out for testing, none is left to train; raise it")
    o = settings.octree
    evidence = _evidence(photos)
    root = _root_cube(photos, evidence, settings, bounds)
    gsd_root = float(gsd(root.edge, o.cells, 0))
    max_level = _max_level(photos, root, settings)
    octree, outside = _octree(photos, evidence, root, max_level, gsd_root, settings)
    if octree.num_nodes > o.max_nodes:
        raise BudgetError(
            f"octree: {octree.num_nodes} nodes are more than octree.max_nodes = {o.max_nodes}; raise it, raise "
            f"data.downscale, or lower octree.max_level below {max_level}"
        )
    bands = band_root_levels(max_level, o.treelet_height)
    treelets = cut(octree, bands)
    shape = FieldShape(cells=o.cells, table_size=1 << settings.field.table_log2, features=settings.field.features)
    georeference = None
    if photos.georeference is not None:
        g = photos.georeference
        georeference = {
            "crs": g.crs,
            "origin": list(g.origin),
            "model_to_crs": None if g.model_to_crs is None else np.asarray(g.model_to_crs).tolist(),
        }
    if crs is not None:
        georeference = {**(georeference or {"origin": [0.0, 0.0, 0.0], "model_to_crs": None}), "crs": crs}
    header = SceneHeader(
        root=root,
        cells=o.cells,
        table_size=shape.table_size,
        features=shape.features,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        band_levels=bands,
        max_level=max_level,
        gsd_ref=gsd_root / 2.0 ** max(0, max_level - 2),
        settings=stored_settings(settings, Inputs(dataset=absolute(data) or "", images=absolute(images))),
        georeference=georeference,
        capacity=max(256, 2 * octree.num_nodes),
        treelet_capacity=max(16, 2 * len(treelets)),
        dataset=data.resolve().name,
    )
    _make_room(scene, overwrite)
    with SceneStore.create(scene, header) as store:
        store.write_cameras(photos.cameras, photos.names, photos.is_test)
        store.commit(SceneIndex.planned(treelets))
    levels = np.bincount(octree.levels, minlength=max_level + 1)
    per_band = np.bincount([t.band for t in treelets], minlength=len(bands))
    return BuildReport(
        photos=photos.num_photos,
        test_photos=int(photos.is_test.sum()),
        rejected=tuple((r.name, r.reason) for r in photos.rejected),
        points=0 if photos.points is None else photos.points.num_points,
        points_outside=outside,
        nodes_per_level=tuple(int(n) for n in levels),
        treelets_per_band=tuple(int(n) for n in per_band),
        band_levels=bands,
        max_level=max_level,
        root_edge=root.edge,
        gsd_finest=gsd_root / 2.0**max_level,
        pixels=_num_pixels(photos),
        regions=_regions(photos, root, evidence, treelets, len(bands) - 1),
        peak_bytes=peak_memory(),
    )


def _make_room(scene: str, overwrite: bool) -> None:
    path = Path(scene)
    if "://" in scene or not path.exists() or not any(path.iterdir() if path.is_dir() else [path]):
        return
    if not overwrite:
        raise StoreError(f"scene {scene}: there is something already; train it, or build elsewhere or with --overwrite")
    # a Zarr store of another kind has the document too, and a scene may lie among other files
    foreign = {entry.name for entry in path.iterdir()} - KNOWN_NAMES - {DOCUMENT} if path.is_dir() else {path.name}
    if foreign or not (path / DOCUMENT).is_file():
        raise StoreError(f"scene {scene}: expected a scene to overwrite, got other files; they are left alone")
    import shutil

    shutil.rmtree(path)


def _evidence(photos: PosedPhotos) -> Int64:
    """Rows of the sparse points that count as evidence: long enough tracks, small enough error."""
    points = photos.points
    if points is None:
        return np.empty(0, np.int64)
    good = points.error <= MAX_POINT_ERROR
    if len(points.track_photos):
        good &= points.track_lengths >= MIN_TRACK
    return np.flatnonzero(good)


def _root_cube(photos: PosedPhotos, evidence: Int64, settings: Settings, bounds: tuple[float, ...] | None) -> RootCube:
    if bounds is not None:
        lo, hi = np.array(bounds[:3], np.float64), np.array(bounds[3:], np.float64)
        if len(bounds) != 6 or not (np.isfinite(bounds).all() and (hi > lo).all()):
            raise SettingsError(f"--bounds: expected x,y,z,X,Y,Z with x < X, y < Y, z < Z, got {bounds}")
        edge = float((hi - lo).max())
        origin = (lo + hi - edge) / 2
        return RootCube((float(origin[0]), float(origin[1]), float(origin[2])), edge)
    if photos.points is not None and len(evidence):
        return root_cube_from_points(photos.points.xyz[evidence], photos.cameras)
    return root_cube_from_cameras(photos.cameras, settings.octree.reach)


def _max_level(photos: PosedPhotos, root: RootCube, settings: Settings) -> int:
    o, points = settings.octree, photos.points
    if points is None:
        return finest_level(root, o.cells, photos.cameras, o.max_level)
    return finest_level(
        root, o.cells, photos.cameras, o.max_level,
        points=points.xyz, track_offsets=points.track_offsets, track_photos=points.track_photos,
    )  # fmt: skip


def _octree(
    photos: PosedPhotos, evidence: Int64, root: RootCube, max_level: int, gsd_root: float, settings: Settings
) -> tuple[Octree, int]:
    """The octree at the start and the number of points outside the bounds."""
    points, o = photos.points, settings.octree
    if points is None or not len(evidence):
        return _octree_from_cameras(photos, root, max_level, gsd_root), 0
    unit = root.to_unit(points.xyz)
    outside = int((~((unit >= 0) & (unit < 1)).all(axis=1)).sum())
    wanted = point_wanted_levels(points.xyz, points.track_offsets, points.track_photos, photos.cameras, gsd_root)
    octree = grow_from_points(
        unit[evidence], wanted[evidence] + o.lod_bias, max_level, o.min_points, True, cells_per_edge=o.cells
    )
    return octree, outside


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


def _num_pixels(photos: PosedPhotos) -> int:
    total = 0
    for photo in np.flatnonzero(~photos.is_test).tolist():
        camera = photos.cameras.camera(photo)
        total += sum((camera.width >> p) * (camera.height >> p) for p in range(num_pyramid_levels(camera.width)))
    return total


def _regions(
    photos: PosedPhotos, root: RootCube, evidence: Int64, treelets: "tuple[Any, ...]", band: int
) -> tuple[dict[str, Any], ...]:
    """Coverage of the finest band's treelets: points inside and photos that see one of them."""
    points = photos.points
    regions = []
    unit = root.to_unit(points.xyz[evidence]) if points is not None else np.empty((0, 3))
    owner = np.empty(0, np.int64)
    if points is not None and len(points.track_photos):
        owner = np.repeat(np.arange(points.num_points), points.track_lengths)
    for treelet in treelets:
        if treelet.band != band:
            continue
        cell = np.array([treelet.root.x, treelet.root.y, treelet.root.z])
        inside = (np.floor(unit * 2.0**treelet.root.level) == cell).all(axis=1)
        seen = 0
        if points is not None and len(owner):
            mask = np.zeros(points.num_points, np.bool_)
            mask[evidence[inside]] = True
            seen = len(np.unique(points.track_photos[mask[owner]]))
        regions.append({"treelet": str(treelet.root), "points": int(inside.sum()), "photos": seen})
    return tuple(regions)
