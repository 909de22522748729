"""COLMAP's binary files. Every count is checked against the file's size before anything is allocated."""

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.data.colmap_records import MODEL_IDS, MODELS, CameraRecord, ImageTable, PointTable
from infnerf_tiles.errors import DatasetError

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ")
_IMAGE = struct.Struct("<I7dI")
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_TRACK = np.dtype([("image", "<u4"), ("point2d", "<u4")])
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_MIN_IMAGE_BYTES = _IMAGE.size + 2 + _COUNT.size
_MAX_NAME_BYTES = 4096
_COPY_AGAIN = "the file is truncated or damaged; copy it again or export the model again"


class _File:
    """A mapped file that is read front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.offset = 0

    def require(self, num_bytes: int, what: str) -> None:
        """DatasetError unless `num_bytes` more bytes are there."""
        if self.offset + num_bytes > self.size:
            raise self.error(f"{what} up to byte {self.offset + num_bytes}", f"a file of {self.size} bytes")

    def take(self, record: struct.Struct, what: str) -> tuple[Any, ...]:
        """The next record."""
        self.require(record.size, what)
        values = record.unpack_from(self.data, self.offset)
        self.offset += record.size
        return values

    def take_count(self, what: str, min_bytes: int) -> int:
        """The next count, of things that take at least `min_bytes` each in the rest of the file."""
        start = self.offset
        count = int(self.take(_COUNT, f"the number of {what}")[0])
        fits = (self.size - self.offset) // min_bytes
        if count > fits:
            self.offset = start
            raise self.error(f"at most {fits} {what} in a file of {self.size} bytes", str(count))
        return count

    def finish(self, what: str) -> None:
        """DatasetError unless everything was read."""
        if self.offset != self.size:
            raise self.error(f"the end of the file after the last {what}", f"{self.size - self.offset} more bytes")

    def error(self, expected: str, got: str) -> DatasetError:
        """An error at the current position."""
        return DatasetError(f"{self.path}: byte {self.offset}: expected {expected}, got {got}; {_COPY_AGAIN}")


@contextmanager
def _mapped(path: Path) -> Iterator[_File]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got: {error.strerror or error}") from error
    with file:
        if path.stat().st_size < _COUNT.size:
            raise DatasetError(f"{path}: byte 0: expected a count of 8 bytes, got an empty file; {_COPY_AGAIN}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _File(path, data)


def read_cameras(path: Path) -> tuple[CameraRecord, ...]:
    """cameras.bin. DatasetError if damaged, or for a model id whose parameters cannot be skipped."""
    records = []
    with _mapped(path) as file:
        for i in range(file.take_count("cameras", _CAMERA.size)):
            camera_id, model_id, width, height = file.take(_CAMERA, f"camera {i}")
            if model_id not in MODELS:
                file.offset -= _CAMERA.size
                raise file.error(
                    f"camera {camera_id} with a model id from 0 to {max(MODELS)}", f"unknown camera model id {model_id}"
                )
            model, num_params = MODELS[model_id]
            params = file.take(struct.Struct(f"<{num_params}d"), f"the {num_params} parameters of camera {camera_id}")
            records.append(CameraRecord(camera_id=camera_id, model=model, width=width, height=height, params=params))
        file.finish("camera")
    return tuple(records)


def read_images(path: Path) -> ImageTable:
    """images.bin. DatasetError if damaged. The observations are skipped over, so their pages are not even read."""
    heads = []
    names = []
    with _mapped(path) as file:
        for i in range(file.take_count("images", _MIN_IMAGE_BYTES)):
            heads.append(file.take(_IMAGE, f"image {i}"))
            end = file.data.find(b"\0", file.offset, file.offset + _MAX_NAME_BYTES)
            if end < 0:
                raise file.error(f"the name of image {i}, ended by a zero byte", "no zero byte")
            names.append(file.data[file.offset : end].decode("utf-8", "surrogateescape"))
            file.offset = end + 1
            num_observations = file.take_count(f"observations of image {i} ({names[-1]!r})", _OBSERVATION.itemsize)
            file.offset += num_observations * _OBSERVATION.itemsize
        file.finish("image")
    table = np.array(heads, dtype=np.float64).reshape(len(heads), 9)  # ids are uint32, exact in float64
    return ImageTable(
        image_ids=table[:, 0].astype(np.int64),
        camera_ids=table[:, 8].astype(np.int64),
        quaternions=table[:, 1:5],
        translations=table[:, 5:8],
        names=tuple(names),
    )


def read_points(path: Path) -> PointTable:
    """points3D.bin. DatasetError if damaged."""
    heads = []
    tracks = []
    with _mapped(path) as file:
        count = file.take_count("points", _POINT.itemsize)
        # Records have variable length, so this loop is the only serial part: it cuts the file, numpy parses the pieces.
        data, size, offset, unpack = file.data, file.size, file.offset, _COUNT.unpack_from
        for i in range(count):
            file.offset = offset
            start = offset + _POINT.itemsize
            if start > size:
                file.require(_POINT.itemsize, f"point {i} of {count}")
            offset = start + _TRACK.itemsize * unpack(data, start - _COUNT.size)[0]
            if offset > size:
                file.require(offset - file.offset, f"the track of point {i} of {count}")
            heads.append(data[start - _POINT.itemsize : start])
            tracks.append(data[start:offset])
        file.offset = offset
        file.finish("point")
    table = np.frombuffer(b"".join(heads), _POINT)
    track = np.frombuffer(b"".join(tracks), _TRACK)
    return PointTable(
        xyz=table["xyz"].astype(np.float64),
        rgb=table["rgb"].astype(np.uint8),
        error=table["error"].astype(np.float32),
        track_offsets=np.concatenate([[0], np.cumsum(table["length"].astype(np.int64))]),
        track_image_ids=track["image"].astype(np.int64),
    )


def write_cameras(path: Path, cameras: Sequence[CameraRecord]) -> None:
    """cameras.bin."""
    parts = [_COUNT.pack(len(cameras))]
    for camera in cameras:
        parts.append(_CAMERA.pack(camera.camera_id, MODEL_IDS[camera.model], camera.width, camera.height))
        parts.append(struct.pack(f"<{len(camera.params)}d", *camera.params))
    path.write_bytes(b"".join(parts))


def write_images(path: Path, images: ImageTable, xy: Float64, points: Int64, offsets: Int64) -> None:
    """images.bin; observations of image i: rows offsets[i] to offsets[i + 1] of `xy` (pixels) and `points` (ids)."""
    observations = np.empty(len(xy), _OBSERVATION)
    observations["xy"] = xy
    observations["point"] = points
    parts = [_COUNT.pack(len(images.names))]
    for i, name in enumerate(images.names):
        pose = (*images.quaternions[i], *images.translations[i])
        parts.append(_IMAGE.pack(int(images.image_ids[i]), *pose, int(images.camera_ids[i])))
        parts.append(name.encode("utf-8") + b"\0" + _COUNT.pack(int(offsets[i + 1] - offsets[i])))
        parts.append(observations[offsets[i] : offsets[i + 1]].tobytes())
    path.write_bytes(b"".join(parts))


def write_points(path: Path, points: PointTable, point2d: Int64) -> None:
    """points3D.bin; ids count from 1. point2d: int64[k], row of each track element among its image's observations."""
    heads = np.empty(len(points.xyz), _POINT)
    heads["id"] = np.arange(1, len(heads) + 1)
    heads["xyz"] = points.xyz
    heads["rgb"] = points.rgb
    heads["error"] = points.error
    heads["length"] = np.diff(points.track_offsets)
    track = np.empty(len(point2d), _TRACK)
    track["image"] = points.track_image_ids
    track["point2d"] = point2d
    head_bytes, track_bytes = heads.tobytes(), track.tobytes()
    parts = [_COUNT.pack(len(heads))]
    ends = (points.track_offsets * _TRACK.itemsize).tolist()
    for i in range(len(heads)):
        parts.append(head_bytes[i * _POINT.itemsize : (i + 1) * _POINT.itemsize])
        parts.append(track_bytes[ends[i] : ends[i + 1]])
    path.write_bytes(b"".join(parts))
