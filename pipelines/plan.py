"""plan: what a data set will take, from poses and points alone; upper bounds, so that what fits here fits later."""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infnerf_tiles.pipelines.calibrate import Calibration, calibrate
from infnerf_tiles.pipelines.coverage import Coverage, cover
from infnerf_tiles.pipelines.needs import PIXEL_COPIES, Budgets, Needs, largest_pixels, task_needs
from infnerf_tiles.pipelines.partition import Partition, partition

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.placing import photo_folder
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.training.pixel_store import PATCH_BYTES
from infnerf_tiles.training.pixels import PATCH
from infnerf_tiles.training.seed import MAX_PATCHES
from infnerf_tiles.units import format_bytes

_ROW_SHARE = 0.93
"""Stored bytes of a row of features over its bytes in memory: what compression always saves of float16 values, of which
few have a large exponent (0.932 was the most that one of 3,000 trained rows took)."""
_SAMPLES_PER_RAY = 14.0
_SMALL_BYTES = 50_000
_GENERATION_BYTES, _GENERATION_FILES, _GENERATIONS = 14_000, 13, 3
_JOURNAL_BYTES, _JOURNAL_FILES = 4_000, 3
_FIXED_FILES = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a data set will take. Bytes, file counts and peaks are upper bounds."""

    photos: int
    test_photos: int
    masked_photos: int
    """Photos with a mask file."""
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
        data, images=photo_folder(data, images), downscale=settings.data.downscale, test_every=settings.data.test_every,
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
    sampled = min(1.0, training.seed_nodes / max(found.octree.num_nodes, 1))
    seed_pixels = min(sampled * found.pyramid_pixels, MAX_PATCHES * PATCH**2)
    rays = training.passes * (
        training.seed_share * seed_pixels + (1.0 - training.seed_share * sampled) * treelet_pixels
    )
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
        masked_photos=photos.num_masked,
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


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 33


__all__ = ["Budgets", "Plan", "describe", "fit", "plan", "store_size", "task_needs", "train_needs"]
