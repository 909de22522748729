"""Adam of the shared parameters on the processor: torch's own is its oracle."""

import numpy as np
import pytest
import torch

from infnerf_tiles.training.shared_optimizer import HostAdam


def _parameters(generator: torch.Generator) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (3,), (4, 4))]


@pytest.mark.parametrize("stop", [0, 17])
def test_it_is_torchs_adam_to_the_last_bit_across_a_checkpoint_too(stop: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mine = _parameters(generator)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    oracle = torch.optim.Adam(theirs, lr=1e-3, betas=(0.9, 0.99), eps=1e-15)
    adam = HostAdam(mine)
    for step in range(40):
        if step == stop:
            kept = {name: array.copy() for name, array in adam.save().items()}
            adam = HostAdam(mine)
            adam.load(kept)
        for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if k == 2 and step % 3:  # a parameter without a gradient stays as it is
                continue
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        rate = 1e-3 * (1.0 - step / 50)
        for group in oracle.param_groups:
            group["lr"] = rate
        oracle.step()
        oracle.zero_grad(set_to_none=True)
        adam.update(rate)
        assert all(p.grad is None for p in mine)
        for a, b in zip(mine, theirs, strict=True):
            assert np.array_equal(a.detach().numpy(), b.detach().numpy())
