"""Camera paths: which pictures of a scene to draw, one after the other.

A path is one camera and a pose per frame. Circles and spirals are given in a frame whose vertical is `up`: `height` is
measured along it from the centre, and the camera always looks with a level horizon.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Float64, check_shape
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import look_at as look_at_poses
from infnerf_tiles.rendering.path_files import MAX_FRAMES, format_path_file, parse_path_file
from infnerf_tiles.rendering.pose_spline import follow_keys
from infnerf_tiles.rendering.vantage import focus_point, path_camera, pinhole, world_up

PATH_KINDS = ("orbit", "spiral", "flythrough", "interpolate", "dataset")
"""Paths that `make_path` makes from the photos' poses alone."""
DEFAULT_FPS = 30.0
_Z_UP = np.array([0.0, 0.0, 1.0])
_FRAMES_PER_KEY = 15  # half a second from photo to photo: faster than that is a slide show
_LOOKS_DOWN = -0.3  # mean of view direction times up, below which photos are taken from above: 17 degrees down
_OPEN_SIDE = np.pi / 2  # a gap between the photos' directions from which a circle would show what none has seen
_LEAST_SWING = np.pi / 12  # to each side: a film moves, even before a single photo
_NUM_STATIONS = 8  # places that a flight through photos taken on foot passes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPath:
    """n frames to draw.

    camera: the intrinsics of every frame. camera_to_world: float64[n, 3, 4], OpenCV axes, world. times: float64[n],
    seconds from the start of the film. ValueError for wrong shapes, no frame or more than MAX_FRAMES.
    """

    camera: Camera
    camera_to_world: Float64
    times: Float64

    def __post_init__(self) -> None:
        _check_frames(len(self.camera_to_world))
        check_shape("camera_to_world", self.camera_to_world, (None, 3, 4))
        check_shape("times", self.times, (len(self.camera_to_world),))

    @property
    def num_frames(self) -> int:
        """Number of frames n."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Frames per second of the film; the default where there is only one frame."""
        duration = float(self.times[-1] - self.times[0])
        return (self.num_frames - 1) / duration if duration > 0 else DEFAULT_FPS

    def resized(self, width: int, height: int) -> "CameraPath":
        """The same film in another picture size (pixels), showing the part of the view that fills the new shape."""
        return replace(self, camera=pinhole(self.camera, (width, height)))


def orbit(
    camera: Camera,
    *,
    centre: Float64,
    radius: float,
    height: float,
    frames: int,
    look_at: Float64 | None = None,
    up: Float64 = _Z_UP,
    turns: float = 1.0,
    arc: tuple[float, float] | None = None,
    fps: float = DEFAULT_FPS,
) -> CameraPath:
    """A level circle of `radius` around the vertical through `centre`, `height` above it, looking at `look_at`.

    centre, look_at (default: the centre) and up: float64[3]; radius and height: world units. arc: (from, to), radians
    from x towards y where up is z; the camera swings there and back, in place of circling. The frame after the last
    would be the first, so that a repeated film does not stutter.
    """
    angles = _angles(turns * np.linspace(0.0, 1.0, max(frames, 1), endpoint=False), arc)
    return _turn(camera, centre, look_at, up, angles, fps, np.full(frames, radius), np.full(frames, height))


def spiral(
    camera: Camera,
    *,
    centre: Float64,
    radius: float,
    height: float,
    frames: int,
    look_at: Float64 | None = None,
    up: Float64 = _Z_UP,
    turns: float = 2.0,
    arc: tuple[float, float] | None = None,
    zoom: float = 4.0,
    fps: float = DEFAULT_FPS,
) -> CameraPath:
    """An orbit that comes closer: `radius` and `height` shrink to 1 / `zoom` of themselves, by the same factor a frame.

    The pixel footprint shrinks evenly in octaves with them, so the film walks through the levels of detail.
    """
    if not zoom > 0:
        raise ValueError(f"spiral: expected a zoom above 0, got {zoom}")
    along = np.linspace(0.0, 1.0, frames)
    scale, angles = zoom**-along, _angles(turns * along, arc)
    return _turn(camera, centre, look_at, up, angles, fps, radius * scale, height * scale)


def flythrough(
    camera: Camera, key_poses: Float64, *, frames: int, loop: bool = False, fps: float = DEFAULT_FPS
) -> CameraPath:
    """A smooth flight at constant speed through `key_poses` (float64[k, 3, 4], camera-to-world, k >= 1).

    With `loop` it returns to the first of them.
    """
    _check_frames(frames)
    if len(key_poses) == 0:
        raise ValueError("flythrough: expected at least one key pose, got none")
    return _path(camera, follow_keys(np.asarray(key_poses, dtype=np.float64), frames, loop=loop), fps)


def interpolate(
    camera: Camera, poses: Float64, *, frames: int, num_keys: int | None = None, fps: float = DEFAULT_FPS
) -> CameraPath:
    """A flight from photo to photo in their order, through `num_keys` of them, evenly chosen.

    `poses`: float64[k, 3, 4], camera-to-world. Default: as many photos as the film has time for.
    """
    _check_frames(frames)
    num_keys = min(len(poses), num_keys or max(2, frames // _FRAMES_PER_KEY))
    chosen = np.linspace(0, len(poses) - 1, num_keys).round().astype(np.int64)
    return flythrough(camera, poses[chosen], frames=frames, fps=fps)


def dataset(
    cameras: PosedCameras, *, frames: int = MAX_FRAMES, size: tuple[int, int] | None = None, fps: float = DEFAULT_FPS
) -> CameraPath:
    """The poses of the first `frames` photos in their order, all seen with the camera that took most of them."""
    _check_frames(frames)
    return _path(path_camera(cameras, size), cameras.camera_to_world[:frames], fps)


def default_orbit(
    cameras: PosedCameras,
    points_centre: Float64 | None = None,
    *,
    frames: int = 120,
    size: tuple[int, int] | None = None,
    fps: float = DEFAULT_FPS,
) -> CameraPath:
    """An orbit as far from the scene and as high above it as the photos were taken; where they were taken from one side
    alone, it swings before that side.

    `points_centre`: float64[3], the middle of the scene's content; not given: where the photos look.
    """
    centre, up, radius, height = _surroundings(cameras, points_centre)
    return orbit(
        path_camera(cameras, size), centre=centre, radius=radius, height=height, frames=frames, up=up, fps=fps,
        arc=_photographed_arc(cameras, centre, up, radius),
    )  # fmt: skip


def make_path(
    kind: str,
    cameras: PosedCameras,
    points_centre: Float64 | None = None,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float = DEFAULT_FPS,
) -> CameraPath:
    """The path that a user names: one of PATH_KINDS, made from the photos' poses, or a path file.

    `frames`: default 120; a data set and a file of frames have their own number, of which the first `frames` are kept.
    `size`: (width, height) in pixels. Raises SettingsError for an unknown name, DatasetError where there are no photos.
    """
    if frames is not None and not 1 <= frames <= MAX_FRAMES:
        raise SettingsError(f"camera path: expected 1 to {MAX_FRAMES} frames, got {frames}")
    if kind not in PATH_KINDS:
        if "." not in kind and "/" not in kind and not Path(kind).exists():
            raise SettingsError(f"camera path: expected {', '.join(PATH_KINDS)} or a path file, got {kind!r}")
        path = read_path_file(Path(kind), frames=frames)
        return path.resized(*size) if size else path
    if cameras.num_photos == 0:
        raise DatasetError(f"camera path {kind}: expected a scene with photos' poses, got none; give a path file")
    if kind == "dataset":
        return dataset(cameras, frames=frames or MAX_FRAMES, size=size, fps=fps)
    frames = frames or 120
    camera = path_camera(cameras, size)
    if kind == "interpolate":
        return interpolate(camera, cameras.camera_to_world, frames=frames, fps=fps)
    if kind == "orbit":
        return default_orbit(cameras, points_centre, frames=frames, size=size, fps=fps)
    centre, up, radius, height = _surroundings(cameras, points_centre)
    if kind == "spiral":
        return spiral(
            camera, centre=centre, radius=2 * radius, height=2 * height, frames=frames, up=up, fps=fps,
            arc=_photographed_arc(cameras, centre, up, radius),
        )  # fmt: skip
    if cameras.forwards.mean(axis=0) @ up > _LOOKS_DOWN:
        # Off the ground there may be walls between any two places but those that somebody walked.
        return interpolate(camera, cameras.camera_to_world, frames=frames, num_keys=_NUM_STATIONS, fps=fps)
    keys = _overview_keys(centre, up, radius, height)
    return flythrough(camera, keys, frames=frames, loop=True, fps=fps)


def read_path_file(path: Path, *, frames: int | None = None) -> CameraPath:
    """The path in a JSON file of any form that is known (see `path_files`).

    `frames`: of a file with one pose a frame only the first so many, of a file with key poses so many instead of the
    file's own number. Raises SettingsError if there is no such file, DataError if it holds no valid path.
    """
    file = parse_path_file(path)
    if file.frames is not None:
        return flythrough(file.camera, file.poses, frames=frames or file.frames, loop=file.loop, fps=file.fps)
    if frames is not None and frames > len(file.poses):
        log.warning("path file %s has %d frames, not the %d asked for: drawing those", path, len(file.poses), frames)
    return _path(file.camera, file.poses[:frames], file.fps)


def write_path_file(path: Path, camera_path: CameraPath) -> None:
    """Write a path in our own form; `read_path_file` gives it back."""
    text = format_path_file(camera_path.camera, camera_path.camera_to_world, camera_path.fps)
    path.write_text(text, encoding="utf-8")


def _angles(turns: Float64, arc: tuple[float, float] | None) -> Float64:
    """float64[n], radians, of places that are float64[n] `turns` from the start: around, or along an arc and back."""
    around: Float64 = 2 * np.pi * turns
    return around if arc is None else (arc[0] + arc[1]) / 2 + (arc[1] - arc[0]) / 2 * np.sin(around)


def _turn(
    camera: Camera,
    centre: Float64,
    look_at: Float64 | None,
    up: Float64,
    angles: Float64,
    fps: float,
    radii: Float64,
    heights: Float64,
) -> CameraPath:
    """Frames around a vertical axis; angles: float64[n], radians; radii and heights: float64[n], world units."""
    _check_frames(len(radii))
    check_shape("centre", np.asarray(centre), (3,))
    east, north, vertical = _horizon(np.asarray(up, dtype=np.float64))
    level = np.cos(angles)[:, None] * east + np.sin(angles)[:, None] * north
    offset = radii[:, None] * level + heights[:, None] * vertical
    target = np.broadcast_to(centre if look_at is None else look_at, offset.shape)
    return _path(camera, look_at_poses(centre + offset, target, vertical), fps)


def _horizon(up: Float64) -> tuple[Float64, Float64, Float64]:
    """Right-handed unit axes (two level ones, up); the x and y axes where up is z."""
    vertical = up / np.linalg.norm(up)
    # x unless it is nearly vertical itself.
    start = np.eye(3)[0 if abs(vertical[0]) < 0.9 else 1]
    east = start - (start @ vertical) * vertical
    east /= np.linalg.norm(east)
    return east, np.cross(vertical, east), vertical


def _surroundings(cameras: PosedCameras, points_centre: Float64 | None) -> tuple[Float64, Float64, float, float]:
    """(centre, up, radius, height) of an orbit at the photos' typical place: medians, since some stand far away."""
    up = world_up(cameras)
    centre = focus_point(cameras) if points_centre is None else np.asarray(points_centre, dtype=np.float64)
    offset = cameras.centres - centre
    heights = offset @ up
    height = float(np.median(heights))
    radius = float(np.median(np.linalg.norm(offset - heights[:, None] * up, axis=1)))
    # Photos straight from above have almost no radius of their own; an orbit at 30 degrees off the vertical shows more.
    radius = max(radius, 0.58 * abs(height))
    return centre, up, radius if radius > 0 else 1.0, height


def _photographed_arc(
    cameras: PosedCameras, centre: Float64, up: Float64, radius: float
) -> tuple[float, float] | None:
    """Directions (from, to), radians as in `orbit`, in which photos were taken; None where they are all around."""
    east, north, _ = _horizon(up)
    offset = cameras.centres - centre
    x, y = offset @ east, offset @ north
    beside = np.hypot(x, y) > 0.25 * radius  # what was taken from above the middle is on no side
    if not beside.any():
        return None
    angles = np.sort(np.arctan2(y[beside], x[beside]))
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    if gaps[widest] < _OPEN_SIDE or beside.sum() < 0.5 * len(beside):
        return None
    reach = (2 * np.pi - float(gaps[widest])) / 2
    middle = float(angles[(widest + 1) % len(angles)]) + reach
    reach = max(reach, _LEAST_SWING)
    return middle - reach, middle + reach


def _overview_keys(centre: Float64, up: Float64, radius: float, height: float) -> Float64:
    """Key poses of a closed flight: far and high, down and in, past the centre, and out again."""
    east, north, vertical = _horizon(up)
    stations = (
        (2.0, 0.0, 2.0),
        (0.9, 1.0, 0.9),
        (0.0, 1.1, 0.6),
        (-0.8, 0.2, 0.7),
        (-0.2, -1.1, 1.0),
        (1.2, -1.2, 1.6),
    )
    eyes = np.array([centre + radius * (e * east + n * north) + height * u * vertical for e, n, u in stations])
    return look_at_poses(eyes, np.broadcast_to(centre, eyes.shape), vertical)


def _path(camera: Camera, poses: Float64, fps: float) -> CameraPath:
    return CameraPath(camera=camera, camera_to_world=poses, times=np.arange(len(poses)) / fps)


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"camera path: expected 1 to {MAX_FRAMES} frames, got {frames}")
