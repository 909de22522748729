"""transforms.json in its nerfstudio, instant-ngp and Blender forms.

The world frame is the file's: nerfstudio's `applied_transform` (by which it turned the original poses) and
instant-ngp's `scale` and `offset` (its rendering box) are not undone or applied, so that poses, `ply_file_path`
points and exports agree with what else was made from the file. Only the camera axes are converted, from OpenGL's (y
up, z backward) to OpenCV's.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.data.codecs import photo_size
from infnerf_tiles.data.json_file import read_json
from infnerf_tiles.data.names import find_file, name_problem, parent_folders
from infnerf_tiles.data.placing import EXTENSIONS, missing_photo, place_frame_photos
from infnerf_tiles.data.ply import read_ply_points
from infnerf_tiles.data.records import Listing, OwnSplit, PhotoFolder, Points, Rejected
from infnerf_tiles.data.transforms_camera import frame_camera
from infnerf_tiles.errors import CameraError, DatasetError, PhotoError
from infnerf_tiles.geometry.camera import Camera

logger = logging.getLogger(__name__)

TRANSFORMS_FILE = "transforms.json"
BLENDER_FILES = {part: f"transforms_{part}.json" for part in ("train", "val", "test")}
_LAST_ROW = np.array([0.0, 0.0, 0.0, 1.0])
_ROW_TOLERANCE = 1e-6
_OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0])
_IGNORED_KEYS = ("rolling_shutter",)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One usable entry of `frames`."""

    name: str
    mask_name: str | None
    camera: Camera
    camera_to_world: Float64


def find_transforms(folder: Path) -> tuple[Path, ...]:
    """transforms.json of a data set's folder, else its Blender files that exist, else nothing; a file itself."""
    if folder.is_file():
        return (folder,)
    single = folder / TRANSFORMS_FILE
    if single.is_file():
        return (single,)
    return tuple(folder / name for name in BLENDER_FILES.values() if (folder / name).is_file())


def contents_text(paths: Sequence[Path]) -> str:
    """What transforms files hold, in a few words that begin with the number of frames."""
    contents = [_content(path) for path in paths]
    frames = [frame for content in contents for frame in content["frames"] if isinstance(frame, dict)]
    parts = [f"{len(frames)} frames"]
    if masked := sum(bool(frame.get("mask_path")) for frame in frames):
        parts.append(f"{masked} with masks")
    if len(paths) > 1 or any(f"{part}_filenames" in content for part in BLENDER_FILES for content in contents):
        parts.append("with a split")
    return ", ".join(parts)


def read_transforms(folder: Path, images: Path | None = None) -> Listing:
    """The photos that the transforms file or files of `folder`, or that one file, list.

    images: folder with the photos, where that is not the one that their names begin with. Entries that cannot be used
    are rejected with a reason. DatasetError if a file is not what it should be as a whole.
    """
    contents = {path: _content(path) for path in find_transforms(folder)}
    if not contents:
        raise DatasetError(f"{folder}: expected {TRANSFORMS_FILE} or {BLENDER_FILES['train']}, got neither")
    if folder.is_file():
        folder = folder.parent
    _tell_of_others(folder, contents)
    root = _root(contents)
    photos = place_frame_photos(folder, images, [clean_name(path, root) for path in _file_paths(contents)])
    frames: dict[str, _Frame] = {}
    rejected: list[Rejected] = []
    parts: dict[str, frozenset[str]] = {}
    for path, content in contents.items():
        known = set(frames)
        for entry in _entries(path, content, photos, root):
            if isinstance(entry, Rejected):
                rejected.append(entry)
            elif entry.name in frames:
                rejected.append(Rejected(entry.name, f"it is listed more than once ({path.name})"))
            else:
                frames[entry.name] = entry
        parts[path.stem.removeprefix("transforms").removeprefix("_")] = frozenset(frames.keys() - known)
    source = next(iter(contents))
    is_blender = source.name in BLENDER_FILES.values()
    if not is_blender:
        parts = _listed_parts(source, contents[source], root)
    elif parts.keys() == {"train"}:
        parts = {}  # a single file says nothing of what to hold out
    points = (_points(path, content, root) for path, content in contents.items())
    cameras = tuple(dict.fromkeys(frame.camera for frame in frames.values()))
    row_of = {camera: row for row, camera in enumerate(cameras)}
    poses = [frame.camera_to_world for frame in frames.values()]
    return Listing(
        source=folder if is_blender else source,
        photos=photos,
        names=tuple(frames),
        mask_names=tuple(frame.mask_name for frame in frames.values()),
        cameras=cameras,
        camera_index=np.array([row_of[frame.camera] for frame in frames.values()], dtype=np.int32),
        camera_to_world=np.array(poses, dtype=np.float64).reshape(-1, 3, 4),
        points=next((p for p in points if p is not None), None),
        split=_split_of(folder if is_blender else source, parts),
        rejected=tuple(rejected),
        applied=tuple(transform for content in contents.values() for transform in _applied(content)),
    )


def _tell_of_others(folder: Path, contents: Mapping[Path, Any]) -> None:
    others = [name for name in (TRANSFORMS_FILE, *BLENDER_FILES.values()) if folder / name not in contents]
    if there := [name for name in others if (folder / name).is_file()]:
        read = ", ".join(path.name for path in contents)
        logger.warning(
            "%s: %s is read, not %s beside it; to read another, give its path or take %s away",
            folder, read, ", ".join(there), read,
        )  # fmt: skip


def _applied(content: Mapping[str, Any]) -> Iterator[Float64]:
    """What the file says that it applied to the world of its poses: float64[3, 4], and the same with applied_scale."""
    transform = content.get("applied_transform")
    if transform is None:
        return
    yield (matrix := np.array(transform, np.float64)[:3])
    scale = content.get("applied_scale")
    if isinstance(scale, int | float):
        yield matrix * scale


def clean_name(file_path: str, root: str = "") -> str:
    """A `file_path` without the leading "./" that some writers add and without the folders `root`.

    What is not allowed in it stays visible.
    """
    if root and (portable := _portable(file_path)).startswith(root):
        return portable.removeprefix(root)
    return file_path if file_path.startswith("/") else str(PurePosixPath(file_path))


def _portable(file_path: str) -> str:
    return str(PurePosixPath(file_path.replace("\\", "/")))


def _file_paths(contents: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    frames = [frame for content in contents.values() for frame in content["frames"] if isinstance(frame, dict)]
    return [frame["file_path"] for frame in frames if isinstance(frame.get("file_path"), str)]


def _root(contents: Mapping[Path, Mapping[str, Any]]) -> str:
    """What all paths begin with that is absolute or leaves the folder: where the data set lay when they were written.

    "" if they begin with nothing of that kind. The last folder of all is kept if it can be: images.
    """
    common = parent_folders(_portable(path) for path in _file_paths(contents))
    outside = [i for i, part in enumerate(common) if part in ("/", "..") or part.endswith(":")]
    if not outside:
        return ""
    root = str(PurePosixPath(*common[: max(outside[-1] + 1, len(common) - 1)])).rstrip("/") + "/"
    logger.warning("%s: all its paths begin with %s, which is taken for this file's folder", next(iter(contents)), root)
    return root


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise DatasetError(f"{path}: expected an object with a list 'frames', got something else; export it again")
    transform = content.get("applied_transform")
    if transform is not None and _matrix(transform) is None:
        raise DatasetError(f"{path}: applied_transform: expected 3x4 or 4x4 numbers, got {transform!r:.80}")
    for key in _IGNORED_KEYS:
        if np.any(content.get(key, 0)):
            logger.warning("%s: %s is not supported and ignored", path, key)
    return content


def _entries(path: Path, content: Mapping[str, Any], photos: PhotoFolder, root: str) -> Iterator[_Frame | Rejected]:
    for i, frame in enumerate(content["frames"]):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(name, str):
            yield Rejected(f"frames[{i}]", f"{path.name} gives it no file_path")
            continue
        name = clean_name(name, root)
        problem = name_problem(name)
        if problem is not None:
            yield Rejected(name, problem)
            continue
        name = _with_extension(photos, name)
        pose = _matrix(frame.get("transform_matrix"))
        mask = frame.get("mask_path") or None
        problem = _matrix_problem(frame.get("transform_matrix"))
        if pose is None:
            yield Rejected(name, f"{path.name} frames[{i}]: transform_matrix is not 3x4 or 4x4 numbers")
        elif problem is not None:
            yield Rejected(name, f"{path.name}: {problem}")
        elif mask is not None and not isinstance(mask, str):
            yield Rejected(name, f"{path.name} frames[{i}]: mask_path is not a text")
        else:
            try:
                camera = frame_camera(frame, content, partial(_stored_size, photos, name))
            except (CameraError, PhotoError) as error:
                yield Rejected(name, str(error))
                continue
            pose[:, :3] *= _OPENGL_TO_OPENCV
            mask_name = None if mask is None else clean_name(mask, root)
            yield _Frame(name=name, mask_name=mask_name, camera=camera, camera_to_world=pose)


def _matrix(value: object) -> Float64 | None:
    """The upper 3x4 of a matrix, or None if it is none."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return matrix[:3].copy() if matrix.shape in ((3, 4), (4, 4)) else None


def _matrix_problem(value: object) -> str | None:
    """Why a 4x4 matrix cannot be a pose, by its last row, or None."""
    matrix = np.array(value if _matrix(value) is not None else np.eye(4), np.float64)
    if matrix.shape != (4, 4) or (np.abs(matrix[3] - _LAST_ROW) <= _ROW_TOLERANCE).all():
        return None
    if (np.abs(matrix[:, 3] - _LAST_ROW) <= _ROW_TOLERANCE).all():
        got = "the position there, and 0, 0, 0, 1 in the last column; it is written by columns, transpose it"
    else:
        row = ", ".join(f"{number:.4g}" for number in matrix[3])
        got = f"{row}; export it again as a camera-to-world pose"
    return f"transform_matrix: expected the last row 0, 0, 0, 1, got {got}"


def _with_extension(photos: PhotoFolder, name: str) -> str:
    if photos.find(name) is None:
        for extension in EXTENSIONS:
            if photos.find(name + extension) is not None:
                return name + extension
    return name


def _stored_size(photos: PhotoFolder, name: str) -> tuple[int, int]:
    path = photos.find(name)
    if path is None:
        raise PhotoError(missing_photo(photos, name))
    return photo_size(path)


def _listed_parts(path: Path, content: Mapping[str, Any], root: str) -> dict[str, frozenset[str]]:
    """nerfstudio's train_filenames, val_filenames and test_filenames."""
    parts = {}
    for part in ("train", "val", "test"):
        names = content.get(f"{part}_filenames")
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{path}: {part}_filenames: expected a list of names, got {names!r:.60}")
        parts[part] = frozenset(clean_name(name, root) for name in names)
    return parts


def _split_of(source: Path, parts: Mapping[str, frozenset[str]]) -> OwnSplit | None:
    """The split that a file's lists or files amount to; validation photos stand in where there are no test photos.

    Where only training photos are listed, none is held out, as in nerfstudio.
    """
    test, train = parts.get("test") or parts.get("val") or frozenset(), parts.get("train") or None
    return OwnSplit(source=str(source), test=test, train=train) if test or train else None


def _points(path: Path, content: Mapping[str, Any], root: str) -> Points | None:
    name = content.get("ply_file_path")
    if name is None:
        return None
    name = clean_name(name, root) if root and isinstance(name, str) else name
    problem = name_problem(name) if isinstance(name, str) else "it is not a text"
    if problem is not None:
        raise DatasetError(
            f"{path}: ply_file_path: expected a file name below {path.parent}, got {name!r:.80}: {problem}"
        )
    file = find_file(path.parent, name)
    if file is None:
        logger.warning("%s: ply_file_path names %s, which does not exist; going on without points", path, name)
        return None
    return read_ply_points(file)
