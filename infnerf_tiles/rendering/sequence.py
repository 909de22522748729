"""Camera paths to files: frames in colour, and if wanted their depth, opacity and level beside them."""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from infnerf_tiles.arrays import Float32, Float64, UInt8
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.outputs import check_file
from infnerf_tiles.rendering.camera_paths import CameraPath
from infnerf_tiles.rendering.frame_folders import FrameFolders
from infnerf_tiles.rendering.renderer import Picture
from infnerf_tiles.rendering.video import (
    FrameWriter,
    depth_to_image,
    frame_name,
    kind_of,
    level_heat_map,
    to_uint8,
    write_floats,
)

DepthFormat = Literal["colours", "npy", "tiff"]
_SCALE_MARGIN = 1.5  # the depth scale of a film reaches that much beyond what its first frame shows
_log = logging.getLogger(__name__)

Progress = Callable[[float, int], None]
"""(frames done, with the part of the one at work; frames in all)"""


class PictureSource(Protocol):
    """What draws the frames; `Renderer` is one."""

    @property
    def deepest_level(self) -> int:
        """The finest level that a picture can show."""

    @property
    def waits(self) -> int:
        """How often a picture had to wait for something to be read, so far."""

    def identity(self) -> str | None:
        """What pictures depend on besides the arguments of `render`, in words; None: frames cannot be gone on with."""

    def render(
        self,
        camera: Camera,
        camera_to_world: Float64,
        *,
        lod_bias: float = 0.0,
        affine: Float32 | Float64 | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Picture:
        """One picture, as `Renderer.render` draws it."""

    def prefetch(self, camera: Camera, camera_to_world: Float64, *, lod_bias: float = 0.0) -> None:
        """Told of the frame at work and the one that comes next: float64[2, 3, 4]."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is written beside the colours; each into an output of its own.

    depth_format: "colours" for people; "npy" or "tiff" for programs, float32[h, w] in world units, inf where nothing
    is: one file a frame.
    """

    depth: bool = False
    alpha: bool = False
    levels: bool = False
    depth_format: DepthFormat = "colours"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those wanted."""
        return tuple(name for name in ("depth", "alpha", "levels") if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Written:
    """outputs: files and folders, the colours first. num_samples: samples shaded for all frames. frames_kept: frames
    that an earlier, interrupted call had finished. frames_waited: frames after the first one that had to wait for a row
    which reading ahead had not brought."""

    outputs: tuple[Path, ...]
    num_samples: int
    frames_kept: int = 0
    frames_waited: int = 0


def companion(output: Path, name: str, suffix: str | None = None) -> Path:
    """Where an extra goes: "film.mp4" and "depth" give "film_depth.mp4", a folder "frames" gives "frames_depth".

    suffix: instead of the output's."""
    if kind_of(output) == "folder":
        return output.with_name(f"{output.name}_{name}")
    return output.with_name(f"{output.stem}_{name}{output.suffix if suffix is None else suffix}")


def render_sequence(
    renderer: PictureSource,
    path: CameraPath,
    output: Path,
    *,
    extras: Extras = Extras(),
    lod_bias: float = 0.0,
    affine: Float32 | Float64 | None = None,
    progress: Progress | None = None,
) -> Written:
    """Draw every frame of a path and write it.

    `output`: as `video.kind_of` has it. Other arguments as in `Renderer.render`. Films are complete or not there at
    all; a folder keeps its frames when something fails, and the same call goes on after the last one. Another call's
    frames in it are deleted. SettingsError if a folder holds anything else.
    """
    kind = kind_of(output)
    identity = renderer.identity() or uuid.uuid4().hex  # then nothing is gone on with
    floats = _floats_place(output, extras.depth_format) if extras.depth and extras.depth_format != "colours" else None
    images = {name: companion(output, name) for name in extras.names if name != "depth" or floats is None}
    folders = [output, *images.values()] if kind == "folder" else []
    if floats is not None and kind != "picture":
        folders.append(floats)
    elif floats is not None:
        check_file(floats)
    noted = None
    first, depth_range = 0, None
    if folders:
        fingerprint = _fingerprint(identity, path, str(extras), lod_bias, affine)
        noted = FrameFolders(folders, fingerprint, path.num_frames)
        if kind == "folder":  # a film is drawn as a whole, and its depth with it
            first, depth_range = noted.frames_done()
        noted.begin(first, depth_range)
    if first:
        _log.info("%s: frames 0 to %d are there already", output, first - 1)
    outputs: list[Path] = []
    to_images = _Images(renderer.deepest_level, depth_range)
    num_samples = frames_waited = 0
    with ExitStack() as stack:

        def frames_to(place: Path) -> Callable[[int, UInt8], None]:
            outputs.append(place)
            writer = stack.enter_context(FrameWriter(place, fps=path.fps, first=first, kind=kind))
            return lambda _, image: writer.write(image)

        write = frames_to(output)
        sinks = {name: frames_to(place) for name, place in images.items()}
        if floats is not None:
            outputs.append(floats)
        for frame in range(first, path.num_frames):
            pose = path.camera_to_world[frame]
            tell = None if progress is None else partial(_tell, progress, frame, path.num_frames)
            if frame + 1 < path.num_frames:
                # this frame's too: what was read ahead for it has not been taken yet
                renderer.prefetch(path.camera, path.camera_to_world[frame : frame + 2], lod_bias=lod_bias)
            waits = renderer.waits
            picture = renderer.render(path.camera, pose, lod_bias=lod_bias, affine=affine, progress=tell)
            frames_waited += frame > first and renderer.waits > waits
            for name, sink in sinks.items():
                sink(frame, to_images(name, picture))
            if floats is not None:
                name = frame_name(frame, f".{extras.depth_format}")
                write_floats(floats if kind == "picture" else floats / name, picture.depth)
            write(frame, to_images("rgb", picture))
            if noted is not None:
                noted.note(frame + 1, to_images.depth_range)
            num_samples += picture.num_samples
    return Written(outputs=tuple(outputs), num_samples=num_samples, frames_kept=first, frames_waited=frames_waited)


def _floats_place(output: Path, kind: DepthFormat) -> Path:
    """A file for one picture, a folder for many."""
    return companion(output, "depth", f".{kind}" if kind_of(output) == "picture" else "")


def _tell(progress: Progress, before: int, total: int, share: float) -> None:
    progress(before + share, total)


def _fingerprint(
    identity: str, path: CameraPath, extras: str, lod_bias: float, affine: Float32 | Float64 | None
) -> str:
    """What has to be the same for frames to belong to one sequence."""
    digest = hashlib.sha256(json.dumps([identity, str(path.camera), extras, lod_bias]).encode())
    digest.update(np.ascontiguousarray(path.camera_to_world, np.float64).tobytes())
    digest.update(b"" if affine is None else np.asarray(affine, np.float64).tobytes())
    return digest.hexdigest()


class _Images:
    """Turns pictures into frames; scales stay those of the first frame, so that films do not flicker."""

    def __init__(self, deepest: int, depth_range: tuple[float, float] | None) -> None:
        self._deepest = deepest
        self.depth_range = depth_range

    def __call__(self, name: str, picture: Picture) -> UInt8:
        """uint8[h, w, 3] of "rgb", "depth", "alpha" or "levels"."""
        if name == "rgb":
            return to_uint8(picture.rgb)
        if name == "alpha":
            opacity = to_uint8(1.0 - picture.transmittance)
            return np.repeat(opacity[:, :, None], 3, axis=2)
        if name == "levels":
            return level_heat_map(picture.level, self._deepest)
        seen = np.isfinite(picture.depth)
        if self.depth_range is None and seen.any():
            near, far = np.percentile(picture.depth[seen], (1, 99)).tolist()
            self.depth_range = near / _SCALE_MARGIN, far * _SCALE_MARGIN
        return depth_to_image(picture.depth, *(self.depth_range or (None, None)))
