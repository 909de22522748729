"""The hand-over between treelets: opacities are mixed, evenly in `blend`."""

import numpy as np
import torch

from infnerf_tiles.kernels.hand_over import hand_over


def _inputs(rng: np.random.Generator, num: int = 500) -> tuple[torch.Tensor, ...]:
    """Densities from nothing to thousands of optical depths, with zeros; blends with both ends."""
    sigma, above = (torch.from_numpy(10.0 ** rng.uniform(-5, 5, num)) for _ in range(2))
    blend = torch.from_numpy(rng.uniform(0, 1, num))
    dt = torch.from_numpy(10.0 ** rng.uniform(-3, 1, num))
    sigma[:20], above[10:30] = 0.0, 0.0
    blend[::50], blend[1::50] = 0.0, 1.0
    return sigma, above, blend, dt


def test_opacity_is_linear_in_the_blend(rng: np.random.Generator) -> None:
    sigma, above, blend, dt = _inputs(rng)
    density, _ = hand_over(sigma, above, blend, dt)
    expected = -blend * torch.expm1(-sigma * dt) - (1 - blend) * torch.expm1(-above * dt)
    torch.testing.assert_close(-torch.expm1(-density * dt), expected, rtol=0, atol=1e-12)


def test_light_of_the_sample_is_the_mixture_of_both(rng: np.random.Generator) -> None:
    sigma, above, blend, dt = _inputs(rng)
    density, share = hand_over(sigma, above, blend, dt)
    own, other = torch.from_numpy(rng.random((2, len(blend))))
    light = -torch.expm1(-density * dt) * (share * own + (1 - share) * other)
    expected = -blend * torch.expm1(-sigma * dt) * own - (1 - blend) * torch.expm1(-above * dt) * other
    torch.testing.assert_close(light, expected, rtol=0, atol=1e-12)


def test_whole_samples_stay_as_they_are(rng: np.random.Generator) -> None:
    sigma, above, blend, dt = (values.float() for values in _inputs(rng))
    density, share = hand_over(sigma, above, torch.ones_like(blend), dt)
    assert torch.equal(density, sigma)
    assert torch.equal(share, torch.ones_like(share))


def test_empty_samples_and_rows_not_in_use_give_zero_and_finite_gradients() -> None:
    sigma = torch.tensor([0.0, 0.0, 1e6, 3e38], requires_grad=True)
    above = torch.tensor([0.0, 0.0, 1e6, 0.0])
    density, share = hand_over(sigma, above, torch.tensor([0.3, 0.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    (density + share).sum().backward()
    assert torch.equal(density[:2], torch.zeros(2))
    assert bool(torch.isfinite(density).all())
    assert sigma.grad is not None
    assert bool(torch.isfinite(sigma.grad).all())


def test_gradients_agree_with_finite_differences(rng: np.random.Generator) -> None:
    num = 40
    sigma, above = (torch.from_numpy(rng.uniform(0.1, 4.0, num)).requires_grad_() for _ in range(2))
    blend, dt = torch.from_numpy(rng.uniform(0.05, 0.95, num)), torch.from_numpy(rng.uniform(0.2, 2.0, num))
    assert torch.autograd.gradcheck(lambda a, b: hand_over(a, b, blend, dt), (sigma, above))
