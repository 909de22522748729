"""Pictures drawn with the Triton kernels, by the interpreter: those of the processor, and the same for any cut."""

from typing import Any

import numpy as np
import pytest
import torch
from rendering.random_scenes import make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.kernels import cuda
from infnerf_tiles.rendering import device_rounds
from infnerf_tiles.rendering.accounts import smallest_working_set
from infnerf_tiles.rendering.device_block import Painter
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene

POSE = pose((50.0, 35.0, 22.0))
CAMERA = Camera("SIMPLE_PINHOLE", 8, 6, (10.0, 4.0, 3.0))
LAYERS = ("rgb", "transmittance", "depth", "level")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(device_rounds, "for_device", lambda _: cuda)
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-3.0))


def drawn(scene: Scene, budget: int | None = None, *, lanes: int = 48, **options: Any) -> Picture:
    with Renderer(scene, budget, threads=1, **options) as renderer:
        renderer._painter = Painter(scene, torch.device("cpu"), lanes=lanes)
        return renderer.render(CAMERA, POSE)


def test_pictures_are_the_processors_for_any_lanes_and_budget(scene: Scene) -> None:
    with Renderer(scene, threads=1) as renderer:
        want = renderer.render(CAMERA, POSE)
    whole = drawn(scene)
    for name in LAYERS:
        # the decoder's products are float16
        np.testing.assert_allclose(getattr(whole, name), getattr(want, name), rtol=2e-3, atol=2e-3, err_msg=name)
    smallest = smallest_working_set(scene.index, scene.shape)
    for options in ({"lanes": 16}, {"block": 5}, {"budget": smallest}):
        again = drawn(scene, **options)
        for name in LAYERS:
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=f"{options}, {name}")
