"""Pictures of a scene, drawn from the nodes that each part of the picture needs, within a byte budget."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float32, Float64, Int64, check_shape
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import DECODER_BLOCK, shade
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.rendering.accounts import row_costs, smallest_working_set
from infnerf_tiles.rendering.node_cache import LOCAL_THREADS, REMOTE_THREADS, Aborted, NodeCache
from infnerf_tiles.rendering.ray_state import ROUND_SAMPLES, RayState, march_and_composite
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.selection import bundle_of, select_nodes
from infnerf_tiles.units import format_bytes

_BLOCK = 256  # pixels; the edge of the part of a picture that is in work at a time
_PACKET = 1 << 14  # rays marched together
_SMALL = 32  # pixels; parts this small share their nodes, so that cutting the distance helps more than halving them
_EAGER_NODES = 64  # more nodes than this are not read before it is known that nothing in front of them hides them
_FINEST_CUT = 16  # lattice steps; cutting the distance finer than that finds nothing hidden
_OFFSET = 0.5  # shift of the step lattice
_SEEN = 1e-3  # opacity below which a pixel shows nothing


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


class _Part(NamedTuple):
    """Pixels [x0, x1) x [y0, y1) of a block."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def edge(self) -> int:
        return max(self.x1 - self.x0, self.y1 - self.y0)

    def halves(self) -> tuple["_Part", "_Part"]:
        if self.x1 - self.x0 >= self.y1 - self.y0:
            middle = (self.x0 + self.x1) // 2
            return self._replace(x1=middle), self._replace(x0=middle)
        middle = (self.y0 + self.y1) // 2
        return self._replace(y1=middle), self._replace(y0=middle)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """A part of a picture in work: its rays and what is known of them, row by row."""

    width: int
    pose: Float64
    directions: Float64
    basis: Tensor
    footprint: float
    lattice: MarchSettings
    state: RayState
    abort: Callable[[], bool] | None = None

    def rows(self, part: _Part, alive: Bool) -> Int64:
        """Rays of a part that go on."""
        y, x = np.mgrid[part.y0 : part.y1, part.x0 : part.x1]
        rows: Int64 = (y * self.width + x).ravel()
        return rows[alive[rows]]

    def distance(self, step: float) -> float:
        """Middle of a lattice step, world units."""
        c = self.lattice.step * self.footprint
        return self.lattice.near * (1 + 0.5 * c) * math.exp((step + _OFFSET) * math.log1p(c))

    def step_at(self, distance: float) -> int:
        """The first lattice step whose middle is not nearer than that."""
        c = self.lattice.step * self.footprint
        nearest = self.lattice.near * (1 + 0.5 * c)
        return max(0, math.ceil(math.log(max(distance, nearest) / nearest) / math.log1p(c) - _OFFSET))


class Renderer:
    """Draws pictures of one scene; keeps what it has loaded for the next one.

    The picture is the same to the last bit whatever the budget, the threads that read, and what was drawn before.
    Several threads may share a renderer; they take turns.
    """

    def __init__(
        self,
        scene: Scene,
        memory_budget: int | None = None,
        *,
        threads: int | None = None,
        read_ahead: bool = False,
        block: int = _BLOCK,
        round_samples: int = ROUND_SAMPLES,
        eager_nodes: int = _EAGER_NODES,
    ) -> None:
        """`memory_budget`: bytes for nodes, resident or on their way, default: the scene's setting. `threads`: of the
        processor, default: all. `read_ahead`: keep an eighth of the budget for `prefetch`. `block`, `round_samples`:
        pixels and samples in work at a time; `eager_nodes`: nodes read before it is known whether anything hides them;
        none of them changes the picture.

        BudgetError if the budget cannot hold what a single sample may need.
        """
        self.scene = scene
        self.memory_budget = scene.settings.rendering.memory_budget_bytes if memory_budget is None else memory_budget
        self._threads = threads
        self._block = block
        self._round_samples = round_samples
        self._eager_bytes = row_costs(scene.shape).node * eager_nodes
        self._lock = threading.Lock()
        self.cache = self._new_cache(read_ahead)

    @property
    def deepest_level(self) -> int:
        """The finest level that a picture can show."""
        return self.scene.octree.depth

    @property
    def waits(self) -> int:
        """How often a picture had to wait for a row to be read, so far."""
        return self.cache.counters.waits

    def identity(self) -> str:
        """Which scene, at which state, with which settings."""
        scene = self.scene
        drawing = scene.settings.rendering.model_dump(mode="json", exclude={"memory_budget"})
        return json.dumps([scene.header.created, scene.store.generation, drawing, scene.lattice().lod_bias])

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
        lattice = self.scene.lattice(lod_bias)
        pose = np.asarray(camera_to_world, np.float64)
        for block, window in self._blocks(camera, pose, lattice, abort):
            height, width = picture.depth[window].shape
            with self._lock:  # block by block, so that others get their turn
                set_threads(self._threads)
                self._draw(block, _Part(0, 0, width, height), 0, None)
            num_samples += block.state.num_samples
            num_pixels += height * width
            self._finish(block, affine, picture, window)
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
        """Begin to read what a coming picture will need; arguments as in `render`. Returns at once.

        Does nothing unless the renderer was made to read ahead.
        """
        if not self.cache.prefetch_bytes:
            return
        pose, lattice = np.asarray(camera_to_world, np.float64), self.scene.lattice(lod_bias)
        keys = [
            self._select(block, np.arange(len(block.directions)), 0, None)
            for block, _ in self._blocks(camera, pose, lattice)
        ]
        self.cache.prefetch(np.unique(np.concatenate(keys)))

    def close(self) -> None:
        """Let the cache go; the scene stays open."""
        self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _new_cache(self, read_ahead: bool) -> NodeCache:
        """The cache within the budget: reads under way and what is read ahead have their shares of it."""
        scene, costs = self.scene, row_costs(self.scene.shape)
        smallest = smallest_working_set(scene.index, scene.shape)
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
        return NodeCache(scene.store, scene.index, scene.shape, budget, threads=threads, prefetch_bytes=ahead)

    def _blocks(
        self, camera: Camera, pose: Float64, lattice: MarchSettings, abort: Callable[[], bool] | None = None
    ) -> Iterator[tuple[_Block, tuple[slice, slice]]]:
        """The blocks of a picture, row by row, and where they lie in it (rows, columns)."""
        for y0 in range(0, camera.height, self._block):
            for x0 in range(0, camera.width, self._block):
                width, height = min(self._block, camera.width - x0), min(self._block, camera.height - y0)
                block = _new_block(camera, pose, (x0, y0), (width, height), lattice, abort)
                yield block, (slice(y0, y0 + height), slice(x0, x0 + width))

    def _draw(self, block: _Block, part: _Part, first: int, end: int | None) -> None:
        """Carry a part's rays, which stand at lattice step `first`, to `end` (None: to their end).

        What needs more nodes than the budget holds is halved: in the picture while it is large, then in distance, and
        at last in the picture down to one pixel. What fits but would read many nodes is halved in distance, so that
        what turns out to be hidden is not read.
        """
        if block.abort is not None and block.abort():
            raise Aborted
        rows = block.rows(part, block.state.alive(self._stop).numpy())
        if not len(rows):
            return
        keys = self._select(block, rows, first, end)
        last = self._last_step(block) if end is None else end
        middle = (first + last) // 2
        if self.cache.bytes_of(keys) <= self.cache.byte_budget:
            if last - first > _FINEST_CUT and self.cache.missing_bytes(keys) > self._eager_bytes:
                self._draw(block, part, first, middle)
                self._draw(block, part, middle, end)
            else:
                self._march(block, rows, keys, end)
            return
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
                f"memory budget: expected at least {format_bytes(self.cache.bytes_of(keys))} for one sample on the "
                f"faces of {len(keys)} nodes, got {format_bytes(self.memory_budget)}; give a little more"
            )

    @property
    def _stop(self) -> float:
        return self.scene.settings.rendering.stop_transmittance

    def _select(self, block: _Block, rows: Int64, first: int, end: int | None) -> Int64:
        bundle = bundle_of(block.pose[:, 3], block.directions[rows], block.footprint, block.pose[:, :3])
        nearest = block.distance(first)
        farthest = math.inf if end is None else block.distance(end - 1)
        return select_nodes(
            self.scene.octree, self.scene.header.root, bundle, block.lattice, nearest=nearest, farthest=farthest
        )

    def _last_step(self, block: _Block) -> int:
        """One past the last lattice step inside the root cube."""
        root = self.scene.header.root
        offset = np.abs(root.to_unit(block.pose[:, 3]) - 0.5) + 0.5
        return block.step_at(float(np.linalg.norm(offset)) * root.edge) + 1

    def _march(self, block: _Block, rows: Int64, keys: Int64, end: int | None) -> None:
        arena = self.cache.ensure(keys, block.abort)
        field = partial(shade, arena, self.scene.decoder)
        root = self.scene.header.root
        origin = torch.from_numpy(root.to_unit(block.pose[:, 3]))
        for start in range(0, len(rows), _PACKET):
            index = torch.from_numpy(rows[start : start + _PACKET])
            num = len(index)
            rays = Rays(
                origins=origin.expand(num, 3),
                directions=torch.from_numpy(block.directions)[index] / root.edge,
                footprint=torch.full((num,), block.footprint, dtype=torch.float64),
                offset=torch.full((num,), _OFFSET, dtype=torch.float64),
            )
            state = block.state.subset(index)
            march_and_composite(
                arena, field, rays, block.basis[index], state, block.lattice,
                stop=self._stop, end=end, round_samples=self._round_samples,
            )  # fmt: skip
            block.state.put(index, state)

    def _finish(
        self, block: _Block, affine: Float32 | Float64 | None, picture: Picture, window: tuple[slice, slice]
    ) -> None:
        state = block.state
        shape = picture.transmittance[window].shape
        rgb = (state.colour + state.transmittance[:, None] * self._background(block.basis)).numpy()
        if affine is not None:
            rgb = _affine_applied(np.asarray(affine, np.float32), rgb)
        picture.rgb[window] = rgb.reshape(*shape, 3)
        picture.transmittance[window] = state.transmittance.numpy().reshape(shape)
        weight = state.facts[:, 1]
        seen = weight >= _SEEN
        depth = torch.where(seen, state.depth / weight, torch.inf)
        level = torch.where(seen, state.facts[:, 0] / weight, torch.nan)
        picture.depth[window] = depth.numpy().reshape(shape)
        picture.level[window] = level.numpy().reshape(shape)

    def _background(self, basis: Tensor) -> Tensor:
        """Colour float32 [Q, 3] behind everything, in blocks of one size as the decoder's."""
        colour = torch.empty((basis.shape[0], 3))
        with torch.no_grad():
            for first in range(0, basis.shape[0], DECODER_BLOCK):
                part = basis[first : first + DECODER_BLOCK]
                padded = torch.zeros((DECODER_BLOCK, basis.shape[1]))
                padded[: part.shape[0]] = part
                colour[first : first + DECODER_BLOCK] = self.scene.background(padded)[: part.shape[0]]
        return colour


def _new_block(
    camera: Camera,
    pose: Float64,
    corner: tuple[int, int],
    size: tuple[int, int],
    lattice: MarchSettings,
    abort: Callable[[], bool] | None,
) -> _Block:
    """The block of `size` (width, height) pixels at pixel `corner` (x, y)."""
    y, x = np.mgrid[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]]
    xy = np.stack([x.ravel(), y.ravel()], axis=1) + 0.5
    # summed term by term: a matrix product's last bits depend on the number of rows
    local = unproject(camera, xy)
    directions = local[:, :1] * pose[:, 0] + local[:, 1:2] * pose[:, 1] + local[:, 2:] * pose[:, 2]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return _Block(
        width=size[0],
        pose=pose,
        directions=directions,
        basis=direction_basis(torch.from_numpy(directions)),
        footprint=1.0 / camera.focal,
        lattice=lattice,
        state=RayState.fresh(len(directions)),
        abort=abort,
    )


def _affine_applied(affine: Float32, rgb: Float32) -> Float32:
    """float32[n, 3] colours transformed by float32[3, 4], channel by channel: no sum whose order depends on n."""
    columns = [rgb[:, channel : channel + 1] * affine[:, channel] for channel in range(3)]
    transformed: Float32 = columns[0] + columns[1] + columns[2] + affine[:, 3]
    return transformed
