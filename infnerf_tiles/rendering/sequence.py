"""Camera paths to files: frames in colour, and if wanted their depth, opacity and level beside them."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from infnerf_tiles.arrays import Float32, Float64, UInt8
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.camera_paths import CameraPath
from infnerf_tiles.rendering.renderer import Picture
from infnerf_tiles.rendering.video import (
    PARTIAL_SUFFIX,
    FrameWriter,
    depth_to_image,
    frame_name,
    level_heat_map,
    to_uint8,
    write_floats,
)

DepthFormat = Literal["colours", "npy", "tiff"]
_RECORD = "sequence.json"
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
        """Told of the frame that comes next."""


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

    `output`: .mp4 is a film, .png one picture, anything else a folder of numbered PNGs. Other arguments as in
    `Renderer.render`. Films are complete or not there at all; a folder keeps its frames when something fails, and the
    same call goes on after the last one.
    """
    identity = renderer.identity()
    record = None
    if identity is not None and output.suffix.lower() not in (".mp4", ".png"):
        record = _Record(output, _fingerprint(identity, path, str(extras), lod_bias, affine))
    first, depth_range = (0, None) if record is None else record.read(path.num_frames)
    if record is not None and not first:
        record.forget()
    if first:
        _log.info("%s: frames 0 to %d are there already", output, first - 1)
    outputs: list[Path] = []
    to_images = _Images(renderer.deepest_level, depth_range)
    num_samples = frames_waited = 0
    with ExitStack() as stack:

        def frames_to(place: Path) -> Callable[[int, UInt8], None]:
            outputs.append(place)
            writer = stack.enter_context(FrameWriter(place, fps=path.fps, first=first))
            return lambda _, image: writer.write(image)

        write = frames_to(output)
        sinks = {name: frames_to(companion(output, name)) for name in extras.names if not _floats(extras, name)}
        if extras.depth and _floats(extras, "depth"):
            outputs.append(_floats_place(output, extras.depth_format))
        for frame in range(first, path.num_frames):
            pose = path.camera_to_world[frame]
            tell = None if progress is None else partial(_tell, progress, frame, path.num_frames)
            if frame + 1 < path.num_frames:
                renderer.prefetch(path.camera, path.camera_to_world[frame + 1], lod_bias=lod_bias)
            waits = renderer.waits
            picture = renderer.render(path.camera, pose, lod_bias=lod_bias, affine=affine, progress=tell)
            frames_waited += frame > first and renderer.waits > waits
            for name, sink in sinks.items():
                sink(frame, to_images(name, picture))
            if extras.depth and _floats(extras, "depth"):
                place = _floats_place(output, extras.depth_format)
                single = output.suffix.lower() == ".png"
                write_floats(place if single else place / frame_name(frame, f".{extras.depth_format}"), picture.depth)
            write(frame, to_images("rgb", picture))
            if record is not None:
                record.write(frame + 1, to_images.depth_range)
            num_samples += picture.num_samples
    return Written(outputs=tuple(outputs), num_samples=num_samples, frames_kept=first, frames_waited=frames_waited)


def _floats(extras: Extras, name: str) -> bool:
    return name == "depth" and extras.depth_format != "colours"


def _floats_place(output: Path, kind: DepthFormat) -> Path:
    """A file for one picture, a folder for many."""
    return companion(output, "depth", f".{kind}" if output.suffix.lower() == ".png" else "")


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


class _Record:
    """How far a folder of frames is, and of what, in a file beside them."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def read(self, num_frames: int) -> tuple[int, tuple[float, float] | None]:
        """(frames that are there, the depth scale that they were made with)."""
        try:
            content = json.loads((self._folder / _RECORD).read_text("utf-8"))
            if content["fingerprint"] != self._fingerprint:
                return 0, None
            done = min(int(content["frames"]), num_frames)
            while done and not (self._folder / frame_name(done - 1, ".png")).is_file():
                done -= 1
            scale = content["depth_range"]
            return done, None if scale is None else (float(scale[0]), float(scale[1]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return 0, None

    def forget(self) -> None:
        """Drop the record of another sequence, whose frames are about to be replaced."""
        (self._folder / _RECORD).unlink(missing_ok=True)

    def write(self, frames: int, depth_range: tuple[float, float] | None) -> None:
        content = {"fingerprint": self._fingerprint, "frames": frames, "depth_range": depth_range}
        partial_file = self._folder / f".{_RECORD}{PARTIAL_SUFFIX}"
        partial_file.write_text(json.dumps(content), "utf-8")
        partial_file.replace(self._folder / _RECORD)


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
