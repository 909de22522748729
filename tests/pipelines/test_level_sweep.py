"""A trained scene under a moving level of detail: nothing pops."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.train import train

from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.settings import load_settings
from infnerf_tiles.synthetic.capture import write_city_dataset


@pytest.mark.slow
def test_halving_the_step_of_the_wanted_level_halves_the_largest_change_of_a_pixel(tmp_path: Path) -> None:
    """Over three levels and a band border, in held-out views of a trained city."""
    data, scene_path = tmp_path / "city", str(tmp_path / "city.zarr")
    write_city_dataset(data, blocks=(2, 2), num_photos=40, size=(192, 144), supersample=2)
    build(data, scene_path, load_settings("demo", ["training.passes=0.6"]))
    train(scene_path)
    with Scene.open(scene_path) as scene, Renderer(scene) as renderer:
        assert len(scene.header.band_levels) > 1
        for row in np.flatnonzero(scene.is_test)[:2]:
            camera, pose = scene.cameras.camera(int(row)).scaled_down(2), scene.cameras.camera_to_world[row]
            largest = []
            for steps in (24, 48, 96):
                biases = np.linspace(-3.2, -0.2, steps + 1)
                pictures = (renderer.render(camera, pose, lod_bias=float(bias)).rgb for bias in biases)
                largest.append(max(float(np.abs(a - b).max()) for a, b in pairwise(pictures)))
            for whole, half in pairwise(largest):
                assert half == pytest.approx(whole / 2, rel=0.2), largest
