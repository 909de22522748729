"""render: pictures and films of a trained scene."""

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.process import peak_memory
from infnerf_tiles.rendering.appearance import appearance_of
from infnerf_tiles.rendering.camera_paths import DEFAULT_FPS, CameraPath, make_path
from infnerf_tiles.rendering.renderer import DeviceChoice, Renderer
from infnerf_tiles.rendering.scene import Scene, content_centre
from infnerf_tiles.rendering.sequence import DepthFormat, Extras, render_sequence
from infnerf_tiles.rendering.video import kind_of
from infnerf_tiles.settings import Settings

__all__ = ["RenderOptions", "RenderReport", "appearance_of", "content_centre", "render"]
Progress = Callable[[float, int], None]
"""(frames done, with the part of the one at work; frames in all)"""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What to draw and where to.

    output: .mp4 is a film; .png, .jpg or .jpeg one picture; without a suffix a folder of numbered PNGs. path:
    orbit, spiral, flythrough, interpolate, dataset, or a path file. frames: default: one for a picture, else what the
    path has. size: (width, height) in pixels, default: as the photos. fps: frames per second of a film,
    default: those of a path file, else 30.
    depth_format: "colours", or "npy" or "tiff" for float32 distances, one file a frame.
    photo: draw what the camera of this photo saw, distortion included, instead of a path. depth, alpha, levels: what is
    written beside the colours, each into an output of its own ("film_depth.mp4").
    appearance: "mean" (of the photos' colour transforms), "none", or the name of a photo. lod_bias: added to the wanted
    level. memory_budget: bytes for resident nodes, default: the scene's. threads: processor threads, default: all.
    device: where to draw, default: as the settings say.
    settings: used instead of the scene's own, of which they may differ in the section rendering.
    """

    output: Path
    path: str = "orbit"
    photo: str | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    depth: bool = False
    depth_format: DepthFormat = "colours"
    alpha: bool = False
    levels: bool = False
    appearance: str = "mean"
    lod_bias: float = 0.0
    memory_budget: int | None = None
    threads: int | None = None
    device: DeviceChoice | None = None
    settings: Settings | None = None


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    """What was drawn.

    frames_kept: of them, those that an earlier, interrupted call had left in the folder. outputs: files and folders
    written. Nodes and bases: `hits` were resident when they were needed, `misses` were not (of them `ready` were in
    memory, read ahead), `evictions` were dropped. frames_waited: frames but the first that waited for a row.
    bytes_read: of the rows that were read, decompressed; bytes_touched: of the distinct ones drawn with. memory_budget,
    node_peak: bytes allowed for nodes, and the most that they took.
    """

    frames: int
    frames_kept: int
    size: tuple[int, int]
    outputs: tuple[str, ...]
    samples: int
    hits: int
    misses: int
    ready: int
    hit_rate: float
    evictions: int
    frames_waited: int
    bytes_read: int
    bytes_touched: int
    memory_budget: int
    node_peak: int
    damaged_nodes: tuple[str, ...]
    seconds: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def render(scene: str, options: RenderOptions, progress: Progress | None = None) -> RenderReport:
    """Draw pictures of a scene (path or URL of a store).

    Raises SettingsError for options that make no sense, BudgetError for a budget that holds no chain of nodes, and what
    `Scene.open` raises.
    """
    started = time.monotonic()
    kind_of(options.output)  # a name that says nothing is told first
    with Scene.open(scene) as stored:
        opened = stored if options.settings is None else replace(stored, settings=options.settings)
        affine = appearance_of(opened, options.appearance)
        path = _path(opened, options)
        film = path.num_frames > 1
        with Renderer(
            opened, options.memory_budget, threads=options.threads, device=options.device, read_ahead=film
        ) as renderer:
            written = render_sequence(
                renderer,
                path,
                options.output,
                extras=Extras(
                    depth=options.depth,
                    alpha=options.alpha,
                    levels=options.levels,
                    depth_format=options.depth_format,
                ),
                lod_bias=options.lod_bias,
                affine=affine,
                progress=progress,
            )
            cache, budget = renderer.cache, renderer.memory_budget
            counters = cache.counters
    return RenderReport(
        frames=path.num_frames,
        frames_kept=written.frames_kept,
        size=(path.camera.width, path.camera.height),
        outputs=tuple(str(place) for place in written.outputs),
        samples=written.num_samples,
        hits=counters.hits,
        misses=counters.misses,
        ready=counters.ready,
        hit_rate=counters.hit_rate,
        evictions=counters.evictions,
        frames_waited=written.frames_waited,
        bytes_read=counters.bytes_read,
        bytes_touched=counters.touched_bytes,
        memory_budget=budget,
        node_peak=cache.peak_bytes,
        damaged_nodes=cache.damaged_nodes,
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory(),
    )


def _path(scene: Scene, options: RenderOptions) -> CameraPath:
    single = kind_of(options.output) == "picture"
    if single and options.frames not in (None, 1):
        raise SettingsError(
            f"{options.output}: expected one frame for a picture, got {options.frames}; "
            "name an .mp4 or a folder for many"
        )
    if options.photo is not None:
        return _photo_path(scene, options.photo, options)
    path = make_path(
        options.path,
        scene.cameras,
        content_centre(scene),
        frames=1 if single else options.frames,
        size=options.size,
        fps=options.fps or DEFAULT_FPS,
    )
    if options.fps is None:
        return path
    return replace(path, times=np.arange(path.num_frames) / options.fps)  # a path file has its own


def _photo_path(scene: Scene, name: str, options: RenderOptions) -> CameraPath:
    """The one frame that a photo's camera saw."""
    if name not in scene.names:
        near = difflib.get_close_matches(name, scene.names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f", such as {scene.names[0]}" if scene.names else ""
        raise SettingsError(f"photo: expected the name of one of the {len(scene.names)} photos, got {name!r}{hint}")
    if options.frames not in (None, 1):
        raise SettingsError(f"photo {name}: expected one frame, got {options.frames}; name a path for many")
    row = scene.names.index(name)
    path = CameraPath(
        camera=scene.cameras.camera(row), camera_to_world=scene.cameras.camera_to_world[row][None], times=np.zeros(1)
    )
    return path.resized(*options.size) if options.size else path
