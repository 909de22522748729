"""build: read poses, derive bounds, grow and cut the octree, write the scene."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.calibrate import calibrate
from infnerf_tiles.pipelines.coverage import Coverage, cover, write_map
from infnerf_tiles.pipelines.partition import partition
from infnerf_tiles.pipelines.plan import Budgets, fit
from infnerf_tiles.pipelines.room import check_room, room_for
from infnerf_tiles.pipelines.same_points import point_facts

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.georeference import GEO_FILE, crs_problem
from infnerf_tiles.data.marks import read_marks
from infnerf_tiles.data.placing import photo_folder
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.outputs import check_file
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader
from infnerf_tiles.store.stored_cameras import StoredFiles
from infnerf_tiles.training.inputs import Inputs, absolute, stored_settings


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What `build` found and wrote."""

    photos: int
    test_photos: int
    masked_photos: int
    """Photos with a mask file."""
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
    coverage: Coverage
    """What the photos see, region by region."""
    peak_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{k: getattr(self, k) for k in self.__dataclass_fields__ if k != "coverage"},
            **self.coverage.to_json(),
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
    coverage_map: Path | None = None,
    budgets: Budgets | None = None,
) -> BuildReport:
    """Partition a data set and write an untrained scene.

    bounds: (x, y, z, X, Y, Z) of what the root cube has to hold, world units. Errors: DatasetError, CameraError,
    SettingsError, BudgetError (more nodes than octree.max_nodes, or nothing fits the budgets), StoreError (there is a
    scene already, or another process writes to it). overwrite: a scene that is there is replaced; what an interrupted
    build left there is in any case. budgets: lower the treelets until their training fits.
    """
    check_room(scene, overwrite)
    if coverage_map is not None:
        check_file(coverage_map)
    images = photo_folder(data, images)
    if crs is not None and (problem := crs_problem(crs)):
        raise SettingsError(f"--crs {crs}: expected a coordinate reference system such as EPSG:32634: {problem}")
    photos = read_dataset(data, images=images, downscale=settings.data.downscale, test_every=settings.data.test_every)
    if crs is None and photos.georeference is not None and (problem := crs_problem(photos.georeference.crs)):
        raise DatasetError(
            f"{photos.root / GEO_FILE}: crs: expected a coordinate reference system such as EPSG:32634, got "
            f"{photos.georeference.crs!r}: {problem}; correct it, or give another with --crs"
        )
    found = partition(photos, settings, bounds)
    if budgets is not None and budgets != Budgets():
        found, _ = fit(found, calibrate(settings), budgets)
    shape = found.shape
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
        root=found.root,
        cells=shape.cells,
        table_size=shape.table_size,
        features=shape.features,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        band_levels=found.bands,
        max_level=found.max_level,
        gsd_ref=found.gsd_root / 2.0 ** max(0, found.max_level - 2),
        settings=stored_settings(
            found.settings,
            Inputs(
                dataset=absolute(data) or "",
                images=absolute(images),
                node_limit=found.node_limit,
                points=point_facts(photos),
            ),
        ),
        georeference=georeference,
        capacity=max(256, 2 * found.octree.num_nodes),
        treelet_capacity=max(16, 2 * len(found.treelets)),
        dataset=data.resolve().name,
    )
    marks = read_marks(photos.paths, photos.mask_paths)
    files = StoredFiles(marks.num_bytes, marks.mtime_ns, marks.digest)
    with room_for(scene, overwrite), SceneStore.create(scene, header) as store:
        store.write_cameras(photos.cameras, photos.names, photos.is_test, files)
        store.commit(SceneIndex.planned(found.treelets))
    coverage = cover(found)
    if coverage_map is not None:
        write_map(coverage_map, found, coverage)
    return BuildReport(
        photos=photos.num_photos,
        test_photos=int(photos.is_test.sum()),
        masked_photos=photos.num_masked,
        rejected=tuple((r.name, r.reason) for r in photos.rejected),
        points=0 if photos.points is None else photos.points.num_points,
        points_outside=int((~found.inside).sum()),
        nodes_per_level=found.nodes_per_level,
        treelets_per_band=found.treelets_per_band,
        band_levels=found.bands,
        max_level=found.max_level,
        root_edge=found.root.edge,
        gsd_finest=found.gsd_root / 2.0**found.max_level,
        pixels=found.pyramid_pixels,
        coverage=coverage,
        peak_bytes=peak_memory(),
    )
