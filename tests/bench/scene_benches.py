"""Drawing pictures and loading nodes of a scene store."""

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from random_scenes import make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.field import shading
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import reference
from infnerf_tiles.rendering import ray_state
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from tests.bench.ground_scene import frame_camera, frame_pose, ground_scene
from tests.bench.measure import Bench, Case, Result, attempt

_EYE = (30.0, 12.0, 18.0)


def rendering(bench: Bench) -> list[Result]:
    """A picture of a scene that is resident.

    On the processor a small one with random contents (16 cells, 2^9 entries, 4 features), on a GPU 490 nodes along a
    ground with 128 cells, 2^16 entries and 8 features.
    """
    return _on_gpu(bench) if bench.on_gpu else _on_cpu(bench)


def _on_gpu(bench: Bench) -> list[Result]:
    shape = FieldShape(cells=128, table_size=1 << 16, features=8)
    scene = ground_scene(MemoryStore(), shape, 3 if bench.quick else 4)
    width, height = 1280, 720
    camera, place = frame_camera(width, height), frame_pose()
    with Renderer(scene, device="cuda") as renderer:
        picture = renderer.render(camera, place)
        seconds = bench.time(lambda: renderer.render(camera, place))
        nodes = renderer.cache.num_nodes
    result = Result(
        bench=f"picture {width}x{height}, {nodes} nodes", items=picture.num_samples, unit="samples",
        ours=Case(
            name="renderer", seconds=seconds,
            note=f"{picture.num_samples / width / height:.1f} samples a pixel, "
            f"{(picture.transmittance < 0.01).mean():.0%} of them opaque",
        ),
    )  # fmt: skip
    few = frame_camera(128, 72)
    with Renderer(scene, device="cpu") as renderer:
        renderer.render(few, place)
        begin = time.perf_counter()
        renderer.render(few, place)
        slow = 100 * (time.perf_counter() - begin)
    result.add("the same on the processor", slow, "timed on 128x72 pixels")
    return [result]


def _on_cpu(bench: Bench) -> list[Result]:
    width, height = (160, 90) if bench.quick else (320, 180)
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of_store(make_scene(Path(folder) / "scene.zarr", fill=0.15, density=1.0))
        with Renderer(scene, device="cpu") as renderer:
            camera = _camera(width, height)
            picture = renderer.render(camera, pose(_EYE))
            seconds = bench.time(lambda: renderer.render(camera, pose(_EYE)), at_most=6.0)
            result = Result(
                bench=f"picture {width}x{height}", items=picture.num_samples, unit="samples",
                ours=Case(
                    name="renderer", seconds=seconds, note=f"{picture.num_samples / width / height:.1f} samples a pixel"
                ),
            )  # fmt: skip
            few = _camera(16, 9)

            def twin() -> float:
                with (
                    mock.patch.object(ray_state, "for_device", return_value=reference),
                    mock.patch.object(shading, "for_device", return_value=reference),
                ):
                    return bench.time(lambda: renderer.render(few, pose(_EYE)), at_most=2.0)

            slow, note = attempt(twin)
            scaled = None if slow is None else slow * width * height / 144
            result.add("with the torch twins", scaled, note or "timed on 16x9 pixels")
    return [result]


def _camera(width: int, height: int) -> Camera:
    return Camera("SIMPLE_PINHOLE", width, height, (0.9 * width, width / 2, height / 2))


def node_load(bench: Bench) -> list[Result]:
    """All nodes of a scene store into an arena, as a renderer with a cold cache does."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = make_scene(place / "scene.zarr", keys=near_keys(3, (0.1, 0.1, 0.1), 1.5))
        scene = Scene.of_store(store)
        keys = Octree.from_keys(scene.index.keys).keys
        nbytes = 0

        def load() -> None:
            nonlocal nbytes
            cache = NodeCache(store, scene.index, scene.shape, 1 << 30)
            cache.ensure(keys)
            nbytes = cache.counters.bytes_read
            cache.close()

        seconds = bench.time(load)
        raw = place / "raw"
        np.random.default_rng(0).bytes(1)
        raw.write_bytes(bytes(nbytes))

        def read_raw() -> None:
            torch.from_numpy(np.fromfile(raw, np.float16)).float()

        result = Result(
            bench="node load", items=len(keys), unit="nodes",
            ours=Case(
                name="cache, cold", seconds=seconds, note=f"{len(keys)} nodes, {nbytes / 1e6:.1f} MB, "
                f"{seconds / len(keys) * 1e3:.2f} ms a node",
            ),
        )  # fmt: skip
        result.add("one plain file of as many bytes", bench.time(read_raw), "read and widened to float32")
    return [result]
