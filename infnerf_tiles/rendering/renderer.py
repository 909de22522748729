"""Pictures of a scene, drawn from the nodes that each part of the picture needs, within a byte budget."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch

from infnerf_tiles.arrays import Float32, Float64, Int64, check_shape
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.process import hold_freed_memory
from infnerf_tiles.rendering.accounts import row_costs, smallest_working_set
from infnerf_tiles.rendering.arena_memory import in_half
from infnerf_tiles.rendering.device_block import DeviceBlock, Painter
from infnerf_tiles.rendering.front import carry
from infnerf_tiles.rendering.node_cache import LOCAL_THREADS, REMOTE_THREADS, NodeCache
from infnerf_tiles.rendering.pixel_block import HostBlock, Part, Sight
from infnerf_tiles.rendering.ray_state import ROUND_SAMPLES
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.selection import select_nodes
from infnerf_tiles.rendering.waiting import Aborted
from infnerf_tiles.units import format_bytes

DeviceChoice = Literal["auto", "cpu", "cuda"]

_HOST_BLOCK, _DEVICE_BLOCK = 512, 2048
"""Pixels; the edge of the part of a picture that is in work at a time."""
_SMALL = 32  # pixels; parts this small share their nodes, so that cutting the distance helps more than halving them
_EAGER_NODES = 64  # more nodes than this are not read before it is known that nothing in front of them hides them
_FINEST_CUT = 16  # lattice steps; cutting the distance finer than that finds nothing hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What one camera sees.

    rgb: float32[h, w, 3], sRGB, with background; not clipped. transmittance: float32[h, w]. depth: float32[h, w], mean
    distance along the ray to what is drawn, world units; inf where nothing is. level: float32[h, w], level of the nodes
    drawn, fractional where two are blended; NaN where nothing is. num_samples: samples shaded.
    """

    rgb: Float32
    transmittance: Float32
    depth: Float32
    level: Float32
    num_samples: int


class Renderer:
    """Draws pictures of one scene; keeps what it has loaded for the next one.

    On one device the picture is the same to the last bit whatever the budget, the threads that read, and what was drawn
    before; a GPU's differs a little, since its decoder multiplies in float16. Several threads may share a renderer;
    they take turns.
    """

    def __init__(
        self,
        scene: Scene,
        memory_budget: int | None = None,
        *,
        device: DeviceChoice | None = None,
        threads: int | None = None,
        read_ahead: bool = False,
        block: int | None = None,
        host_block: int | None = None,
        round_samples: int = ROUND_SAMPLES,
        eager_nodes: int = _EAGER_NODES,
    ) -> None:
        """`memory_budget`: bytes for nodes, resident or on their way, default: the scene's setting. `device`: where to
        draw, default: the scene's setting, which is a GPU where there is one. `threads`: of the processor, default:
        all. `read_ahead`: keep an eighth of the budget for `prefetch`. `block`: pixels along an edge of what is in work
        at a time; `host_block`: the same, on the CPU only; `round_samples`: samples in work there; `eager_nodes`: nodes
        read before it is known whether anything hides them; none of them changes the picture.

        BudgetError if the budget cannot hold what a single sample may need, or the device cannot hold the budget;
        SettingsError if the device is not there.
        """
        self.scene = scene
        self.memory_budget = scene.settings.rendering.memory_budget_bytes if memory_budget is None else memory_budget
        self.device = chosen_device(scene.settings.rendering.device if device is None else device)
        self._threads = threads
        self._half = in_half(self.device)
        self._block = block or (_DEVICE_BLOCK if self._half else host_block or _HOST_BLOCK)
        self._round_samples = round_samples
        self._eager_bytes = row_costs(scene.shape, half=self._half).node * eager_nodes
        self._lock = threading.Lock()
        self.cache = self._new_cache(read_ahead)
        self._painter = Painter(scene, self.device) if self._half else None
        if self._half:
            # the next picture's arrays come from what this one's leave, and need no new pages
            hold_freed_memory()

    @property
    def deepest_level(self) -> int:
        """The finest level that a picture can show."""
        return self.scene.octree.depth

    @property
    def waits(self) -> int:
        """How often a picture had to wait for a row to be read, so far."""
        return self.cache.counters.waits

    def identity(self) -> str:
        """Which scene, at which state, with which settings, on what kind of device."""
        scene, kind = self.scene, self.device.type
        drawing = scene.settings.rendering.model_dump(mode="json", exclude={"memory_budget", "device"})
        return json.dumps([scene.header.created, scene.store.generation, drawing, scene.lattice().lod_bias, kind])

    def render(
        self,
        camera: Camera,
        camera_to_world: Float64,
        *,
        lod_bias: float = 0.0,
        affine: Float32 | Float64 | None = None,
        progress: Callable[[float], None] | None = None,
        abort: Callable[[], bool] | None = None,
    ) -> Picture:
        """Draw what a camera sees.

        Args:
            camera: size and intrinsics; CameraError where its distortion gives a pixel no ray.
            camera_to_world: float64[3, 4], OpenCV axes, world.
            lod_bias: added to the wanted level, in levels.
            affine: float[3, 4], colour transform of a photo; None for none.
            progress: called with the share of the pixels that are done, up to 1.
            abort: asked now and then, from this thread; once it is true, Aborted is raised.
        """
        check_shape("camera_to_world", camera_to_world, (3, 4))
        picture = Picture(
            rgb=np.empty((camera.height, camera.width, 3), np.float32),
            transmittance=np.empty((camera.height, camera.width), np.float32),
            depth=np.empty((camera.height, camera.width), np.float32),
            level=np.empty((camera.height, camera.width), np.float32),
            num_samples=0,
        )
        num_samples = num_pixels = 0
        sight = self._sight(camera, camera_to_world, lod_bias, abort)
        self.cache.begin_picture()
        for window in self._windows(camera):
            with self._lock:  # block by block, so that others get their turn
                set_threads(self._threads)
                block = self._new_block(sight, window)
                if isinstance(block, HostBlock):
                    eye = sight.root.to_unit(sight.pose[:, 3])
                    carry(block, self.cache, eye, self._eager_bytes, abort)
                else:
                    self._draw(block, None, 0, None)
                self._finish(block, affine, picture)
            num_samples += block.num_samples
            num_pixels += window.width * window.height
            if progress is not None:
                progress(num_pixels / picture.depth.size)
        return Picture(
            rgb=picture.rgb,
            transmittance=picture.transmittance,
            depth=picture.depth,
            level=picture.level,
            num_samples=num_samples,
        )

    def prefetch(self, camera: Camera, camera_to_world: Float64, *, lod_bias: float = 0.0) -> None:
        """Begin to read what coming pictures will need; arguments as in `render`. Returns at once.

        camera_to_world: float64[3, 4], or float64[k, 3, 4] for several pictures, the next one first. What was read
        ahead for other pictures is dropped. Does nothing unless the renderer was made to read ahead.
        """
        if not self.cache.prefetch_bytes:
            return
        wanted = []
        for pose in np.asarray(camera_to_world, np.float64).reshape(-1, 3, 4):
            sight = self._sight(camera, pose, lod_bias, None)
            keys = []
            for window in self._windows(camera):
                block = self._new_block(sight, window)
                keys.append(self._select(block, block.rows(None), 0, None))
            wanted.append(np.unique(np.concatenate(keys)))
        self.cache.prefetch(*wanted)

    def close(self) -> None:
        """Let the cache go; the scene stays open."""
        self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _new_cache(self, read_ahead: bool) -> NodeCache:
        """The cache within the budget: reads under way and what is read ahead have their shares of it."""
        scene, costs = self.scene, row_costs(self.scene.shape, half=self._half)
        smallest = smallest_working_set(scene.index, scene.shape, scene.octree, half=self._half)
        if self.memory_budget < smallest:
            raise BudgetError(
                f"memory budget: expected at least {format_bytes(smallest)} ({smallest} bytes), which one chain of "
                f"nodes with its bases takes in this scene, got {format_bytes(self.memory_budget)}"
            )
        spare = self.memory_budget - smallest
        ahead = min(self.memory_budget // 8, spare) if read_ahead else 0
        most = REMOTE_THREADS if scene.store.data.is_remote else LOCAL_THREADS
        threads = min(most, 1 + (spare - ahead) // 8 // costs.read)
        budget = self.memory_budget - ahead - threads * costs.read
        return NodeCache(
            scene.store, scene.index, scene.shape, budget,
            threads=threads, prefetch_bytes=ahead, drawable=scene.octree, device=self.device,
        )  # fmt: skip

    def _sight(
        self, camera: Camera, camera_to_world: Float64, lod_bias: float, abort: Callable[[], bool] | None
    ) -> Sight:
        return Sight(
            camera=camera,
            pose=np.asarray(camera_to_world, np.float64),
            lattice=self.scene.lattice(lod_bias),
            root=self.scene.header.root,
            stop=self.scene.settings.rendering.stop_transmittance,
            abort=abort,
        )

    def _windows(self, camera: Camera) -> Iterator[Part]:
        """The blocks of a picture, row by row."""
        for y0 in range(0, camera.height, self._block):
            for x0 in range(0, camera.width, self._block):
                yield Part(x0, y0, min(x0 + self._block, camera.width), min(y0 + self._block, camera.height))

    def _new_block(self, sight: Sight, window: Part) -> HostBlock | DeviceBlock:
        if self._painter is None:
            return HostBlock(sight, window, self.scene, self._round_samples)
        return DeviceBlock(sight, window, self._painter)

    def _draw(self, block: DeviceBlock, part: Part | None, first: int, end: int | None) -> None:
        """Carry the rays of a part (None: of the whole block), which stand at lattice step `first`, to `end` (None: to
        their end), on a device, where they cannot be looked at one by one.

        What needs more nodes than the budget holds is halved: in the picture while it is large, then in distance, and
        at last in the picture down to one pixel. What fits but would read many nodes is halved in distance, so that
        what turns out to be hidden is not read.
        """
        sight = block.sight
        if sight.abort is not None and sight.abort():
            raise Aborted
        rows: Any = block.rows(part)
        if not len(rows):
            return
        keys = self._select(block, rows, first, end)
        last = sight.last_step() if end is None else end
        middle = (first + last) // 2
        wanted = self.cache.octree.index_of(keys)
        if self.cache.bytes_of(wanted) <= self.cache.byte_budget:
            if last - first > _FINEST_CUT and self.cache.missing_bytes(wanted) > self._eager_bytes:
                self._draw(block, part, first, middle)
                self._draw(block, part, middle, end)
            else:
                block.march(rows, self.cache.ensure(keys, sight.abort), end)
            return
        part = part or Part(0, 0, block.window.width, block.window.height)
        if part.edge > _SMALL:
            for half in part.halves():
                self._draw(block, half, first, end)
            return
        if last - first > 1:
            self._draw(block, part, first, middle)
            self._draw(block, part, middle, end)
        elif part.edge > 1:
            for half in part.halves():
                self._draw(block, half, first, end)
        else:
            raise BudgetError(
                f"memory budget: expected at least {format_bytes(self.cache.bytes_of(wanted))} for one sample on the "
                f"faces of {len(keys)} nodes, got {format_bytes(self.memory_budget)}; give a little more"
            )

    def _select(self, block: HostBlock | DeviceBlock, rows: Any, first: int, end: int | None) -> Int64:
        sight = block.sight
        nearest = sight.distance(first)
        farthest = math.inf if end is None else sight.distance(end - 1)
        return select_nodes(
            self.scene.octree, sight.root, block.bundle(rows), sight.lattice, nearest=nearest, farthest=farthest
        )

    def _finish(
        self, block: HostBlock | DeviceBlock, affine: Float32 | Float64 | None, picture: Picture
    ) -> None:
        shown, window = block.shown(affine), block.window
        place = slice(window.y0, window.y1), slice(window.x0, window.x1)
        size = (window.height, window.width)
        for name, pixels in shown._asdict().items():
            channel: Float32 = getattr(picture, name)
            # torch copies with several threads: on a GPU one thread's copy is a good part of a picture's time
            torch.from_numpy(channel[place]).copy_(torch.from_numpy(pixels.reshape(*size, *channel.shape[2:])))
