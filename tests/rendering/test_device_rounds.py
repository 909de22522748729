"""Drawing in lanes and rounds that do not wait for the host: run here with the processor's kernels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rendering.random_scenes import CAMERA, make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.arrays import Float64
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering import device_rounds
from infnerf_tiles.rendering.accounts import smallest_working_set
from infnerf_tiles.rendering.device_block import Painter
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.waiting import Aborted

POSE = pose((50.0, 35.0, 22.0))
LAYERS = ("rgb", "transmittance", "depth", "level")
SMALL = Camera("SIMPLE_PINHOLE", 24, 18, (30.0, 12.0, 9.0))


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Half-transparent matter, finer towards the middle, in two bands."""
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-3.0))


def in_rounds(scene: Scene, budget: int | None = None, *, lanes: int = 64, **options: Any) -> Renderer:
    """A renderer whose blocks are drawn as on a GPU, on the processor."""
    renderer = Renderer(scene, budget, threads=1, **options)
    renderer._painter = Painter(scene, torch.device("cpu"), lanes=lanes)
    return renderer


def drawn(scene: Scene, camera: Camera = CAMERA, place: Float64 = POSE, **options: Any) -> Picture:
    with in_rounds(scene, **options) as renderer:
        return renderer.render(camera, place)


def plain(scene: Scene, camera: Camera = CAMERA, place: Float64 = POSE) -> Picture:
    with Renderer(scene, threads=1) as renderer:
        return renderer.render(camera, place)


def assert_close(a: Picture, b: Picture, tolerance: float = 2e-5) -> None:
    for name in LAYERS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, err_msg=name)


def differing(a: Picture, b: Picture) -> list[str]:
    """Layers that are not bit-equal."""
    return [name for name in LAYERS if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)]


def test_lanes_draw_what_packets_draw(scene: Scene) -> None:
    assert_close(drawn(scene), plain(scene))


def test_rays_that_nothing_stops_have_the_same_samples(scene: Scene) -> None:
    endless = scene.settings.rendering.model_copy(update={"stop_transmittance": 0.0})
    through = replace(scene, settings=scene.settings.model_copy(update={"rendering": endless}))
    a, b = drawn(through, SMALL), plain(through, SMALL)
    assert a.num_samples == b.num_samples > 1000
    assert_close(a, b)


def test_neither_lanes_nor_blocks_nor_rounds_change_a_bit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(scene, SMALL)
    assert differing(drawn(scene, SMALL, lanes=7), whole) == []
    assert differing(drawn(scene, SMALL, lanes=1 << 10), whole) == []
    assert differing(drawn(scene, SMALL, block=11), whole) == []
    monkeypatch.setattr(device_rounds, "LOOK_EVERY", 1)
    assert differing(drawn(scene, SMALL), whole) == []


@pytest.mark.parametrize("share", [1.0, 1.7])
def test_any_budget_gives_the_same_bits(scene: Scene, share: float) -> None:
    budget = int(share * smallest_working_set(scene.index, scene.shape))
    with in_rounds(scene, budget) as renderer:
        picture = renderer.render(SMALL, POSE)
        assert renderer.cache.counters.evictions > 0
        assert renderer.cache.peak_bytes <= budget
    assert differing(picture, drawn(scene, SMALL)) == []


def test_hidden_nodes_are_not_asked_for(scene: Scene) -> None:
    assert differing(drawn(scene, SMALL, eager_nodes=1), drawn(scene, SMALL)) == []


def test_a_wide_lens_is_drawn(scene: Scene) -> None:
    fisheye = Camera("OPENCV_FISHEYE", 30, 30, (10.0, 10.0, 15.0, 15.0, 0.01, 0.0, 0.0, 0.0))
    inside = pose((3.0, 2.0, 1.0), (10.0, 2.0, 1.0))
    assert_close(drawn(scene, fisheye, inside), plain(scene, fisheye, inside))


def test_colour_transforms_and_empty_views(scene: Scene) -> None:
    affine = np.array([[0.5, 0.1, 0.0, 0.2], [0.0, 0.7, 0.0, -0.1], [0.3, 0.0, 1.0, 0.0]])
    away = pose((60.0, 0.0, 0.0), (100.0, 3.0, 0.0))
    with in_rounds(scene) as ours, Renderer(scene, threads=1) as theirs:
        assert_close(ours.render(SMALL, POSE, affine=affine), theirs.render(SMALL, POSE, affine=affine))
        nothing = ours.render(SMALL, away)
        assert_close(nothing, theirs.render(SMALL, away))
    assert nothing.num_samples == 0
    assert np.isinf(nothing.depth).all()


def test_a_picture_nobody_wants_is_given_up_and_the_next_one_is_whole(scene: Scene) -> None:
    asked: list[bool] = []

    def abort() -> bool:
        asked.append(True)
        return len(asked) > 3

    with in_rounds(scene) as renderer:
        with pytest.raises(Aborted):
            renderer.render(CAMERA, POSE, abort=abort)
        assert differing(renderer.render(CAMERA, POSE), drawn(scene)) == []


def test_reading_ahead_selects_the_same_nodes(scene: Scene) -> None:
    with in_rounds(scene, 1 << 30, read_ahead=True) as renderer:
        renderer.prefetch(SMALL, POSE)
        ahead = set(renderer.cache.coming_keys.tolist())
        renderer.render(SMALL, POSE)
        assert set(renderer.cache.resident_keys.tolist()) <= ahead | set(renderer.cache.resident_keys.tolist())
        assert renderer.cache.counters.ready > 0
