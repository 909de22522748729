"""Pictures of a resident scene of the default field's size: milliseconds, samples per second, and where time goes.

Run as `python -m tests.bench.render_profile`; `--help` lists the sizes. On CUDA the table is of kernels.
"""

import argparse
import importlib
import json
import statistics
import time

import infnerf_tiles  # noqa: F401  (before torch starts threads)  # isort: skip
import torch
from zarr.storage import MemoryStore

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.rendering import device_rounds
from infnerf_tiles.rendering.device_block import Painter
from infnerf_tiles.rendering.renderer import Renderer
from tests.bench.ground_scene import frame_camera, frame_pose, ground_scene
from tests.bench.kernel_spans import kernel_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--table-log2", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4, help="finest level")
    parser.add_argument("--bands", default="0", help="levels of treelet roots, such as 0,3")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--lanes", type=int, action="append", help="rays in work at a time; may be repeated")
    parser.add_argument("--fewest", type=int, action="append", help="samples per ray and round; may be repeated")
    parser.add_argument("--scan", type=int, help="rays that one step of the running sum in the march takes")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--json")
    options = parser.parse_args()
    shape = FieldShape(cells=options.cells, table_size=1 << options.table_log2, features=options.features)
    width, height = (int(n) for n in options.size.split("x"))
    began = time.perf_counter()
    bands = tuple(int(level) for level in options.bands.split(","))
    scene = ground_scene(MemoryStore(), shape, options.depth, bands=bands)
    print(f"{scene.octree.num_nodes} nodes made in {time.perf_counter() - began:.1f} s")  # noqa: T201
    if options.scan:
        importlib.import_module("infnerf_tiles.kernels.cuda.march")._SCAN = options.scan
    on_gpu = chosen_device(options.device).type == "cuda"
    camera, pose = frame_camera(width, height), frame_pose()
    results = []
    with Renderer(scene, device=options.device) as renderer:
        for lanes in options.lanes or [device_rounds.LANES]:
            for fewest in options.fewest or [device_rounds.FEWEST]:
                if on_gpu:
                    renderer._painter = None
                    torch.cuda.empty_cache()
                    renderer._painter = Painter(scene, renderer.device, lanes=lanes, fewest=fewest)
                began = time.perf_counter()
                picture = renderer.render(camera, pose)
                first = time.perf_counter() - began
                times = []
                for _ in range(options.frames):
                    began = time.perf_counter()
                    renderer.render(camera, pose)
                    times.append(time.perf_counter() - began)
                seconds = statistics.median(times)
                result = {
                    "lanes": lanes,
                    "fewest": fewest,
                    "first_ms": 1e3 * first,
                    "ms_per_frame": 1e3 * seconds,
                    "worst_ms": 1e3 * max(times),
                    "samples_per_pixel": picture.num_samples / width / height,
                    "million_samples_per_second": picture.num_samples / seconds / 1e6,
                    "opaque": float((picture.transmittance < 0.01).mean()),
                    "nodes": renderer.cache.num_nodes,
                }
                if on_gpu:
                    result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
                    result["busy"], kernels = kernel_table(lambda: renderer.render(camera, pose), 5, options.rows)
                    print(kernels)  # noqa: T201
                print(json.dumps(result))  # noqa: T201
                results.append(result)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
