"""COLMAP models (cameras, images, points3D; binary or text): finding, reading and writing them.

Poses come out camera-to-world; COLMAP stores world-to-camera. Both use OpenCV axes and pixel centres at +0.5.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Float64, Int32, Int64
from infnerf_tiles.data import colmap_binary, colmap_text
from infnerf_tiles.data.colmap_records import MODEL_IDS, MODELS, CameraRecord, ImageTable, PointTable
from infnerf_tiles.data.records import Listing, PhotoFolder, Points
from infnerf_tiles.errors import CameraError, DatasetError
from infnerf_tiles.geometry.camera import PARAM_NAMES, Camera, PosedCameras
from infnerf_tiles.geometry.rotation import quaternions_from_rotations, rotations_from_quaternions

logger = logging.getLogger(__name__)

# these are OPENCV_FISHEYE with equal focal lengths or the higher coefficients at zero
_FISHEYES = frozenset({"SIMPLE_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"})
_BLOCK = 1 << 22  # observations renumbered at a time
MODEL_FOLDERS = ("sparse", "", "colmap/sparse")
"""Where models lie in a data set's folder: in these, or in numbered folders in them."""


def model_folders(folder: Path) -> list[Path]:
    """Every folder that may hold a COLMAP model of a data set's folder, the likelier ones first."""
    found: list[Path] = []
    for place in MODEL_FOLDERS:
        found += [*_numbered(folder / place), folder / place]
    return found


def find_colmap(folder: Path, *, tell: bool = True) -> Path | None:
    """The folder of the COLMAP model that belongs to a data set's folder, or None.

    Of several beside each other, the one with the most photos; of those with as many, the first by number. tell: warn
    then.
    """
    for place in MODEL_FOLDERS:
        models = [path for path in (*_numbered(folder / place), folder / place) if _holds_model(path)]
        if len(models) > 1:
            return _fullest(models, tell)
        if models:
            return models[0]
    return None


def num_images(folder: Path) -> int:
    """How many photos a model lists; 0 where the file does not say."""
    binary = folder / "images.bin"
    if binary.is_file():
        return colmap_binary.num_images(binary)
    try:
        return len(colmap_text.read_images(folder / "images.txt").names)
    except DatasetError:
        return 0


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: (int(path.name), path.name))


def _holds_model(folder: Path) -> bool:
    return any((folder / f"images.{form}").is_file() for form in ("bin", "txt"))


def _fullest(models: Sequence[Path], tell: bool) -> Path:
    counts = [num_images(path) for path in models]
    best = max(range(len(models)), key=lambda i: (counts[i], -i))
    others = (f"{path} ({count})" for i, (path, count) in enumerate(zip(models, counts, strict=True)) if i != best)
    if tell:
        logger.warning(
            "%s: the COLMAP model with the most photos (%d) of %d is read, not %s; to read another, give its folder",
            models[best], counts[best], len(models), ", ".join(others),
        )  # fmt: skip
    return models[best]


def read_colmap(sparse_dir: Path, images: Path | None = None) -> Listing:
    """The model in `sparse_dir`; photo names are relative to `images` (default: `sparse_dir`).

    Reads the binary files if all are there, else the text files. A camera that cannot be used leaves a reason in its
    place. DatasetError, naming file, position, expected and got, if a file is missing, truncated or damaged.
    """
    form = "bin" if all((sparse_dir / f"{name}.bin").is_file() for name in ("cameras", "images")) else "txt"
    for name in ("cameras", "images"):
        if not (sparse_dir / f"{name}.{form}").is_file():
            raise DatasetError(
                f"{sparse_dir}: expected cameras and images of a COLMAP model, both .bin or both .txt, "
                f"got no {name}.{form}; export the model again"
            )
    reader = colmap_binary if form == "bin" else colmap_text
    records = reader.read_cameras(sparse_dir / f"cameras.{form}")
    table = reader.read_images(sparse_dir / f"images.{form}")
    points = None
    for other in (form, "txt" if form == "bin" else "bin"):
        points_path = sparse_dir / f"points3D.{other}"
        if points_path.is_file():
            points_reader = colmap_binary if other == "bin" else colmap_text
            points = _points(points_reader.read_points(points_path), table.image_ids)
            break
    else:
        logger.warning("%s: no points3D.%s, going on without points", sparse_dir, form)

    cameras: list[Camera | str] = [_camera(record) for record in records]
    row_of = {record.camera_id: row for row, record in enumerate(records)}
    for camera_id in sorted(set(table.camera_ids.tolist()) - row_of.keys()):
        row_of[camera_id] = len(cameras)
        cameras.append(f"its camera {camera_id} is not in cameras.{form}")
    return Listing(
        source=sparse_dir,
        photos=PhotoFolder(path=sparse_dir if images is None else images),
        names=table.names,
        mask_names=(None,) * len(table.names),
        cameras=tuple(cameras),
        camera_index=np.array([row_of[i] for i in table.camera_ids.tolist()], dtype=np.int32),
        camera_to_world=_camera_to_world(table),
        points=points,
    )


def write_colmap(
    folder: Path,
    *,
    names: Sequence[str],
    cameras: PosedCameras,
    points: Points | None = None,
    track_xy: Float64 | None = None,
    text: bool = False,
) -> None:
    """Write a model that `read_colmap` and COLMAP read; `folder` is created.

    names: of the photos, in the order of `cameras`. track_xy: float64[k, 2], where each track element was observed
    (pixels); default: the point's projection. ValueError if lengths disagree; CameraError for a model that COLMAP does
    not have.
    """
    if foreign := sorted({camera.model for camera in cameras.cameras} - MODEL_IDS.keys()):
        raise CameraError(f"{folder}: expected camera models that COLMAP has, got {', '.join(foreign)}")
    if len(names) != cameras.num_photos:
        raise ValueError(f"photo names: expected {cameras.num_photos}, got {len(names)}")
    if points is None:
        points = Points(
            xyz=np.zeros((0, 3)),
            rgb=np.zeros((0, 3), np.uint8),
            error=np.zeros(0, np.float32),
            track_offsets=np.zeros(1, np.int64),
            track_photos=np.zeros(0, np.int32),
        )
    point_rows = np.repeat(np.arange(points.num_points), points.track_lengths)
    if track_xy is None:
        track_xy = _projections(cameras, points, point_rows)
    if track_xy.shape != (len(point_rows), 2):
        raise ValueError(f"track_xy: expected shape {(len(point_rows), 2)}, got {track_xy.shape}")

    # Observations are stored by photo, tracks by point: `order` goes from the second order to the first.
    order = np.argsort(points.track_photos, kind="stable")
    offsets = np.searchsorted(points.track_photos[order], np.arange(cameras.num_photos + 1)).astype(np.int64)
    point2d = np.empty(len(order), np.int64)
    point2d[order] = np.arange(len(order)) - offsets[points.track_photos[order]]

    rotations = cameras.camera_to_world[:, :, :3].transpose(0, 2, 1)
    images = ImageTable(
        image_ids=np.arange(1, cameras.num_photos + 1),
        camera_ids=cameras.camera_index.astype(np.int64) + 1,
        quaternions=quaternions_from_rotations(rotations),
        translations=-np.einsum("nij,nj->ni", rotations, cameras.centres),
        names=tuple(names),
    )
    table = PointTable(
        xyz=points.xyz,
        rgb=points.rgb,
        error=points.error,
        track_offsets=points.track_offsets,
        track_image_ids=points.track_photos.astype(np.int64) + 1,
    )
    records = [
        CameraRecord(camera_id=i, model=c.model, width=c.width, height=c.height, params=c.params)
        for i, c in enumerate(cameras.cameras, start=1)
    ]
    writer, form = (colmap_text, "txt") if text else (colmap_binary, "bin")
    folder.mkdir(parents=True, exist_ok=True)
    writer.write_cameras(folder / f"cameras.{form}", records)
    writer.write_images(folder / f"images.{form}", images, track_xy[order], point_rows[order] + 1, offsets)
    writer.write_points(folder / f"points3D.{form}", table, point2d)


def _camera(record: CameraRecord) -> Camera | str:
    """The camera of a record, or why it cannot be used."""
    model, params = record.model, record.params
    if model in _FISHEYES and len(params) == dict(MODELS.values())[model]:
        focal = params[:1] if model != "FISHEYE" else ()
        params = (*focal, *params, *[0.0] * 4)[: dict(MODELS.values())["OPENCV_FISHEYE"]]
        model = "OPENCV_FISHEYE"
    try:
        return Camera(model=model, width=record.width, height=record.height, params=params)
    except CameraError as error:
        step = "" if model in PARAM_NAMES else " ('colmap image_undistorter' does)"
        return f"camera {record.camera_id}: {error}{step}"


def _camera_to_world(images: ImageTable) -> Float64:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # poses are checked later, by photo
        world_to_camera = rotations_from_quaternions(images.quaternions)
        rotations = world_to_camera.transpose(0, 2, 1)
        centres = -np.einsum("nij,nj->ni", rotations, images.translations)
    return np.concatenate([rotations, centres[:, :, None]], axis=2)


def _points(table: PointTable, image_ids: Int64) -> Points:
    """Points with tracks as rows of the image table; points that are not finite and unknown image ids are dropped."""
    order = np.argsort(image_ids)
    photos: Int32 = np.empty(len(table.track_image_ids), np.int32)
    for start in range(0, len(photos), _BLOCK):
        asked = table.track_image_ids[start : start + _BLOCK].astype(np.int64)
        found = np.searchsorted(image_ids[order], asked).clip(max=max(len(order) - 1, 0))
        rows = order[found] if len(order) else np.full(len(asked), -1)
        known = image_ids[rows] == asked if len(order) else np.zeros(len(asked), np.bool_)
        photos[start : start + _BLOCK] = np.where(known, rows, -1)
    finite = np.isfinite(table.xyz).all(axis=1)
    kept = photos >= 0
    if not finite.all():
        kept &= np.repeat(finite, np.diff(table.track_offsets))
    if kept.all() and finite.all():
        offsets = table.track_offsets
    else:
        before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        lengths = np.diff(before[table.track_offsets])[finite]
        offsets, photos = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), photos[kept]
    return Points(
        xyz=table.xyz[finite], rgb=table.rgb[finite], error=table.error[finite], track_offsets=offsets,
        track_photos=photos,
    )  # fmt: skip


def _projections(cameras: PosedCameras, points: Points, point_rows: Int64) -> Float64:
    xy = np.zeros((len(point_rows), 2))
    order = np.argsort(points.track_photos, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(points.track_photos[order])) + 1):
        if len(rows):
            xy[rows] = cameras.project(int(points.track_photos[rows[0]]), points.xyz[point_rows[rows]])[0]
    return xy
