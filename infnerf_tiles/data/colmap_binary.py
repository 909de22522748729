"""COLMAP's binary files. Every count is checked against the file's size before anything is allocated."""

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64, Int64, UInt8
from infnerf_tiles.compiled import njit
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
_BLOCK = 1 << 16  # points parsed at a time
_IMAGES_AT_ONCE = 64
_COPY_AGAIN = "the file is truncated or damaged; copy it again or export the model again"


class _File:
    """A mapped file that is read front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.offset = 0
        self._forgotten = 0

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

    def forget(self) -> None:
        """Let the pages go that were read: they count as memory of this process as long as they are mapped."""
        if hasattr(mmap, "MADV_DONTNEED"):
            done = self.offset // mmap.PAGESIZE * mmap.PAGESIZE
            if done > self._forgotten:
                self.data.madvise(mmap.MADV_DONTNEED, self._forgotten, done - self._forgotten)
                self._forgotten = done

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
                raise DatasetError(
                    f"{path}: byte {file.offset}: expected camera {camera_id} with a model id from 0 to {max(MODELS)}, "
                    f"got unknown camera model id {model_id}; the file is damaged, or of a later version of COLMAP: "
                    "write pinhole cameras with 'colmap image_undistorter'"
                )
            model, num_params = MODELS[model_id]
            params = file.take(struct.Struct(f"<{num_params}d"), f"the {num_params} parameters of camera {camera_id}")
            records.append(CameraRecord(camera_id=camera_id, model=model, width=width, height=height, params=params))
        file.finish("camera")
    return tuple(records)


def num_images(path: Path) -> int:
    """How many images an images.bin says that it holds; 0 if it cannot hold as many."""
    try:
        with path.open("rb") as file:
            head = file.read(_COUNT.size)
        count = int(_COUNT.unpack(head)[0]) if len(head) == _COUNT.size else 0
        return count if count * _MIN_IMAGE_BYTES <= path.stat().st_size else 0
    except OSError:
        return 0


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
            if i % _IMAGES_AT_ONCE == 0:
                file.forget()
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
    """points3D.bin. DatasetError if damaged. Takes little more than the arrays that it returns."""
    with _mapped(path) as file:
        count = file.take_count("points", _POINT.itemsize)
        # what is not a head is a track
        num_tracks = (file.size - file.offset - count * _POINT.itemsize) // _TRACK.itemsize
        table = PointTable(
            xyz=np.empty((count, 3)),
            rgb=np.empty((count, 3), np.uint8),
            error=np.empty(count, np.float32),
            track_offsets=np.zeros(count + 1, np.int64),
            track_image_ids=np.empty(num_tracks, np.uint32),
        )
        for first in range(0, count, _BLOCK):
            _read_block(file, table, first, min(first + _BLOCK, count), count)
            file.forget()
        file.finish("point")
    return table


def _read_block(file: _File, table: PointTable, first: int, last: int, count: int) -> None:
    """Read points first .. last - 1 into the table."""
    data: UInt8 = np.frombuffer(file.data, np.uint8)
    try:
        starts, problem = _point_starts(data, file.offset, last - first, _POINT.itemsize, _TRACK.itemsize)
        if problem >= 0:
            file.offset = int(starts[problem])
            file.require(_POINT.itemsize, f"point {first + problem} of {count}")
            head = file.data[file.offset : file.offset + _POINT.itemsize]
            size = _POINT.itemsize + _TRACK.itemsize * int.from_bytes(head[-8:], "little")
            file.require(size, f"the track of point {first + problem} of {count}")
        _parse_points(data, starts, first, last, table)
        file.offset = int(starts[-1])
    finally:
        del data  # a mapping with views cannot be closed


@njit(cache=True)
def _point_starts(data: UInt8, offset: int, count: int, head: int, element: int) -> tuple[Int64, int]:
    """Byte at which each record starts, and behind the last one; the row of a record beyond the end of the file, or -1.

    Records have variable length, so this loop is the only serial part.
    """
    starts = np.empty(count + 1, np.int64)
    size = data.shape[0]
    for i in range(count):
        starts[i] = offset
        end = offset + head
        if end > size:
            return starts, i
        length = np.int64(0)
        for k in range(8):
            length |= np.int64(data[end - 8 + k]) << np.int64(8 * k)
        if length < 0 or length > size or end + length * element > size:
            return starts, i
        offset = int(end + length * element)
    starts[count] = offset
    return starts, -1


def _parse_points(data: UInt8, starts: Int64, first: int, last: int, table: PointTable) -> None:
    """Fill rows first .. last - 1 of the table."""
    places = starts[:-1, None] + np.arange(_POINT.itemsize)
    heads = data[places].reshape(-1).view(_POINT)
    table.xyz[first:last] = heads["xyz"]
    table.rgb[first:last] = heads["rgb"]
    table.error[first:last] = heads["error"]
    begin, end = int(starts[0]), int(starts[-1])
    is_track = np.ones(end - begin, np.bool_)
    is_track[(places - begin).reshape(-1)] = False
    tracks = data[begin:end][is_track].view(_TRACK)
    offset = int(table.track_offsets[first])
    table.track_offsets[first + 1 : last + 1] = offset + np.cumsum(heads["length"].astype(np.int64))
    table.track_image_ids[offset : offset + len(tracks)] = tracks["image"]


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
