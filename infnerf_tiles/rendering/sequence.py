"""Camera paths to files: frames in colour, and if wanted their depth, opacity and level beside them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from infnerf_tiles.arrays import Float32, Float64, UInt8
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.camera_paths import CameraPath
from infnerf_tiles.rendering.renderer import Picture
from infnerf_tiles.rendering.video import FrameWriter, depth_to_image, level_heat_map, to_uint8

_SCALE_MARGIN = 1.5  # the depth scale of a film reaches that much beyond what its first frame shows

Progress = Callable[[float, int], None]
"""(frames done, with the part of the one at work; frames in all)"""


class PictureSource(Protocol):
    """What draws the frames; `Renderer` is one."""

    @property
    def deepest_level(self) -> int:
        """The finest level that a picture can show."""

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
    """What is written beside the colours; each into an output of its own."""

    depth: bool = False
    alpha: bool = False
    levels: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those wanted."""
        return tuple(name for name in ("depth", "alpha", "levels") if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Written:
    """outputs: files and folders, the colours first. num_samples: samples shaded for all frames."""

    outputs: tuple[Path, ...]
    num_samples: int


def companion(output: Path, name: str) -> Path:
    """Where an extra goes: "film.mp4" and "depth" give "film_depth.mp4", a folder "frames" gives "frames_depth"."""
    return output.with_name(f"{output.stem}_{name}{output.suffix}")


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
    `Renderer.render`. Films are complete or not there at all; frames in a folder stay when something fails later.
    """
    names = () if extras is None else extras.names
    outputs = (output, *(companion(output, name) for name in names))
    to_images = _Images(deepest=renderer.deepest_level)
    num_samples = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(FrameWriter(place, fps=path.fps)) for place in outputs]
        for frame, pose in enumerate(path.camera_to_world):
            tell = None if progress is None else partial(_tell, progress, frame, path.num_frames)
            if frame + 1 < path.num_frames:
                renderer.prefetch(path.camera, path.camera_to_world[frame + 1], lod_bias=lod_bias)
            picture = renderer.render(path.camera, pose, lod_bias=lod_bias, affine=affine, progress=tell)
            for writer, name in zip(writers, ("rgb", *names), strict=True):
                writer.write(to_images(name, picture))
            num_samples += picture.num_samples
    return Written(outputs=outputs, num_samples=num_samples)


def _tell(progress: Progress, before: int, total: int, share: float) -> None:
    progress(before + share, total)


class _Images:
    """Turns pictures into frames; scales stay those of the first frame, so that films do not flicker."""

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._depth_range: tuple[float, float] | None = None

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
        if self._depth_range is None and seen.any():
            near, far = np.percentile(picture.depth[seen], (1, 99)).tolist()
            self._depth_range = near / _SCALE_MARGIN, far * _SCALE_MARGIN
        return depth_to_image(picture.depth, *(self._depth_range or (None, None)))
