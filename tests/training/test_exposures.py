"""Photos whose exposure goes with their direction: it belongs into their transforms, not into the place's colours."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from training import small_scenes
from training.small_scenes import ROOT, SHAPE, ball_keys, ball_photo, ball_trainer, new_shared, tiny

from infnerf_tiles.arrays import Float64, UInt8
from infnerf_tiles.field.decoder import direction_basis, faded_basis
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.training import workload
from infnerf_tiles.training.schedule import DIRECTIONS, directions_seen
from infnerf_tiles.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread: the work is too small to share out."""
    set_threads(1)
    yield
    set_threads(None)


def dimmed(cameras: PosedCameras, photo: int) -> UInt8:
    """The ball's photo, half as bright where the camera stands on one side of the ball."""
    rgb = ball_photo(cameras, photo)
    return rgb // 2 if cameras.centres[photo, 0] > 0.1 else rgb


def seen_from(t: Trainer, points: Float64, side: float) -> tuple[Tensor, Tensor]:
    """Colour [n, 3] of points on the ball as the scene has it, looked at from x = `side`, and its opacity [n]."""
    eyes = np.stack([np.full(len(points), side), 3.0 * np.sign(points[:, 1]), np.full(len(points), 1.5)], axis=1)
    directions = points - eyes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rays = Rays(
        origins=torch.from_numpy(ROOT.to_unit(eyes)),
        directions=torch.from_numpy(directions / ROOT.edge),
        footprint=torch.full((len(points),), 1 / 40.0, dtype=torch.float64),
        offset=torch.zeros(len(points), dtype=torch.float64),
    )
    kernels, arena = for_device(t.state.device), t.state.arena
    samples = kernels.march(rays, arena, t.frame.march, keep=64, adapt=True)
    features = torch.empty((samples.count, SHAPE.features))
    kernels.encode_into(samples.position, samples.slot, samples.beta, arena, features)
    basis = direction_basis(torch.from_numpy(directions))
    with torch.no_grad():
        sigma, colour = t.shared.decoder(features, basis[samples.ray.long()])
        rgb, transmittance, _, _ = kernels.composite(samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-4)
    opacity = 1.0 - transmittance
    return rgb / opacity[:, None].clamp(min=1e-3), opacity


def brightness_leak(seed: int) -> float:
    """Median log ratio of what points in the middle show to the side of the dim photos and to the other."""
    settings = tiny("training.samples_per_step=4096", "training.samples_per_ray=32")
    t = ball_trainer(ball_keys(2), settings=settings, total_rays=40_000, warm=False, shared=new_shared(8, seed=seed))
    t.run()
    rng = np.random.default_rng(seed)
    points: Float64 = rng.normal(size=(400, 3)) * [0.2, 1.0, 0.3]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    (dim, dim_opacity), (bright, bright_opacity) = (seen_from(t, points, side) for side in (4.0, -4.0))
    both = (dim_opacity > 0.3) & (bright_opacity > 0.3)
    assert int(both.sum()) > 20
    ratio = dim[both].mean(dim=1).clamp(min=0.01) / bright[both].mean(dim=1).clamp(min=0.01)
    return float(ratio.log().median())


def test_exposures_that_go_with_the_direction_stay_out_of_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_scenes, "ball_photo", dimmed)
    leak = brightness_leak(0)
    monkeypatch.setattr(workload, "directions_seen", lambda progress: 1.0)
    without = brightness_leak(0)
    assert without < -0.2  # the photos differ by 0.69
    assert abs(leak) < 0.6 * abs(without)


def test_directions_are_seen_late_but_for_good() -> None:
    start, full = DIRECTIONS
    assert directions_seen(0.0) == directions_seen(start) == 0.0
    assert directions_seen((start + full) / 2) == pytest.approx(0.5)
    assert directions_seen(full) == directions_seen(1.0) == 1.0


def test_only_what_finds_exposures_goes_without_directions() -> None:
    for learns in (True, False):
        for trainable in (True, False):
            shared = new_shared(8, trainable=trainable)
            shared.learns_appearance = learns
            t = ball_trainer(ball_keys(1), shared=shared)
            assert t.work.directions == (0.0 if learns and trainable else 1.0)


def test_a_faded_basis_keeps_its_constant(rng: np.random.Generator) -> None:
    basis = direction_basis(torch.from_numpy(rng.normal(size=(5, 3))))
    for share in (0.25, torch.tensor([0.25])):
        faded = faded_basis(basis, share)
        assert torch.equal(faded[:, 0], basis[:, 0])
        assert torch.equal(faded[:, 1:], basis[:, 1:] * 0.25)
    assert faded_basis(basis, 1.0) is basis  # no copy in the steps, most of them, that see all of it
