"""Whether photos of a grown collection are those that a scene was built with: names, poses, files, world frame."""

from dataclasses import dataclass, replace

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.rotation import nearest_rotations
from infnerf_tiles.store.schema import SceneHeader
from infnerf_tiles.store.stored_cameras import StoredCameras

POSE_TOLERANCE = 1.0
"""Most pixels by which what a photo shows may move: those of its turn and intrinsics, and its shift in finest GSDs."""
_HELD = "register the new photos with the former ones held fixed, or build again"
_NUM_SHOWN = 3
_FEWEST = 3  # photos that fix a similarity
_ALIKE = 0.1  # residual of a similarity, relative to how far the photos moved


@dataclass(frozen=True, kw_only=True)
class _Similarity:
    scale: float
    degrees: float
    shift: float
    """World units, of the middle of the photos."""
    residual: float
    """Root mean square, world units."""


def check_common(photos: PosedPhotos, stored: StoredCameras, gsd_finest: float, *, advice: str = _HELD) -> None:
    """DatasetError unless all stored photos are among `photos`, with the same poses and intrinsics.

    gsd_finest: GSD of the scene's deepest level, world units. Says what differs; if all photos moved together, how.
    advice: what to do about poses that differ.
    """
    row_of = {name: row for row, name in enumerate(photos.names)}
    if gone := [name for name in stored.names if name not in row_of]:
        reasons = {r.name: r.reason for r in photos.rejected}
        shown = "; ".join(f"{name} ({reasons.get(name, 'it is not listed any more')})" for name in gone[:_NUM_SHOWN])
        raise DatasetError(
            f"{photos.root}: expected the {len(stored.names)} photos that the scene was built with and more, "
            f"{len(gone)} of them cannot be used: {shown}; put them back, or build again"
        )
    now = photos.cameras.subset(np.array([row_of[name] for name in stored.names], np.int64))
    _check_sizes(photos, stored, now)
    if _equal(stored.cameras, now):
        return
    moved = moved_pixels(stored.cameras, now, gsd_finest)
    far = np.flatnonzero(~(moved <= POSE_TOLERANCE))
    if not len(far):
        return
    worst = far[np.argsort(-moved[far], kind="stable")][:_NUM_SHOWN].tolist()
    shift = np.linalg.norm(now.centres - stored.cameras.centres, axis=1)
    shown = "; ".join(f"{stored.names[i]} (by {moved[i]:.3g} pixels, the camera by {shift[i]:.3g})" for i in worst)
    together = ""
    if 2 * len(far) > len(moved) and len(moved) >= _FEWEST:
        fit = _similarity(stored.cameras.centres, now.centres)
        if fit.residual <= _ALIKE * float(np.sqrt((shift**2).mean())):
            together = (
                f"; they moved together: the collection lies in another world frame (scale {fit.scale:.6g}, turned by "
                f"{fit.degrees:.4g} degrees, shifted by {fit.shift:.4g} units, {fit.residual:.2g} units left)"
            )
    raise DatasetError(
        f"{photos.root}: expected the photos' poses as the scene was built with, to {POSE_TOLERANCE:g} pixel, "
        f"{len(far)} of {len(moved)} moved: {shown}{together}; {advice}"
    )


def check_georeference(photos: PosedPhotos, header: SceneHeader) -> None:
    """DatasetError if the data set names another place on Earth than the scene's."""
    g, there = photos.georeference, header.georeference
    if g is None or there is None:
        return
    now = {
        "crs": g.crs,
        "origin": [float(v) for v in g.origin],
        "model_to_crs": None if g.model_to_crs is None else np.asarray(g.model_to_crs).tolist(),
    }
    for name, value in now.items():
        if there.get(name) != value:
            raise DatasetError(
                f"{photos.root}: expected the scene's georeference, {name} {there.get(name)!r}, got {value!r} in "
                "geo.json; bring the new photos into the scene's frame, or build again"
            )


def moved_pixels(then: PosedCameras, now: PosedCameras, gsd_finest: float) -> Float64:
    """float64[n]: by how many pixels what each photo shows has moved, at most, at the finest footprint.

    The turn of the rays of nine places in the image, in pixels, plus the camera's shift in `gsd_finest`.
    """
    rows = np.arange(then.num_photos)
    photo = np.repeat(rows, 9)
    size = np.array([[c.width, c.height] for c in then.cameras], np.float64)[then.camera_index[photo]]
    steps = np.array([0.02, 0.5, 0.98])
    places = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    xy = np.tile(places, (len(rows), 1)) * size
    before, after = then.rays(photo, xy)[1], now.rays(photo, xy)[1]
    turn = np.linalg.norm(after - before, axis=1).reshape(len(rows), 9).max(axis=1, initial=0.0)
    shift = np.linalg.norm(now.centres - then.centres, axis=1)
    result: Float64 = turn * then.focals + shift / gsd_finest
    return result


def _equal(then: PosedCameras, now: PosedCameras) -> bool:
    then = then.subset(np.arange(then.num_photos))
    return (
        then.cameras == now.cameras
        and np.array_equal(then.camera_index, now.camera_index)
        and np.array_equal(then.camera_to_world, now.camera_to_world)
    )


def _check_sizes(photos: PosedPhotos, stored: StoredCameras, now: PosedCameras) -> None:
    for row, name in enumerate(stored.names):
        a, b = stored.cameras.camera(row), now.camera(row)
        if (a.width, a.height) != (b.width, b.height):
            raise DatasetError(
                f"{photos.root}: {name}: expected {a.width}x{a.height} pixels as the scene was built with, got "
                f"{b.width}x{b.height}; put it back, or build again"
            )


def _similarity(then: Float64, now: Float64) -> _Similarity:
    """The similarity that takes the places float64[n, 3] `then` to `now` best (Umeyama 1991)."""
    middle, target = then.mean(axis=0), now.mean(axis=0)
    a, b = then - middle, now - target
    rotation = nearest_rotations((b.T @ a)[None])[0]
    spread = max(float((a**2).sum()), 1e-300)
    scale = float((b * (a @ rotation.T)).sum()) / spread
    residual = b - scale * a @ rotation.T
    angle = np.arccos(np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0))
    return _Similarity(
        scale=scale,
        degrees=float(np.degrees(angle)),
        shift=float(np.linalg.norm(target - middle)),
        residual=float(np.sqrt((residual**2).sum(axis=1).mean())),
    )


def in_grown_order(photos: PosedPhotos, stored: StoredCameras, test_every: int) -> tuple[PosedPhotos, Int64]:
    """The stored photos in their order, with their split and their very cameras, then the new ones by name; and the new
    rows, int64[k].

    What the data set says of the former cameras, a little off perhaps, is not taken over: else it could go on with each
    addition, and kept treelets would be drawn and scored with cameras that they were not trained with.
    Of the new ones those are held out that the data set says; else every `test_every`-th of all rows, so that a photo's
    part depends on nothing that comes after it.
    """
    row_of = {name: row for row, name in enumerate(photos.names)}
    known = set(stored.names)
    new = sorted(name for name in photos.names if name not in known)
    rows = np.array([row_of[name] for name in (*stored.names, *new)], np.int64)
    fresh = np.arange(len(stored.names), len(rows))
    held_out: Bool = photos.is_test[rows[fresh]] if photos.own_split else _every(fresh, test_every)
    grown = photos.select(rows, np.concatenate([stored.is_test, held_out]))
    return replace(grown, cameras=_joined(stored.cameras, grown.cameras.subset(fresh))), fresh


def _joined(former: PosedCameras, new: PosedCameras) -> PosedCameras:
    """All photos of both; equal intrinsics are kept once."""
    cameras = tuple(dict.fromkeys((*former.cameras, *new.cameras)))
    row_of = {camera: row for row, camera in enumerate(cameras)}
    index = [row_of[part.cameras[row]] for part in (former, new) for row in part.camera_index.tolist()]
    poses = np.concatenate([former.camera_to_world, new.camera_to_world])
    joined = PosedCameras(cameras=cameras, camera_index=np.array(index, np.int32), camera_to_world=poses)
    return joined.subset(np.arange(len(poses)))


def _every(rows: Int64, k: int) -> Bool:
    chosen: Bool = rows % k == 0 if k else np.zeros(len(rows), np.bool_)
    return chosen
