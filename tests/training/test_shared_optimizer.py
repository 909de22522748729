"""Adam of the shared parameters: torch's own is its oracle where every entry has a gradient."""

import numpy as np
import pytest
import torch
from training.small_scenes import new_shared

from infnerf_tiles.kernels.arena import adam_scalars
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.shared_optimizer import SharedOptimizer

HERE = torch.device("cpu")


def _optimizer(shared: Shared) -> SharedOptimizer:
    return SharedOptimizer(shared, HERE)


def _gradients(shared: Shared, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(p.shape, generator=generator) for p in shared.parameters()]


@pytest.mark.parametrize("stop", [0, 17])
def test_it_is_torchs_adam_across_a_checkpoint_too(stop: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = new_shared(5), new_shared(5)
    oracle = torch.optim.Adam(theirs.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-15)
    optimizer = _optimizer(mine)
    for step in range(40):
        if step == stop:
            kept = optimizer.save()
            optimizer = _optimizer(mine)
            optimizer.load(kept)
        gradients = _gradients(mine, generator)
        rate = 1e-3 * (1.0 - step / 50)
        for group in oracle.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        oracle.step()
        optimizer.update(gradients, torch.tensor(adam_scalars(step + 1, rate)))
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_failed_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    shared = new_shared(5)
    optimizer = _optimizer(shared)
    optimizer.update(_gradients(shared, generator), torch.tensor(adam_scalars(1, 1e-2)))
    before, moments = [p.detach().clone() for p in shared.parameters()], optimizer.save()
    gradients: list[torch.Tensor | None] = [torch.full_like(p, torch.nan) for p in before]
    scalars = torch.tensor(adam_scalars(2, 1e-2))
    optimizer.update(gradients, scalars, torch.zeros(1, dtype=torch.uint8))
    assert all(torch.equal(now, then) for now, then in zip(shared.parameters(), before, strict=True))
    assert all(np.array_equal(array, moments[name]) for name, array in optimizer.save().items())
    # without a gradient a parameter goes on by its momentum
    optimizer.update([None] * len(before), scalars, torch.ones(1, dtype=torch.uint8))
    assert all((now != then).any() for now, then in zip(shared.parameters(), before, strict=True))


def test_parameters_keep_their_values_and_shapes() -> None:
    shared = new_shared(3)
    before = [p.detach().clone() for p in shared.parameters()]
    _optimizer(shared)
    for now, then in zip(shared.parameters(), before, strict=True):
        assert torch.equal(now, then)
