"""build --add: photos that have come since a scene was built become part of it; what they do not show is kept."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.allowance import forget_capacities, node_limit
from infnerf_tiles.pipelines.checks import accepted_anew, changed_files
from infnerf_tiles.pipelines.coverage import Coverage, cover, write_map
from infnerf_tiles.pipelines.partition import Partition, reliable_points, scene_partition
from infnerf_tiles.pipelines.recovery import take_up_finished
from infnerf_tiles.pipelines.same_points import point_facts
from infnerf_tiles.pipelines.sameness import check_common, check_georeference, in_grown_order

from infnerf_tiles.arrays import Int64
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.marks import read_marks
from infnerf_tiles.data.observers import observers
from infnerf_tiles.data.placing import photo_folder
from infnerf_tiles.errors import BudgetError, DatasetError
from infnerf_tiles.geometry.bounds import point_wanted_levels
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree, grow_from_points, inside_unit, treelet_root_keys
from infnerf_tiles.outputs import check_file
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.stored_cameras import StoredCameras, StoredFiles
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.inputs import absolute, scene_inputs, scene_settings, stored_settings
from infnerf_tiles.training.redo import finish_redo
from infnerf_tiles.training.renewal import Renewal, finish_renewal, renew
from infnerf_tiles.training.seed_result import take_up_seed_result
from infnerf_tiles.training.sightings import sighted_treelets

MAX_OUTSIDE = 0.05
"""Share of what the new photos show that may lie outside the scene's bounds, which never move."""


@dataclass(frozen=True, kw_only=True)
class AdditionReport:
    """What `add_photos` found and changed."""

    photos: int
    test_photos: int
    new_photos: int
    new_test_photos: int
    rejected: tuple[tuple[str, str], ...]
    """(name, reason) of every photo that is not used."""
    points: int
    points_outside: int
    new_nodes: int
    new_treelets: int
    marked: tuple[str, ...]
    """Trained treelets that see the new photos: they are trained again, from what they know."""
    kept: int
    """Trained treelets that stay as they are."""
    waiting: int
    """Treelets that the next training trains: marked and new ones, and those that were not trained before."""
    finer: float
    """Levels by which the new photos are finer than the octree may become; 0 if they are not."""
    coverage: Coverage
    peak_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{k: getattr(self, k) for k in self.__dataclass_fields__ if k != "coverage"},
            **self.coverage.to_json(),
            "marked": list(self.marked),
            "rejected": [{"name": n, "reason": r} for n, r in self.rejected],
        }


def add_photos(
    data: Path, scene: str, *, images: Path | None = None, coverage_map: Path | None = None
) -> AdditionReport:
    """Take the photos of `data` that the scene does not have yet into it.

    data: the grown data set, in the scene's world frame, with all photos that the scene was built with. Bounds, bands,
    settings, decoder and the split of the former photos stay. The octree grows where the new photos ask for it; the
    trained treelets that see them are to be trained again, the others are left alone. Adding the same again changes
    nothing. A kill leaves the scene as it was or as it is to become.

    Errors: DatasetError (former photos are gone, moved or changed; another frame; outside the bounds), BudgetError
    (more nodes than octree.max_nodes), StoreError (no scene, or another process is changing it).
    """
    if coverage_map is not None:
        check_file(coverage_map)
    images = photo_folder(data, images)
    with SceneStore.open(scene, "r+") as store, store.exclusive():
        store.check_built()
        finish_redo(store)
        finish_renewal(store)
        if not store.has_small("decoder"):
            take_up_seed_result(store)
        settings = scene_settings(store.header)
        stored = store.read_cameras()
        found = read_dataset(
            data, images=images, downscale=settings.data.downscale, test_every=settings.data.test_every
        )
        header = store.header
        check_georeference(found, header)
        check_common(found, stored, header.root.edge / header.cells / 2.0**header.max_level)
        photos, fresh = in_grown_order(found, stored, settings.data.test_every)
        files = _checked_files(store, photos, len(stored.names))
        photos = replace(photos, digests=None if files is None else files.digest)
        context = Context(store, photos, settings)
        _check_inside(context, fresh)
        before = take_up_finished(store)
        training = fresh[~photos.is_test[fresh]]
        added = _added_nodes(context, before, training)
        limit = _raised_limit(store, before, len(added), settings)
        octree = Octree.from_keys(np.concatenate([before.keys, added]))
        again = _marked(context, before, octree, training, added)
        inputs = replace(scene_inputs(header), dataset=absolute(data) or "", images=absolute(images), node_limit=limit)
        inputs = replace(inputs, extended=inputs.extended or len(fresh) > 0, points=point_facts(photos))
        inputs = replace(inputs, accepted=accepted_anew(store, context, inputs, again))
        renewal = Renewal(
            cameras=StoredCameras(photos.cameras, photos.names, photos.is_test),
            files=files,
            again=again,
            added=added,
            unknown=np.empty(0, np.int64),
            settings=stored_settings(settings, inputs),
        )
        if len(fresh) or dict(renewal.settings) != dict(header.settings):
            forget_capacities(store)
            renew(store, renewal)
        now = store.read_index()
        whole = scene_partition(store, photos, settings)
        coverage = cover(whole)
    if coverage_map is not None:
        write_map(coverage_map, whole, coverage)
    return AdditionReport(
        photos=photos.num_photos,
        test_photos=int(photos.is_test.sum()),
        new_photos=len(fresh),
        new_test_photos=len(fresh) - len(training),
        rejected=tuple((r.name, r.reason) for r in photos.rejected),
        points=0 if photos.points is None else photos.points.num_points,
        points_outside=int((~whole.inside).sum()),
        new_nodes=now.num_nodes - before.num_nodes,
        new_treelets=now.num_treelets - before.num_treelets,
        marked=tuple(str(NodeId.from_key(int(key))) for key in again.tolist()),
        kept=int((now.treelet_states == TreeletState.TRAINED).sum()),
        waiting=int((now.treelet_states != TreeletState.TRAINED).sum()),
        finer=_finer(whole, training),
        coverage=coverage,
        peak_bytes=peak_memory(),
    )


def _checked_files(store: SceneStore, photos: PosedPhotos, former: int) -> StoredFiles | None:
    """Marks of all photos' files; None for a scene that kept none. DatasetError if a former photo was changed."""
    then = store.read_files()
    if then is None:
        return None
    now, changed = changed_files(photos.paths[:former], photos.mask_paths[:former], then)
    if len(changed):
        raise DatasetError(
            f"{photos.root}: expected the {former} photos that the scene was built with as they were, {len(changed)} "
            f"have changed: {', '.join(photos.names[i] for i in changed[:3].tolist())}; put them back, or accept them "
            "first with 'train --accept-changes'"
        )
    new = read_marks(photos.paths[former:], photos.mask_paths[former:])
    return StoredFiles(
        np.concatenate([now.num_bytes, new.num_bytes]),
        np.concatenate([now.mtime_ns, new.mtime_ns]),
        np.concatenate([now.digest, new.digest]),
    )


def _check_inside(context: Context, fresh: Int64) -> None:
    """DatasetError if what the new photos show lies outside the root cube: bounds are fixed at build."""
    points, root = context.photos.points, context.store.header.root
    if points is None or not len(fresh):
        return
    seen = observers(points, context.photos.cameras).points_seen_by(fresh)
    if not len(seen):
        return
    outside = ~inside_unit(root.to_unit(points.xyz[seen]))
    if outside.mean() <= MAX_OUTSIDE:
        return
    lo, hi = np.percentile(points.xyz[seen], [1, 99], axis=0)
    cube = (np.array(root.origin), np.array(root.origin) + root.edge)
    raise DatasetError(
        f"{context.photos.root}: {int(outside.sum()):,} of the {len(seen):,} points that the {len(fresh)} new photos "
        f"show ({outside.mean():.0%}) lie outside the scene's bounds; the photos reach from ({_text(lo)}) to "
        f"({_text(hi)}), the bounds from ({_text(cube[0])}) to ({_text(cube[1])}), and at most {MAX_OUTSIDE:.0%} may "
        "lie outside; leave those photos out, or build again (with --bounds that leave room)"
    )


def _text(place: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in place)


def _added_nodes(context: Context, index: SceneIndex, training: Int64) -> Int64:
    """Nodes that all points together ask for where the new training photos show some, and that there are not yet."""
    photos, header, o = context.photos, context.store.header, context.settings.octree
    points = photos.points
    if points is None or not len(training):
        return np.empty(0, np.int64)
    seen_by = observers(points, photos.cameras)
    evidence = reliable_points(photos)
    unit = header.root.to_unit(points.xyz)
    wanted = point_wanted_levels(points.xyz, seen_by.offsets, seen_by.photos, photos.cameras, context.gsd_root)
    wanted = wanted + o.lod_bias
    seen = np.intersect1d(seen_by.points_seen_by(training), evidence)
    whole, new = (
        grow_from_points(unit[rows], wanted[rows], header.max_level, least, True, cells_per_edge=header.cells)
        for rows, least in ((evidence, o.min_points), (seen, 1))
    )
    asked = np.intersect1d(whole.keys, new.keys)
    # what was pruned above them comes back with them
    closed = Octree.from_keys(np.concatenate([index.keys, asked])).keys
    return np.setdiff1d(closed, index.keys)


def _marked(context: Context, index: SceneIndex, octree: Octree, training: Int64, added: Int64) -> Int64:
    """Root keys of the trained treelets that are to be trained again."""
    evidence = reliable_points(context.photos)
    sighted = sighted_treelets(context, index, training, evidence=evidence, octree=octree)
    grown = treelet_root_keys(added, context.store.header.band_levels)
    trained = index.root_keys[index.treelet_states == TreeletState.TRAINED]
    return np.intersect1d(np.union1d(sighted, grown), trained)


def _raised_limit(store: SceneStore, index: SceneIndex, added: int, settings: Settings) -> int | None:
    """Most nodes that the scene may have from now on. BudgetError if octree.max_nodes does not hold what there is."""
    most, nodes = settings.octree.max_nodes, index.num_nodes + added
    if nodes > most:
        raise BudgetError(
            f"scene {store.name}: {index.num_nodes:,} nodes and {added:,} for the new photos are more than "
            f"octree.max_nodes = {most:,}, which was fixed at build; add fewer photos, or build again with more"
        )
    if scene_inputs(store.header).node_limit is None:
        return None
    return min(most, max(nodes, node_limit(store) + int(np.ceil(added * (1.0 + settings.octree.growth)))))


def _finer(found: Partition, training: Int64) -> float:
    """Levels by which the new photos' typical finest footprint is below the finest GSD."""
    points, cameras = found.photos.points, found.photos.cameras
    capped = found.max_level >= found.settings.octree.max_level  # as was asked for
    if capped or points is None or not len(training):
        return 0.0
    seen = observers(points, cameras)
    at = np.flatnonzero(np.isin(seen.photos, training))
    if not len(at):
        return 0.0
    photo, owner = seen.photos[at], seen.owners(at)
    distance = np.linalg.norm(points.xyz[owner] - cameras.centres[photo], axis=1)
    wanted = np.log2(found.gsd_root * cameras.focals[photo] / np.maximum(distance, 1e-9))
    return max(0.0, float(np.percentile(wanted, 90)) - found.max_level - 0.5)
