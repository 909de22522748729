"""What a frame touches and costs in scenes of 10^3 to 10^6 nodes: `python tests/bench/complexity.py --help`.

For each size and view: nodes that the frame drew with, their bytes, the bytes read from an empty cache, and the time.
For each size: time to open the scene, and to the first coarse picture of 640x480 pixels (an eighth of them are drawn,
as the viewer does) after imports. Topology and index are real; rows are made when read (see `made_rows`).
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import infnerf_tiles  # noqa: F401  (before torch)
from bench.made_rows import make_scene, open_made, views
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.units import parse_bytes, parse_size

REDUCTION = 8


def measure(
    folder: Path, shape: FieldShape, size: tuple[int, int], budget: int, *, first_only: bool, threads: int | None
) -> dict[str, Any]:
    """One size of scene."""
    width, height = size
    camera = Camera("PINHOLE", width, height, (0.8 * width, 0.8 * width, width / 2, height / 2))
    coarse = Camera(
        "PINHOLE", max(1, width // REDUCTION), max(1, height // REDUCTION),
        tuple(value / REDUCTION for value in camera.params),
    )  # fmt: skip
    store = open_made(folder, shape)
    started = time.monotonic()
    with Scene.of_store(store) as scene:
        opened = time.monotonic()
        result: dict[str, Any] = {"nodes": scene.index.num_nodes, "depth": scene.octree.depth, "views": {}}
        places = views(scene.header.root.edge)
        with Renderer(scene, budget, threads=threads) as renderer:
            ready = time.monotonic()
            renderer.render(coarse, places["oblique"])
            result |= {
                "open_seconds": opened - started,
                "cache_seconds": ready - opened,
                "first_picture_seconds": time.monotonic() - started,
            }
        for name, pose in {} if first_only else places.items():
            with Renderer(scene, budget, threads=threads) as renderer:
                began = time.monotonic()
                picture = renderer.render(camera, pose)
                cache = renderer.cache
                result["views"][name] = {
                    "seconds": time.monotonic() - began,
                    "nodes": int(cache.num_touched),
                    "touched_bytes": cache.counters.touched_bytes,
                    "bytes_read": cache.counters.bytes_read,
                    "node_peak": cache.peak_bytes,
                    "samples": picture.num_samples,
                    "covered": float((picture.transmittance < 0.5).mean()),
                }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1000,10000,100000,1000000", help="sizes, separated by commas")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--memory-budget", default="2GiB")
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--table-log2", type=int, default=16)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--first-only", action="store_true", help="only open the scene and draw the first, coarse picture"
    )
    options = parser.parse_args()
    shape = FieldShape(cells=options.cells, table_size=2**options.table_log2, features=options.features)
    with tempfile.TemporaryDirectory() as place:
        warm = Path(place) / "warm"
        make_scene(warm, 100, FieldShape(cells=16, table_size=512, features=options.features))
        small = FieldShape(cells=16, table_size=512, features=options.features)
        measure(warm, small, (32, 24), 1 << 30, first_only=False, threads=options.threads)  # compiles the kernels
        for number in (int(text) for text in options.nodes.split(",")):
            folder = Path(place) / str(number)
            make_scene(folder, number, shape)
            result = measure(
                folder, shape, parse_size(options.size), parse_bytes(options.memory_budget),
                first_only=options.first_only, threads=options.threads,
            )  # fmt: skip
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
