"""The same pictures of a scene within several memory budgets: `python -m tests.bench.budgets SCENE`.

Every budget is a share of the bytes that the scene's files take, at least what the scene can be drawn from at all. With
each, one renderer that begins empty draws all views; the files are in the system's cache. The table gives the least
time of several runs and its ratio to that of the first share, where that time went, the most bytes that nodes took at
once, bytes of the rows read, reads, reads of rows that had been dropped meanwhile, rows dropped, stretches of rays, and
the layers of which a bit differs from the first share's.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import infnerf_tiles  # noqa: F401  (before torch)  # isort: skip
import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.accounts import smallest_working_set
from infnerf_tiles.rendering.camera_paths import make_path
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.pixel_block import HostBlock
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene, content_centre
from infnerf_tiles.store.facts import stored_size
from infnerf_tiles.units import format_bytes, parse_size

LAYERS = ("rgb", "transmittance", "depth", "level")
_COLUMNS = (
    "share", "budget", "seconds", "ratio", "loading", "drawing", "node peak", "read", "reads", "again", "dropped",
    "stretches", "differing",
)  # fmt: skip


def views_of(scene: Scene, photos: int, orbit: int, size: tuple[int, int] | None) -> list[tuple[Camera, Float64]]:
    """Photos spread over all, as they were taken, and places of an orbit around the scene."""
    cameras = scene.cameras
    rows = np.linspace(0, cameras.num_photos - 1, photos + 2)[1:-1].round().astype(int).tolist()
    views = [(cameras.camera(row), cameras.camera_to_world[row]) for row in rows]
    if size is not None:
        views = [(camera.resized(*size), place) for camera, place in views]
    path = make_path("orbit", cameras, content_centre(scene), frames=max(1, orbit), size=size)
    return views + [(path.camera, place) for place in path.camera_to_world[:orbit]]


class Spans:
    """Adds up how long some methods take, and how often which row is read."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.reads: Counter[Any] = Counter()

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began
                self.calls[name] += 1

        return run

    def counted(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def run(cache: NodeCache, item: Any) -> Any:
            self.reads[item] += 1
            return read(cache, item)

        return run


def measure(
    scene: Scene, views: list[tuple[Camera, Float64]], budget: int, threads: int | None
) -> tuple[dict[str, Any], list[Picture]]:
    """All views with one renderer."""
    spans = Spans()
    with ExitStack() as stack:
        for owner, name, what in ((NodeCache, "_load", "loading"), (HostBlock, "march", "drawing")):
            stack.enter_context(mock.patch.object(owner, name, spans.timed(what, getattr(owner, name))))
        stack.enter_context(mock.patch.object(NodeCache, "_read", spans.counted(NodeCache._read)))
        began = time.perf_counter()
        with Renderer(scene, budget, device="cpu", threads=threads) as renderer:
            pictures = [renderer.render(camera, place) for camera, place in views]
            seconds = time.perf_counter() - began
            counters, peak = renderer.cache.counters, renderer.cache.peak_bytes
    return {
        "budget": budget,
        "seconds": seconds,
        "loading": spans.seconds["loading"],
        "drawing": spans.seconds["drawing"],
        "node_peak": peak,
        "bytes_read": counters.bytes_read,
        "touched_bytes": counters.touched_bytes,
        "reads": sum(spans.reads.values()),
        "rereads": sum(spans.reads.values()) - len(spans.reads),
        "evictions": counters.evictions,
        "stretches": spans.calls["drawing"],
    }, pictures


def differing(first: list[Picture], other: list[Picture]) -> list[str]:
    """Layers of which a bit differs."""
    pairs = list(zip(first, other, strict=True))
    return [
        name
        for name in LAYERS
        if not all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for a, b in pairs)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """One line per budget."""
    lines = [_COLUMNS] + [
        (
            f"{row['share']:.0%}", format_bytes(row["budget"]), f"{row['seconds']:.2f}", f"{row['ratio']:.2f}",
            f"{row['loading']:.2f}", f"{row['drawing']:.2f}", format_bytes(row["node_peak"]),
            format_bytes(row["bytes_read"]), str(row["reads"]), str(row["rereads"]), str(row["evictions"]),
            str(row["stretches"]), ", ".join(row["differing"]) or "none",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[k]) for line in lines) for k in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.budgets", description=__doc__)
    parser.add_argument("scene")
    parser.add_argument("--shares", default="1,0.25,0.05", help="of the files' bytes, separated by commas")
    parser.add_argument("--photos", type=int, default=1, help="photos' views to draw")
    parser.add_argument("--orbit", type=int, default=1, help="views of an orbit to draw")
    parser.add_argument("--size", help="of the pictures; default: as the photos")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    shares = [float(text) for text in options.shares.split(",")]
    with Scene.open(options.scene) as scene:
        size = parse_size(options.size) if options.size else None
        views = views_of(scene, options.photos, options.orbit, size)
        stored, _ = stored_size(scene.store.data)
        if stored is None:
            parser.error("expected a store that can be listed")
        smallest = smallest_working_set(scene.index, scene.shape, scene.octree)
        budgets = [max(int(share * stored), smallest) for share in shares]
        with Renderer(scene, 1 << 34, device="cpu", threads=options.threads) as renderer:  # compiles, warms the files
            for camera, place in views:
                renderer.render(camera, place)
        runs: list[list[tuple[dict[str, Any], list[Picture]]]] = [[] for _ in shares]
        for _ in range(options.repeats):  # in turns, so that what else the machine does hits all alike
            for budget, results in zip(budgets, runs, strict=True):
                results.append(measure(scene, views, budget, options.threads))
    rows = [min((result for result, _ in results), key=lambda result: float(result["seconds"])) for results in runs]
    for share, row, results in zip(shares, rows, runs, strict=True):
        row |= {
            "share": share,
            "ratio": row["seconds"] / rows[0]["seconds"],
            "differing": sorted({name for _, pictures in results for name in differing(runs[0][0][1], pictures)}),
        }
    sys.stdout.write((json.dumps(rows, indent=1) if options.json else table(rows)) + "\n")
    sys.exit(1 if any(row["differing"] for row in rows) else 0)


if __name__ == "__main__":
    main()
