"""COLMAP's text files."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.data.colmap_records import CameraRecord, ImageTable, PointTable
from infnerf_tiles.errors import DatasetError

_COPY_AGAIN = "the file is truncated or damaged; copy it again or export the model again"


def read_cameras(path: Path) -> tuple[CameraRecord, ...]:
    """cameras.txt. DatasetError naming the line if damaged."""
    records = []
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            camera_id, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError):
            raise _error(path, number, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS...", line) from None
        records.append(CameraRecord(camera_id=camera_id, model=model, width=width, height=height, params=params))
    _check_count(path, "cameras", len(records))
    return tuple(records)


def read_images(path: Path) -> ImageTable:
    """images.txt: two lines per image, the second with its observations and possibly empty. DatasetError if damaged."""
    heads = []
    names = []
    lines = _lines(path)
    for number, line in lines:
        words = line.split(maxsplit=9)
        if not words:
            continue
        try:
            heads.append((int(words[0]), *map(float, words[1:8]), int(words[8])))
            names.append(words[9].strip())
        except (ValueError, IndexError):
            raise _error(path, number, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", line) from None
        number, line = next(lines, (number, ""))
        if len(line.split()) % 3:
            raise _error(path, number, "observations as X Y POINT3D_ID", line)
    _check_count(path, "images", len(heads))
    table = np.array(heads, dtype=np.float64).reshape(len(heads), 9)
    return ImageTable(
        image_ids=table[:, 0].astype(np.int64),
        camera_ids=table[:, 8].astype(np.int64),
        quaternions=table[:, 1:5],
        translations=table[:, 5:8],
        names=tuple(names),
    )


def read_points(path: Path) -> PointTable:
    """points3D.txt. DatasetError naming the line if damaged."""
    values: list[float] = []
    lengths = [0]
    track: list[int] = []
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            if len(words) < 8 or len(words) % 2 or not all(0 <= int(word) <= 255 for word in words[4:7]):
                raise ValueError(line)
            values += map(float, words[1:8])
            track += map(int, words[8::2])
        except ValueError:
            expected = "POINT3D_ID X Y Z R G B ERROR (R G B from 0 to 255) and pairs of IMAGE_ID POINT2D_IDX"
            raise _error(path, number, expected, line) from None
        lengths.append(len(words) // 2 - 4)
    _check_count(path, "points", len(lengths) - 1)
    table = np.array(values, dtype=np.float64).reshape(-1, 7)
    return PointTable(
        xyz=table[:, :3],
        rgb=table[:, 3:6].astype(np.uint8),
        error=table[:, 6].astype(np.float32),
        track_offsets=np.cumsum(lengths, dtype=np.int64),
        track_image_ids=np.array(track, dtype=np.int64),
    )


def write_cameras(path: Path, cameras: Sequence[CameraRecord]) -> None:
    """cameras.txt."""
    lines = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"]
    for camera in cameras:
        params = " ".join(map(repr, camera.params))
        lines.append(f"{camera.camera_id} {camera.model} {camera.width} {camera.height} {params}")
    _write(path, lines)


def write_images(path: Path, images: ImageTable, xy: Float64, points: Int64, offsets: Int64) -> None:
    """images.txt; arguments as for the binary form."""
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then X Y POINT3D_ID triples"]
    for i, name in enumerate(images.names):
        pose = " ".join(map(repr, [*images.quaternions[i].tolist(), *images.translations[i].tolist()]))
        lines.append(f"{images.image_ids[i]} {pose} {images.camera_ids[i]} {name}")
        rows = slice(int(offsets[i]), int(offsets[i + 1]))
        lines.append(" ".join(f"{x!r} {y!r} {p}" for (x, y), p in zip(xy[rows].tolist(), points[rows], strict=True)))
    _write(path, lines)


def write_points(path: Path, points: PointTable, point2d: Int64) -> None:
    """points3D.txt; arguments as for the binary form."""
    lines = ["# POINT3D_ID X Y Z R G B ERROR, then IMAGE_ID POINT2D_IDX pairs"]
    for i, (first, last) in enumerate(itertools.pairwise(points.track_offsets.tolist())):
        xyz = " ".join(map(repr, points.xyz[i].tolist()))
        rgb = " ".join(map(str, points.rgb[i].tolist()))
        track = zip(points.track_image_ids[first:last], point2d[first:last], strict=True)
        pairs = " ".join(f"{image} {row}" for image, row in track)
        lines.append(f"{i + 1} {xyz} {rgb} {float(points.error[i])!r} {pairs}")
    _write(path, lines)


def _check_count(path: Path, what: str, count: int) -> None:
    """DatasetError if the head of the file promises more: it ends early, at the end of a line."""
    promise = re.compile(rf"#\s*Number of {what}:\s*(\d+)")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in itertools.takewhile(lambda line: line.lstrip().startswith("#"), file):
            if (found := promise.match(line.strip())) and count < int(found[1]):
                raise DatasetError(
                    f"{path}: expected {found[1]} {what} as its head says, got {count}; the file is truncated, copy it "
                    f"again (or correct the line {line.strip()[:60]!r}, if {what} were taken out on purpose)"
                )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of lines that are not comments."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.lstrip().startswith("#"):
                    yield number, line.rstrip("\n")
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got: {error.strerror or error}") from error


def _error(path: Path, number: int, expected: str, line: str) -> DatasetError:
    shown = line if len(line) <= 80 else line[:77] + "..."
    return DatasetError(f"{path}: line {number}: expected {expected}, got {shown!r}; {_COPY_AGAIN}")


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
