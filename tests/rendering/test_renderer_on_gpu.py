"""Pictures drawn on a GPU: those of the processor but for the decoder's number format, and always the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train
from rendering.random_scenes import CAMERA, make_scene, near_keys, pose
from training.small_scenes import build_scene, tiny, write_city
from zarr.storage import MemoryStore

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.waiting import Aborted

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

POSE = pose((50.0, 35.0, 22.0))
LARGE = Camera("SIMPLE_PINHOLE", 640, 480, (800.0, 320.0, 240.0))
LAYERS = ("rgb", "transmittance", "depth", "level")


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Half-transparent matter, finer towards the middle, in two bands."""
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-3.0))


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def differing(a: Picture, b: Picture) -> list[str]:
    """Layers that are not bit-equal."""
    return [name for name in LAYERS if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)]


def drawn(
    scene: Scene, camera: Camera = LARGE, place: Float64 = POSE, budget: int | None = None, **options: Any
) -> Picture:
    with Renderer(scene, budget, device="cuda", **options) as renderer:
        return renderer.render(camera, place)


def test_the_picture_is_the_processors(scene: Scene) -> None:
    with Renderer(scene, device="cpu") as renderer:
        want = renderer.render(CAMERA, POSE)
    got = drawn(scene, CAMERA)
    assert 0.5 < got.num_samples / want.num_samples < 2.5
    assert np.abs(got.rgb - want.rgb).mean() < 2e-3
    assert np.quantile(np.abs(got.rgb - want.rgb), 0.99) < 2e-2
    assert np.quantile(np.abs(got.transmittance - want.transmittance), 0.99) < 2e-2
    both = np.isfinite(got.depth) & np.isfinite(want.depth)
    assert both.mean() > 0.5
    assert np.quantile(np.abs(got.depth[both] / want.depth[both] - 1.0), 0.95) < 2e-2
    assert np.quantile(np.abs(got.level[both] - want.level[both]), 0.95) < 5e-2


def test_two_pictures_are_equal_bit_by_bit(scene: Scene) -> None:
    first = drawn(scene)
    with Renderer(scene, device="cuda") as renderer:
        renderer.render(CAMERA, pose((-20.0, 5.0, 10.0)))
        for _ in range(3):
            assert differing(renderer.render(LARGE, POSE), first) == []


def test_budget_and_blocks_change_no_bit(scene: Scene) -> None:
    small = Camera("SIMPLE_PINHOLE", 24, 18, (30.0, 12.0, 9.0))
    whole = drawn(scene, small)
    with Renderer(scene, device="cuda") as renderer:
        smallest = renderer.cache.smallest_working_set
    for share in (1.0, 2.0):
        with Renderer(scene, int(share * smallest), device="cuda") as renderer:
            assert differing(renderer.render(small, POSE), whole) == []
            assert renderer.cache.counters.evictions > 0
            assert renderer.cache.peak_bytes <= share * smallest
    assert differing(drawn(scene, small, block=11), whole) == []
    assert differing(drawn(scene, small, eager_nodes=1), whole) == []


def test_a_crowd_of_lanes_is_refilled(scene: Scene) -> None:
    """More rays than lanes, so that every lane is used again and again."""
    large = Camera("SIMPLE_PINHOLE", 1280, 720, (1600.0, 640.0, 360.0))
    with Renderer(scene, device="cuda") as renderer:
        whole = renderer.render(large, POSE)
        assert np.isfinite(whole.rgb).all()
        part = drawn(scene, large, block=97)
    assert differing(part, whole) == []


def test_distorted_cameras_films_and_aborted_pictures(scene: Scene) -> None:
    fisheye = Camera("OPENCV_FISHEYE", 200, 200, (65.0, 65.0, 100.0, 100.0, 0.01, 0.0, 0.0, 0.0))
    inside = pose((3.0, 2.0, 1.0), (10.0, 2.0, 1.0))
    whole = drawn(scene, fisheye, inside)
    assert differing(drawn(scene, fisheye, inside, block=33), whole) == []
    with Renderer(scene, device="cuda", read_ahead=True) as renderer:
        renderer.prefetch(fisheye, inside)
        with pytest.raises(Aborted):
            renderer.render(LARGE, POSE, abort=iter([False, True]).__next__)
        assert differing(renderer.render(fisheye, inside), whole) == []


def test_a_scene_trained_on_the_gpu_is_scored_there(tmp_path: Path) -> None:
    city = write_city(tmp_path / "city", num_photos=16)
    settings = tiny("training.device=cuda", "training.samples_per_step=65536")
    place = build_scene(city, tmp_path / "scene", settings)
    assert train(place).failed == ()
    there, here = (evaluate(place, device=device, limit=2) for device in ("cuda", "cpu"))
    for a, b in zip(there.levels, here.levels, strict=True):
        assert a.psnr is not None
        assert b.psnr is not None
        assert abs(a.psnr - b.psnr) < 0.1
