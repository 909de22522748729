"""Loss terms against closed forms and slow twins."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from infnerf_tiles.volume.losses import colour_loss, distortion_loss, transparency_loss


def test_colour_losses(rng: np.random.Generator) -> None:
    prediction, target = torch.from_numpy(rng.random((40, 3))), torch.from_numpy(rng.random((40, 3)))
    error = (prediction - target).abs()
    torch.testing.assert_close(colour_loss("mse", prediction, target), (error**2).mean())
    huber = torch.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05)) / 0.1
    torch.testing.assert_close(colour_loss("huber", prediction, target, delta=0.1), huber.mean())
    # large errors count like L1: a slope of one
    assert colour_loss("huber", torch.tensor([2.0]), torch.tensor([0.0])).item() == pytest.approx(2.0 - 0.05)
    assert colour_loss("huber", target, target).item() == 0.0


def random_segments(rng: np.random.Generator, rays: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """weights, position, length, ray_start, ray; samples sorted along each ray, in log t: negative too."""
    counts = rng.integers(0, 15, rays)
    start = np.concatenate([[0], np.cumsum(counts)])
    m = int(start[-1])
    position = np.concatenate([np.sort(rng.uniform(-2.0, 5.0, n)) for n in counts] or [np.zeros(0)])
    columns = (rng.random(m) / 10, position, rng.uniform(0.0, 0.1, m))
    ray = torch.from_numpy(np.repeat(np.arange(rays), counts))
    return *(torch.from_numpy(c) for c in columns), torch.from_numpy(start), ray  # type: ignore[return-value]


def slow_distortion(weights: Tensor, position: Tensor, length: Tensor, ray_start: Tensor) -> Tensor:
    """Pair by pair."""
    total = weights.new_zeros(())
    for q in range(len(ray_start) - 1):
        own = slice(int(ray_start[q]), int(ray_start[q + 1]))
        w, s = weights[own], position[own]
        total = total + (w[:, None] * w[None] * (s[:, None] - s[None]).abs()).sum()
        total = total + (w**2 * length[own]).sum() / 3
    return total / (len(ray_start) - 1)


def test_distortion_is_the_sum_over_pairs(rng: np.random.Generator) -> None:
    weights, position, length, start, ray = random_segments(rng, 60)
    exact_weights, fast_weights = weights.clone().requires_grad_(), weights.float().requires_grad_()
    exact = slow_distortion(exact_weights, position, length, start)
    fast = distortion_loss(fast_weights, position.float(), length.float(), start, ray)
    torch.testing.assert_close(fast.double(), exact, rtol=1e-4, atol=1e-7)
    torch.autograd.backward(exact)
    torch.autograd.backward(fast)
    assert exact_weights.grad is not None
    assert fast_weights.grad is not None
    torch.testing.assert_close(fast_weights.grad.double(), exact_weights.grad, rtol=1e-3, atol=1e-6)


def test_distortion_of_one_and_of_two_samples() -> None:
    start, ray = torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int64)
    one = distortion_loss(torch.tensor([0.8]), torch.tensor([3.0]), torch.tensor([0.6]), start, ray)
    assert one.item() == pytest.approx(0.8**2 * 0.6 / 3)
    two = distortion_loss(
        torch.tensor([0.5, 0.25]), torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([0, 2]), torch.zeros(2).long()
    )
    assert two.item() == pytest.approx(2 * 0.5 * 0.25 * 2.0)


def test_distortion_of_nothing() -> None:
    empty = torch.zeros(0)
    for rays in (0, 3):
        start = torch.zeros(rays + 1, dtype=torch.int64)
        assert distortion_loss(empty, empty, empty, start, empty.long()).item() == 0.0


def test_rays_do_not_mix_in_the_distortion(rng: np.random.Generator) -> None:
    """A packet is the mean of its rays, even behind many others (whose sums must not swamp the small ones)."""
    weights, position, length, start, ray = (
        x.float() if x.is_floating_point() else x for x in random_segments(rng, 3000)
    )
    whole = distortion_loss(weights, position, length, start, ray)
    singles = []
    for q in range(2990, 3000):
        own = slice(int(start[q]), int(start[q + 1]))
        count = own.stop - own.start
        single = (weights[own], position[own], length[own], torch.tensor([0, count]), torch.zeros(count).long())
        singles.append(distortion_loss(*single))
    tail = slice(int(start[2990]), None)
    some = distortion_loss(weights[tail], position[tail], length[tail], start[2990:] - start[2990], ray[tail] - 2990)
    torch.testing.assert_close(some, torch.stack(singles).mean(), rtol=1e-4, atol=0.0)
    head = slice(0, int(start[2990]))
    rest = distortion_loss(weights[head], position[head], length[head], start[:2991], ray[head])
    torch.testing.assert_close(whole * 3000, rest * 2990 + some * 10, rtol=1e-4, atol=0.0)


def test_transparency_loss() -> None:
    sigma, gsd = torch.tensor([0.0, 2.0, 1e6]), torch.tensor([0.1, 0.5, 0.1])
    assert transparency_loss(sigma, gsd).item() == pytest.approx((0 + (1 - math.exp(-1)) + 1) / 3)
