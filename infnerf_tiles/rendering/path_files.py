"""Camera paths as JSON files: our own form, nerfstudio's and lists of cameras, checked before anything is allocated.

Our own form, `{"format": "infnerf-tiles camera path", "version": 1, ...}` with

* `fps`: frames per second, default 30;
* `camera`: `{"model", "width", "height", "params"}` as in COLMAP, in pixels;
* either `camera_to_world`: one 3x4 (or 4x4) matrix a frame, world, OpenCV axes (x right, y down, z forward);
* or `key_poses` (such matrices), `frames` (how many to draw along them) and `loop` (true or false, default false).

nerfstudio's form (`camera_path`, `render_width`, `render_height`, `fps`; OpenGL axes, vertical field of view in
degrees) is read as it stands: its poses must be in the scene's world frame, which holds for a path made on a training
with auto-scaling, centring and reorienting switched off.

A list of cameras (`frames`) is a transforms.json of nerfstudio, instant-ngp or Blender, as data sets have it: a frame
for each entry, in the order of the file, in the scene's world frame. All are drawn with the camera that most of them
have, without its distortion.
"""

import json
import logging
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.data.codecs import photo_size
from infnerf_tiles.data.names import find_file, name_problem
from infnerf_tiles.data.placing import EXTENSIONS
from infnerf_tiles.data.transforms_camera import frame_camera
from infnerf_tiles.errors import CameraError, DataError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import nearest_rotations
from infnerf_tiles.rendering.vantage import path_camera
from infnerf_tiles.units import MAX_SIDE

FORMAT = "infnerf-tiles camera path"
VERSION = 1
MAX_FRAMES = 100_000  # an hour at 30 frames a second
MAX_FILE_BYTES = 256 << 20  # MAX_FRAMES poses as generous text
_LIST = "frames"
_log = logging.getLogger(__name__)
_ROTATION_TOLERANCE = 1e-3  # files carry poses as text, often with few digits


@dataclass(frozen=True, kw_only=True)
class PathFile:
    """What a path file says.

    camera: one for all frames. poses: float64[k, 3, 4], camera-to-world, OpenCV axes. frames: None if `poses` are the
    frames, else how many to draw along them as key poses. loop: whether the key poses close up. fps: frames a second.
    """

    camera: Camera
    poses: Float64
    frames: int | None
    loop: bool
    fps: float


def parse_path_file(path: Path) -> PathFile:
    """Read and check a path file of any form; rounding errors in rotations are taken out.

    Raises SettingsError if there is no such file, DataError that names file, place, expected and got for what is in it.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"path file {path}: expected at most {MAX_FILE_BYTES} bytes, got {size}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"path file {path}: expected a readable JSON file, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"path file {path}: expected JSON in UTF-8, got: {error}") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"path file {path}: expected JSON, got: {error}") from error
    try:
        if not isinstance(content, dict):
            raise DataError(f"expected an object, got {type(content).__name__}")
        if content.get("format") == FORMAT:
            return _parse_own(content)
        if "camera_path" in content:
            return _parse_nerfstudio(content)
        if _LIST in content:
            return _parse_list(content, path)
        raise DataError(
            f'expected "format": "{FORMAT}", nerfstudio\'s "camera_path", or the "{_LIST}" of a transforms.json; '
            f"got the keys {sorted(content)[:8]}"
        )
    except DataError as error:
        raise DataError(f"path file {path}: {error}") from error


def format_path_file(
    camera: Camera, poses: Float64, fps: float, *, frames: int | None = None, loop: bool = False
) -> str:
    """The text of a path file in our own form; numbers read back exactly.

    poses: float64[n, 3, 4], one a frame; or, if `frames` is given, key poses of a film of that many frames, which
    closes up with `loop`.
    """
    intrinsics = {"model": camera.model, "width": camera.width, "height": camera.height, "params": list(camera.params)}
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "fps": fps, "camera": intrinsics}
    if frames is not None:
        head |= {"frames": frames, "loop": loop}
    name = "camera_to_world" if frames is None else "key_poses"
    # One pose a line: such files are edited by hand and compared.
    rows = ",\n".join(json.dumps(pose) for pose in poses.tolist())
    return f'{json.dumps(head)[:-1]}, "{name}": [\n{rows}\n]}}\n'


def _parse_own(content: Mapping[str, Any]) -> PathFile:
    if content.get("version") != VERSION:
        raise DataError(f"version: expected {VERSION}, got {content.get('version')!r}; update infnerf-tiles")
    if ("camera_to_world" in content) == ("key_poses" in content):
        raise DataError("expected either camera_to_world or key_poses")
    intrinsics = content.get("camera")
    if not isinstance(intrinsics, dict):
        raise DataError(
            f"camera: expected an object with model, width, height and params, got {reprlib.repr(intrinsics)}"
        )
    params = intrinsics.get("params")
    if not isinstance(params, list):
        raise DataError(f"camera.params: expected a list of numbers, got {reprlib.repr(params)}")
    try:
        camera = Camera(
            model=str(intrinsics.get("model")),
            width=_count(intrinsics, "width", MAX_SIDE, "camera."),
            height=_count(intrinsics, "height", MAX_SIDE, "camera."),
            params=tuple(_number(value, f"camera.params[{i}]") for i, value in enumerate(params)),
        )
    except CameraError as error:
        raise DataError(f"camera: {error}") from error
    fps = _fps(content)
    if "camera_to_world" in content:
        return PathFile(
            camera=camera, poses=_poses(content["camera_to_world"], "camera_to_world"), frames=None, loop=False, fps=fps
        )
    loop = content.get("loop", False)
    if not isinstance(loop, bool):
        raise DataError(f"loop: expected true or false, got {reprlib.repr(loop)}")
    frames = _count(content, "frames", MAX_FRAMES)
    return PathFile(camera=camera, poses=_poses(content["key_poses"], "key_poses"), frames=frames, loop=loop, fps=fps)


def _parse_nerfstudio(content: Mapping[str, Any]) -> PathFile:
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise DataError(f"camera_type: expected perspective, got {reprlib.repr(kind)}; export a perspective path")
    entries = content["camera_path"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"camera_path: expected a list of objects, got {reprlib.repr(entries)}")
    poses = _poses([entry.get("camera_to_world") for entry in entries], "camera_path", ".camera_to_world")
    poses[:, :, 1:3] *= -1  # OpenGL's y up, z back -> y down, z forward
    angles = [_number(entry.get("fov"), f"camera_path[{i}].fov") for i, entry in enumerate(entries)]
    for i, angle in enumerate(angles):
        if not 0 < angle < 180:
            raise DataError(f"camera_path[{i}].fov: expected degrees between 0 and 180, got {angle:g}")
        if abs(angle - angles[0]) > 1e-6:
            raise DataError(
                f"camera_path[{i}].fov: expected the field of view of the first frame ({angles[0]:g}), got {angle:g}; "
                "one path has one camera: export a path without zoom"
            )
    width = _count(content, "render_width", MAX_SIDE)
    height = _count(content, "render_height", MAX_SIDE)
    focal = height / 2 / math.tan(math.radians(angles[0]) / 2)
    camera = Camera(model="PINHOLE", width=width, height=height, params=(focal, focal, width / 2, height / 2))
    return PathFile(camera=camera, poses=poses, frames=None, loop=False, fps=_fps(content))


def _parse_list(content: Mapping[str, Any], path: Path) -> PathFile:
    """path: of the file itself, beside which photos lie whose size it does not give."""
    entries = content[_LIST]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{_LIST}: expected a list of objects, got {reprlib.repr(entries)}")
    poses = _poses([entry.get("transform_matrix") for entry in entries], _LIST, ".transform_matrix")
    poses[:, :, 1:3] *= -1  # OpenGL's y up, z back -> y down, z forward
    found = []
    for i, entry in enumerate(entries):
        try:
            camera = frame_camera(entry, content, partial(_photo_size, path.parent, entry))
            _count({"w": camera.width}, "w", MAX_SIDE)
            _count({"h": camera.height}, "h", MAX_SIDE)
        except DataError as error:
            raise DataError(f"{_LIST}[{i}]: {error}") from error
        found.append(camera)
    cameras = tuple(dict.fromkeys(found))
    row_of = {camera: row for row, camera in enumerate(cameras)}
    camera = path_camera(PosedCameras(cameras, np.array([row_of[c] for c in found], np.int32), poses))
    if len(cameras) > 1:
        _log.warning(
            "path file %s: its %d frames have %d cameras; all are drawn with the most frequent one (%dx%d pixels)",
            path, len(found), len(cameras), camera.width, camera.height,
        )  # fmt: skip
    return PathFile(camera=camera, poses=poses, frames=None, loop=False, fps=_fps(content))


def _photo_size(folder: Path, entry: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of the photo that an entry names."""
    name = entry.get("file_path")
    if isinstance(name, str) and name_problem(name) is None:
        for extension in ("", *EXTENSIONS):
            if (photo := find_file(folder, name + extension)) is not None:
                return photo_size(photo)
    raise CameraError(
        f"expected w and h, or the photo to take them from, got neither (file_path {reprlib.repr(name)}); add w and h "
        "to the file"
    )


def _poses(values: Any, name: str, suffix: str = "") -> Float64:
    """float64[n, 3, 4] from a list of 3x4 or 4x4 matrices, nested or as 12 or 16 numbers row by row."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_FRAMES:
        got = f"{len(values)}" if isinstance(values, list) else reprlib.repr(values)
        raise DataError(f"{name}: expected a list of 1 to {MAX_FRAMES} poses, got {got}")
    poses = np.empty((len(values), 3, 4))
    for i, value in enumerate(values):
        rows = value if isinstance(value, list) else []
        flat = [number for row in rows for number in row] if all(isinstance(row, list) for row in rows) else rows
        if len(flat) not in (12, 16):
            raise DataError(f"{name}[{i}]{suffix}: expected a 3x4 or 4x4 matrix, got {reprlib.repr(value)}")
        numbers = [_number(number, f"{name}[{i}]{suffix}") for number in flat]
        if len(numbers) == 16 and numbers[12:] != [0.0, 0.0, 0.0, 1.0]:
            raise DataError(f"{name}[{i}]{suffix}: expected a last row of 0 0 0 1, got {numbers[12:]}")
        # 12 numbers -> three rows of rotation and position
        poses[i] = np.reshape(numbers[:12], (3, 4))
    rotation = poses[:, :, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        wrong = ~((off <= _ROTATION_TOLERANCE) & (np.linalg.det(rotation) > 0))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise DataError(
            f"{name}[{i}]{suffix}: expected a rotation (orthonormal, right-handed) and a position, got the columns "
            f"{np.round(rotation[i].T, 4).tolist()}; remove scale and reflection"
        )
    poses[:, :, :3] = nearest_rotations(rotation)
    return poses


def _fps(content: Mapping[str, Any]) -> float:
    fps = _number(content.get("fps", 30.0), "fps")
    if not 0.1 <= fps <= 1000:
        raise DataError(f"fps: expected 0.1 to 1000 frames per second, got {fps:g}")
    return fps


def _count(content: Mapping[str, Any], name: str, largest: int, prefix: str = "") -> int:
    value = content.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON writers of other languages have one kind of number
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise DataError(f"{prefix}{name}: expected a whole number from 1 to {largest}, got {reprlib.repr(value)}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    raise DataError(f"{name}: expected a finite number, got {reprlib.repr(value)}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is not a finite number")
