"""plan: what a data set will take, from poses and points alone; upper bounds, so that what fits here fits later."""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.calibrate import Calibration, calibrate
from infnerf_tiles.pipelines.coverage import Coverage, cover
from infnerf_tiles.pipelines.partition import Partition, partition

from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.bundle import CHUNK_BYTES as BUNDLE_CHUNK_BYTES
from infnerf_tiles.training.pixel_store import CHUNK_BYTES, PART_BYTES, PATCH_BYTES, RESIDENT_PATCH_BYTES, num_patches
from infnerf_tiles.training.pixels import PATCH
from infnerf_tiles.training.seed import MAX_PATCHES
from infnerf_tiles.training.surroundings import SURROUNDINGS_BYTES
from infnerf_tiles.training.tasks import GROWTH_ROOM, seed_room
from infnerf_tiles.units import format_bytes

PIXEL_COPIES = 1.6
"""Most pixels of all treelets together, in pixels of the photos: a pyramid has 4/3, an eighth goes along twice."""
MIN_PIXEL_BYTES = 32 << 20
"""Least memory for pixels that a treelet is trained with."""
_ROW_SHARE = 0.93
"""Stored bytes of a row of features over its bytes in memory: what compression always saves of float16 values, of which
few have a large exponent (0.932 was the most that one of 3,000 trained rows took)."""
_SAMPLES_PER_RAY = 14.0
_CELLS_AT_ONCE = 1 << 17
_CELL_BYTES = 20
"""Of a look at an occupancy cell, densities apart: masks, random numbers, rows."""
_ASSIGNING_BYTES = 96 << 20
"""Of the rays that are cast at a time to find out where patches belong."""
_HEAP_BYTES, _HEAP_BYTES_PER_SAMPLE = 64 << 20, 4 << 10
"""What thousands of steps of ever other sizes leave between blocks, which a few calibrating ones do not."""
_SLACK = 1.05
"""What an allocator loses between blocks."""
_SMALL_BYTES = 50_000
_GENERATION_BYTES, _GENERATION_FILES, _GENERATIONS = 14_000, 13, 3
_JOURNAL_BYTES, _JOURNAL_FILES = 4_000, 3
_FIXED_FILES = 20


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes; None: no limit. ram: of one process. vram: of one CUDA device. scratch: of disk for pixels in waiting."""

    ram: int | None = None
    vram: int | None = None
    scratch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a data set will take. Bytes, file counts and peaks are upper bounds."""

    photos: int
    test_photos: int
    rejected: tuple[tuple[str, str], ...]
    """(name, reason)."""
    root_origin: tuple[float, float, float]
    root_edge: float
    gsd_finest: float
    points: int
    points_outside: int
    nodes_per_level: tuple[int, ...]
    node_limit: int
    band_levels: tuple[int, ...]
    treelets_per_band: tuple[int, ...]
    treelet_height: int
    largest_treelet: int
    """Nodes."""
    photo_pixels: int
    treelet_pixels: int
    """Of all treelets together."""
    largest_treelet_pixels: int
    store_bytes: int
    store_files: int
    scratch_bytes: int
    ram_bytes: int
    """Peak resident memory of the worst task's process."""
    worst_task: str
    vram_bytes: int
    """Peak of the worst task on a CUDA device; 0 without one."""
    pixel_bytes: int | None
    """Memory for the pixels of a treelet; more are streamed. None: no limit."""
    workers_that_fit: int
    """Worker processes of `ram_bytes` that this machine's memory holds."""
    seconds: float
    """Rough, one task after the other on this machine."""
    lost_regions: tuple[str, ...]
    weak_regions: int
    blind_photos: int
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "rejected": [{"name": n, "reason": r} for n, r in self.rejected]}


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


def plan(
    data: Path,
    settings: Settings,
    *,
    images: Path | None = None,
    bounds: tuple[float, ...] | None = None,
    budgets: Budgets | None = None,
    threads: int | None = None,
    check_photos: bool = True,
) -> Plan:
    """Say what building and training a data set takes, and choose what fits the budgets.

    check_photos: open every photo's header. BudgetError, with the numbers and the nearest budget or setting that fits,
    if nothing does; else as `build`.
    """
    photos = read_dataset(
        data, images=images, downscale=settings.data.downscale, test_every=settings.data.test_every,
        check_photos=check_photos,
    )  # fmt: skip
    found = partition(photos, settings, bounds)
    measured = calibrate(settings, threads)
    found, needs = fit(found, measured, budgets or Budgets())
    return describe(found, cover(found), measured, needs, budgets or Budgets())


def fit(found: Partition, measured: Calibration, budgets: Budgets) -> tuple[Partition, Needs]:
    """The partition cut, and the pixel buffer chosen, so that every task fits the budgets.

    BudgetError with the numbers and the nearest that fits, if none does.
    """
    heights = range(found.settings.octree.treelet_height, 0, -1)
    best: Needs | None = None
    for height in heights:
        cut = found if height == found.settings.octree.treelet_height else found.with_height(height)
        needs = task_needs(cut, measured, budgets)
        if _fits(needs, budgets):
            return _check_scratch(cut, needs, budgets)
        if best is None or max(needs.host.values()) < max(best.host.values()):
            best = needs
    if best is None:
        raise ValueError("treelet height: expected at least 1")
    raise BudgetError(_refusal(best, budgets, found))


def train_needs(found: Partition, budgets: Budgets, threads: int | None) -> Needs:
    """As `fit`, for a scene whose treelets are cut already. BudgetError if they do not fit."""
    needs = task_needs(found, calibrate(found.settings, threads), budgets)
    if not _fits(needs, budgets):
        raise BudgetError(f"{_refusal(needs, budgets, found)}, or build again with --ram")
    return _check_scratch(found, needs, budgets)[1]


def task_needs(found: Partition, measured: Calibration, budgets: Budgets) -> Needs:
    """Peak bytes of every kind of task, with as many pixels in memory as `budgets.ram` leaves room for.

    With a budget a training's figure holds what decoding photos takes too: worker processes do both at a time.
    """
    shape = found.shape
    data = _dataset_bytes(found.photos)
    row = 4 * shape.row_length
    nodes = [len(t.keys) for t in found.treelets]
    capacity = max(n + growth_room(found, n) for n in nodes)
    above = sum(len(t.keys) for t in found.treelets if t.band < len(found.bands) - 1)
    around = min(above, SURROUNDINGS_BYTES // shape.node_bytes)
    trees = min(sum(t.band < len(found.bands) - 1 for t in found.treelets), max(around, 1))
    frozen = around * measured.frozen_bytes + trees * measured.tree_bytes
    # surroundings come in as float16 beside the copy that stays
    cutting = max(CHUNK_BYTES, _patch_bytes(found.photos)) + _decoding_bytes(found)
    assigning = frozen + around * row // 2 + _ASSIGNING_BYTES
    own = _training_bytes(found, measured, capacity) + frozen + PART_BYTES * 2
    own = int(_SLACK * (measured.base_bytes + data + max(own, assigning)))
    pixels = int(largest_pixels(found) / PATCH**2 * RESIDENT_PATCH_BYTES * 1.1)
    count = min(found.octree.num_nodes, found.settings.training.seed_nodes)
    seed = count + seed_room(count, found.octree.num_nodes, found.node_limit, found.settings.training.seed_nodes)
    joint = int(_SLACK * (measured.base_bytes + data + _training_bytes(found, measured, seed) + _decoding_bytes(found)))
    patches = _seed_patches(found) * RESIDENT_PATCH_BYTES
    limit = None
    if budgets.ram is not None:
        own += cutting
        limit = max(budgets.ram - max(own, joint), MIN_PIXEL_BYTES)
        pixels, patches = min(pixels, limit), min(patches, limit)
    host = {
        "training a treelet": own + pixels,
        "seed stage": joint + patches,
        "cutting photos": int(_SLACK * (measured.base_bytes + data + cutting)),
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
    shape, f = found.shape, found.settings.field
    cells = slots * shape.occupancy_cells**3
    looking = min(cells, _CELLS_AT_ONCE) * 4 * (shape.features + 2 * f.hidden + f.geometry_features + 16)
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


def store_size(found: Partition) -> tuple[int, int]:
    """(bytes, files) of the trained scene, upper bounds."""
    shape, photos = found.shape, found.photos.num_photos
    limit = found.node_limit
    coarse = sum(t.band < len(found.bands) - 1 for t in found.treelets)
    treelets = len(found.treelets) + min(8 * coarse, limit - found.octree.num_nodes)
    rows = int(limit * (2 * shape.row_length * _ROW_SHARE + shape.occupancy_bytes * 0.5 + 40))
    bases = treelets * int(2 * (shape.base_cells + 1) ** 3 * shape.features * _ROW_SHARE + 400)
    index = _GENERATIONS * (_GENERATION_BYTES + 26 * limit + 18 * treelets)
    journal = treelets * _JOURNAL_BYTES + 32 * limit
    cameras = photos * (200 + 12 * 4)
    files = 2 * limit + treelets * (1 + _JOURNAL_FILES) + _GENERATIONS * _GENERATION_FILES + _FIXED_FILES
    f = found.settings.field
    decoder = 4 * f.hidden * (shape.features + f.hidden + 2 * f.geometry_features + 24)
    return rows + bases + index + journal + cameras + decoder + _SMALL_BYTES, files


def describe(found: Partition, coverage: Coverage, measured: Calibration, needs: Needs, budgets: Budgets) -> Plan:
    """The plan of a partition that fits."""
    photos, training = found.photos, found.settings.training
    store_bytes, store_files = store_size(found)
    treelet_pixels = int(PIXEL_COPIES * found.photo_pixels)
    rays = training.passes * (training.seed_share * found.pyramid_pixels + (1 - training.seed_share) * treelet_pixels)
    samples = training.samples_per_step
    if samples == "auto":
        samples = 524288 if measured.device_base_bytes else 16384
    steps = rays * _SAMPLES_PER_RAY / samples + 50 * (1 + len(found.treelets))
    if training.steps is not None:
        steps = training.steps * (1 + len(found.treelets))
    ram = max(needs.host.values())
    return Plan(
        photos=photos.num_photos,
        test_photos=int(photos.is_test.sum()),
        rejected=tuple((r.name, r.reason) for r in photos.rejected),
        root_origin=found.root.origin,
        root_edge=found.root.edge,
        gsd_finest=found.gsd_root / 2.0**found.max_level,
        points=0 if photos.points is None else photos.points.num_points,
        points_outside=int((~found.inside).sum()),
        nodes_per_level=found.nodes_per_level,
        node_limit=found.node_limit,
        band_levels=found.bands,
        treelets_per_band=found.treelets_per_band,
        treelet_height=found.settings.octree.treelet_height,
        largest_treelet=max(len(t.keys) for t in found.treelets),
        photo_pixels=found.photo_pixels,
        treelet_pixels=treelet_pixels,
        largest_treelet_pixels=largest_pixels(found),
        store_bytes=store_bytes,
        store_files=store_files,
        scratch_bytes=scratch_size(found, budgets),
        ram_bytes=ram,
        worst_task=needs.worst,
        vram_bytes=max(needs.device.values(), default=0),
        pixel_bytes=needs.pixel_bytes,
        workers_that_fit=max(1, _machine_memory() // ram),
        seconds=1.3 * steps * measured.step_seconds + 20.0,
        lost_regions=tuple(region.treelet for region in coverage.lost),
        weak_regions=len(coverage.weak),
        blind_photos=len(coverage.blind_photos),
        peak_bytes=peak_memory(),
    )


def scratch_size(found: Partition, budgets: Budgets) -> int:
    """Bytes of pixels in waiting and of training states, at most."""
    everything = int(PIXEL_COPIES * found.photo_pixels / PATCH**2 * 1.3 * PATCH_BYTES)
    waiting = everything if budgets.scratch is None else min(everything, budgets.scratch)
    return waiting + _largest_checkpoint(found)


def _largest_checkpoint(found: Partition) -> int:
    seed = min(found.octree.num_nodes, found.settings.training.seed_nodes)
    nodes = max(seed, max(len(t.keys) for t in found.treelets))
    # values and two moments, in two versions while one replaces the other
    return int(2 * 3 * 4 * 1.2 * nodes * found.shape.row_length)


def _check_scratch(found: Partition, needs: Needs, budgets: Budgets) -> tuple[Partition, Needs]:
    if budgets.scratch is None:
        return found, needs
    least = 2 * int(largest_pixels(found) / PATCH**2 * PATCH_BYTES) + _largest_checkpoint(found)
    if least > budgets.scratch:
        raise BudgetError(
            f"--scratch {format_bytes(budgets.scratch)}: the pixels of the largest treelet, twice, and its training "
            f"state take up to {format_bytes(least)}; the nearest that fits is --scratch {least}"
        )
    return found, needs


def _fits(needs: Needs, budgets: Budgets) -> bool:
    ram = budgets.ram is None or max(needs.host.values()) <= budgets.ram
    return ram and (budgets.vram is None or max(needs.device.values(), default=0) <= budgets.vram)


def _refusal(needs: Needs, budgets: Budgets, found: Partition) -> str:
    host, device = max(needs.host.values()), max(needs.device.values(), default=0)
    parts = []
    if budgets.ram is not None and host > budgets.ram:
        parts.append(
            f"--ram {format_bytes(budgets.ram)}: {needs.worst} takes up to {format_bytes(host)} even with the lowest "
            f"treelets; the nearest that fits is --ram {math.ceil(host / (1 << 20))}MiB"
        )
    if budgets.vram is not None and device > budgets.vram:
        parts.append(
            f"--vram {format_bytes(budgets.vram)}: it takes up to {format_bytes(device)}; the nearest that fits is "
            f"--vram {math.ceil(device / (1 << 20))}MiB"
        )
    seed = found.settings.training.seed_nodes
    if needs.worst == "seed stage" and seed > 1:
        parts.append(f"or --set training.seed_nodes below {min(seed, found.octree.num_nodes)}")
    return ", ".join(parts)


def _dataset_bytes(photos: PosedPhotos) -> int:
    """Of poses and points: the driver's copy and its tasks', and the lists of who saw what."""
    total = 1200 * photos.num_photos
    if photos.points is not None:
        p = photos.points
        total += 2 * sum(a.nbytes for a in (p.xyz, p.rgb, p.error, p.track_offsets, p.track_photos))
        total += 32 * len(p.track_photos)
    return total


def _patch_bytes(photos: PosedPhotos) -> int:
    """Patches of the largest photo for all treelets that see it."""
    most = max(num_patches(camera) for camera in photos.cameras.cameras)
    return int(PIXEL_COPIES * most * RESIDENT_PATCH_BYTES)


def _decoding_bytes(found: Partition) -> int:
    """Of decoding the largest photo, reducing it and building its pyramid."""
    largest = max(c.width * c.height for c in found.photos.cameras.cameras)
    scale = found.settings.data.downscale
    # the file and its pixels; sums of rows and of blocks
    reducing = 4 * largest * scale**2 + (6 * largest * scale + 12 * largest if scale > 1 else 0)
    return max(reducing, 3 * largest + 12 * largest)


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 33

