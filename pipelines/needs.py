"""What tasks need: peak memory of every kind of task, from a partition and a few measured figures."""

from dataclasses import dataclass

import numpy as np
from infnerf_tiles.pipelines.calibrate import Calibration
from infnerf_tiles.pipelines.coverage import cover
from infnerf_tiles.pipelines.partition import Partition

from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.data.observers import observers
from infnerf_tiles.store.bundle import CHUNK_BYTES as BUNDLE_CHUNK_BYTES
from infnerf_tiles.training.context import decoding_bytes, num_readers
from infnerf_tiles.training.pixel_store import CHUNK_BYTES, PART_BYTES, RESIDENT_PATCH_BYTES, num_patches
from infnerf_tiles.training.pixels import PATCH
from infnerf_tiles.training.seed import MAX_PATCHES
from infnerf_tiles.training.surroundings import SURROUNDINGS_BYTES
from infnerf_tiles.training.tasks import GROWTH_ROOM, seed_room

PIXEL_COPIES = 1.6
"""Most pixels of all treelets together, in pixels of the photos: a pyramid has 4/3, an eighth goes along twice."""
MIN_PIXEL_BYTES = 32 << 20
"""Least memory for pixels that a treelet is trained with."""
_CELLS_AT_ONCE = 1 << 17
_CELL_BYTES = 20
"""Of a look at an occupancy cell, densities apart: masks, random numbers, rows."""
_ASSIGNING_BYTES = 96 << 20
"""Of the rays that are cast at a time to find out where patches belong."""
_HEAP_BYTES, _HEAP_BYTES_PER_SAMPLE = 64 << 20, 4 << 10
"""What thousands of steps of ever other sizes leave between blocks, which a few calibrating ones do not."""
_STREAMING = 1.25
"""Memory of pixels that are exchanged now and then, over that of those in use."""
_WORKER_BYTES = 40 << 20
"""What dask takes in a worker process: its libraries, its event loop and what waits to be sent."""
_SLACK = 1.05
"""What an allocator loses between blocks."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes; None: no limit. ram: of one process. vram: of one CUDA device. scratch: of disk for pixels in waiting."""

    ram: int | None = None
    vram: int | None = None
    scratch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Peak memory by task, host and device, with the pixel buffer that it was computed with."""

    host: dict[str, int]
    device: dict[str, int]
    pixel_bytes: int | None

    @property
    def worst(self) -> str:
        """The task of the highest host peak."""
        return max(self.host, key=lambda name: self.host[name])


def task_needs(found: Partition, measured: Calibration, budgets: Budgets) -> Needs:
    """Peak bytes of every kind of task, with as many pixels in memory as `budgets.ram` leaves room for.

    With a budget a training's figure holds what decoding photos takes too: worker processes do both at a time.
    """
    shape = found.shape
    data = _dataset_bytes(found.photos)
    base = measured.base_bytes + (0 if budgets.ram is None else _WORKER_BYTES)
    row = 4 * shape.row_length
    nodes = [len(t.keys) for t in found.treelets]
    capacity = max(n + growth_room(found, n) for n in nodes)
    above = sum(len(t.keys) for t in found.treelets if t.band < len(found.bands) - 1)
    around = min(above, SURROUNDINGS_BYTES // shape.node_bytes)
    trees = min(sum(t.band < len(found.bands) - 1 for t in found.treelets), max(around, 1))
    frozen = around * measured.frozen_bytes + trees * measured.tree_bytes
    # surroundings come in as float16 beside the copy that stays
    cutting = max(CHUNK_BYTES, _patch_bytes(found.photos)) + decoding_bytes(found.photos)
    assigning = frozen + around * row // 2 + _ASSIGNING_BYTES
    own = _training_bytes(found, measured, capacity) + frozen + PART_BYTES * 3
    own = int(_SLACK * (base + data + max(own, assigning)))
    pixels = int(largest_pixels(found) / PATCH**2 * RESIDENT_PATCH_BYTES * 1.1)
    count = min(found.octree.num_nodes, found.settings.training.seed_nodes)
    seed = count + seed_room(count, found.octree.num_nodes, found.node_limit, found.settings.training.seed_nodes)
    reading = decoding_bytes(found.photos) * (1 if budgets.ram is not None else num_readers(found.photos))
    joint = int(_SLACK * (base + data + _training_bytes(found, measured, seed) + reading))
    patches = _seed_patches(found) * RESIDENT_PATCH_BYTES
    limit = None
    if budgets.ram is not None:
        own += cutting
        limit = max(int((budgets.ram - max(own, joint)) / _STREAMING), MIN_PIXEL_BYTES)
        pixels, patches = min(pixels, int(limit * _STREAMING)), min(patches, int(limit * _STREAMING))
    host = {
        "training a treelet": own + pixels,
        "seed stage": joint + patches,
        "cutting photos": int(_SLACK * (base + data + cutting)),
    }
    device = {}
    if measured.device_base_bytes:
        device = {
            "training a treelet": measured.device_base_bytes + capacity * measured.device_slot_bytes
            + around * measured.device_frozen_bytes,
            "seed stage": measured.device_base_bytes + seed * measured.device_slot_bytes,
        }  # fmt: skip
    return Needs(host=host, device=device, pixel_bytes=limit)


def _training_bytes(found: Partition, measured: Calibration, slots: int) -> int:
    """State of a training with that many slots, and the most that anything takes beside it: a step, a look at all
    cells' densities with the rows on their way out, or keeping the state."""
    shape = found.shape
    cells = slots * shape.occupancy_cells**3
    looking = min(cells, _CELLS_AT_ONCE) * 4 * (shape.features + 16)
    rows = slots * 2 * shape.row_length
    state = measured.fixed_bytes + slots * measured.slot_bytes
    keeping = min(3 * slots * 4 * shape.row_length, 4 * BUNDLE_CHUNK_BYTES)
    heap = _HEAP_BYTES + _HEAP_BYTES_PER_SAMPLE * found.settings.training.step_samples("cpu")
    return state + heap + cells * _CELL_BYTES + max(measured.step_bytes, looking + rows, keeping)


def _seed_patches(found: Partition) -> int:
    """Patches that the seed stage trains on, at most; an edge cuts some of them short."""
    cameras = found.photos.cameras
    counts = np.bincount(cameras.camera_index[~found.photos.is_test], minlength=len(cameras.cameras))
    return min(MAX_PATCHES, sum(int(n) * num_patches(c) for n, c in zip(counts, cameras.cameras, strict=True)))


def growth_room(found: Partition, nodes: int) -> int:
    """Most nodes that a treelet of that many may grow by."""
    left = max(found.node_limit - found.octree.num_nodes, 0)
    return min(left, max(GROWTH_ROOM, nodes // 4))


def largest_pixels(found: Partition) -> int:
    """Upper bound of the pixels of one treelet: those of the photos that see most of it, with their pyramids."""
    total = int(PIXEL_COPIES * found.photo_pixels) + PATCH**2
    seen = max((region.pixels for region in cover(found).regions), default=total)
    first = total if len(found.treelets) == 1 else 0
    return max(min(total, int(2.0 * seen) + PATCH**2 * 64), first)


def _dataset_bytes(photos: PosedPhotos) -> int:
    """Of poses and points: the driver's copy and its tasks', and the lists of who saw what."""
    total = 1200 * photos.num_photos
    if photos.points is not None:
        p = photos.points
        total += 2 * sum(a.nbytes for a in (p.xyz, p.rgb, p.error, p.track_offsets, p.track_photos))
        seen = observers(p, photos.cameras)
        if seen.photos is not p.track_photos:
            total += 2 * (seen.offsets.nbytes + seen.photos.nbytes)
        total += 32 * len(seen.photos)
    return total


def _patch_bytes(photos: PosedPhotos) -> int:
    """Patches of the largest photo for all treelets that see it."""
    most = max(num_patches(camera) for camera in photos.cameras.cameras)
    return int(PIXEL_COPIES * most * RESIDENT_PATCH_BYTES)
