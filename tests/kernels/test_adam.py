"""Adam: torch's own where every entry has a gradient, and untouched entries where there is none."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from infnerf_tiles.kernels import cpu, reference
from infnerf_tiles.kernels.arena import adam_scalars

TWINS = pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])


def state(value: Tensor) -> dict[str, Tensor]:
    return {
        "value": value.clone(),
        "gradient": torch.zeros_like(value),
        "first": torch.zeros_like(value),
        "second": torch.zeros_like(value),
        "touched": torch.zeros(value.shape[0], dtype=torch.uint8),
    }


def update(twin: ModuleType, own: dict[str, Tensor], *, step: int, rate: float) -> None:
    twin.adam(**own, step=step, rate=rate)


def random_gradient(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    """Spread over many magnitudes, as hash grids see them; never zero."""
    size = 10.0 ** rng.uniform(-9, 2, shape)
    return torch.from_numpy(size * rng.choice([-1.0, 1.0], shape)).float()


@TWINS
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (300, 32), (7, 3)])
def test_every_entry_moving_is_torchs_adam(rng: np.random.Generator, twin: ModuleType, shape: tuple[int, int]) -> None:
    start = torch.from_numpy(rng.normal(size=shape)).float()
    own = state(start)
    # in float64 with the formula's eps, so that only our rounding is left
    leaf = start.double().requires_grad_()
    oracle = torch.optim.Adam([leaf], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    for step in range(1, 12):
        gradient = random_gradient(rng, shape)
        leaf.grad = gradient.double()
        oracle.step()
        own["gradient"].copy_(gradient)
        own["touched"].fill_(1)
        update(twin, own, step=step, rate=1e-2)
        assert not own["gradient"].any()
        assert not own["touched"].any()
    torch.testing.assert_close(own["value"].double(), leaf.detach(), atol=2e-6, rtol=1e-6)


@TWINS
def test_entries_without_gradient_stay(rng: np.random.Generator, twin: ModuleType) -> None:
    own = state(torch.from_numpy(rng.normal(size=(50, 8))).float())
    own["first"], own["second"] = own["value"] * 0.3, own["value"].square()
    before = {name: tensor.clone() for name, tensor in own.items()}
    has = torch.from_numpy(rng.random((50, 8)) < 0.4)
    own["gradient"][has] = random_gradient(rng, (50, 8))[has]
    own["touched"] = torch.ones(50, dtype=torch.uint8)
    update(twin, own, step=3, rate=0.1)
    for name in ("value", "first", "second"):
        assert torch.equal(own[name][~has], before[name][~has])
    assert (own["value"][has] != before["value"][has]).all()
    assert (own["first"][has] != before["first"][has]).all()


@TWINS
def test_blocks_that_are_not_touched_are_passed_over(rng: np.random.Generator, twin: ModuleType) -> None:
    own = state(torch.ones(10, 4))
    own["gradient"].copy_(random_gradient(rng, (10, 4)))
    waiting = own["gradient"].clone()
    touched = torch.from_numpy(rng.permutation(np.repeat([0, 1], 5))).to(torch.uint8)
    own["touched"] = touched.clone()
    update(twin, own, step=1, rate=0.1)
    skipped = touched == 0
    assert (own["value"][skipped] == 1).all()
    assert torch.equal(own["gradient"][skipped], waiting[skipped])
    assert not own["gradient"][~skipped].any()
    # a first step goes by the rate against the gradient's sign
    torch.testing.assert_close(own["value"][~skipped], 1 - 0.1 * waiting[~skipped].sign(), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("width", [1, 15, 16, 64, 83])
def test_twins_agree(rng: np.random.Generator, width: int) -> None:
    start = torch.from_numpy(rng.normal(size=(400, width))).float()
    fast, slow = state(start), state(start)
    added = torch.zeros_like(start)
    for step in range(1, 6):
        # entries without gradient alone, in rows, and in lines of them
        gradient = random_gradient(rng, (400, width)) * torch.from_numpy(rng.random((400, width)) < 0.5)
        gradient[torch.from_numpy(rng.random(400) < 0.2)] = 0.0
        gradient[torch.from_numpy(rng.random(400) < 0.2), : width // 2] = 0.0
        touched = torch.from_numpy((rng.random(400) < 0.7).astype(np.uint8))
        added += gradient.abs() * touched[:, None]
        for own, twin in ((fast, cpu), (slow, reference)):
            own["gradient"].copy_(gradient)
            own["touched"].copy_(touched)
            update(twin, own, step=step, rate=3e-3)
    for name in ("gradient", "touched"):
        assert torch.equal(fast[name], slow[name]), name
    # the reference computes in float64; gradients of both signs cancel in the first moment
    assert bool(((fast["first"] - slow["first"]).abs() <= 1e-6 * added).all())
    torch.testing.assert_close(fast["second"], slow["second"], rtol=2e-6, atol=0.0)
    torch.testing.assert_close(fast["value"], slow["value"], rtol=0.0, atol=1e-6)
    still = slow["second"] == 0.0
    assert torch.equal(fast["value"][still], start[still])


def test_same_bits_for_any_thread_count(rng: np.random.Generator) -> None:
    start = torch.from_numpy(rng.normal(size=(3000, 8))).float()
    gradient = random_gradient(rng, (3000, 8))
    runs = []
    try:
        for threads in (1, None):
            cpu.set_threads(threads)
            own = state(start)
            own["gradient"].copy_(gradient)
            own["touched"].fill_(1)
            update(cpu, own, step=1, rate=1e-2)
            runs.append(own)
    finally:
        cpu.set_threads()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_reference_keeps_float64() -> None:
    own = state(torch.ones(1, 1, dtype=torch.float64))
    own["gradient"].fill_(1e-3)
    own["touched"].fill_(1)
    update(reference, own, step=1, rate=1e-12)
    assert own["value"].item() == pytest.approx(1 - 1e-12, abs=1e-16)


@TWINS
def test_scalars_may_come_as_a_tensor(rng: np.random.Generator, twin: ModuleType) -> None:
    start = torch.from_numpy(rng.normal(size=(60, 8))).float()
    plain, given = state(start), state(start)
    for own in (plain, given):
        own["gradient"].copy_(torch.linspace(-1.0, 1.0, 480).view(60, 8))
        own["touched"].fill_(1)
    twin.adam(**plain, step=4, rate=1e-2)
    twin.adam(**given, scalars=torch.tensor(adam_scalars(4, 1e-2), dtype=torch.float64))
    for name in plain:
        assert torch.equal(plain[name], given[name]), name


@TWINS
def test_half_copies_follow_the_touched_blocks(rng: np.random.Generator, twin: ModuleType) -> None:
    own = state(torch.from_numpy(rng.normal(size=(60, 8))).float())
    half = torch.zeros(60, 8, dtype=torch.float16)
    own["gradient"].copy_(random_gradient(rng, (60, 8)))
    own["touched"][::2] = 1
    twin.adam(**own, step=1, rate=0.1, half=half)
    assert torch.equal(half[::2], own["value"][::2].half())
    assert not half[1::2].any()


@TWINS
def test_a_disabled_step_only_clears(rng: np.random.Generator, twin: ModuleType) -> None:
    own = state(torch.from_numpy(rng.normal(size=(60, 8))).float())
    own["gradient"].copy_(random_gradient(rng, (60, 8)))
    own["gradient"][2, 2] = torch.nan
    own["touched"][:30] = 1
    before = {name: tensor.clone() for name, tensor in own.items()}
    twin.adam(**own, step=1, rate=0.1, enabled=torch.zeros(1, dtype=torch.uint8))
    for name in ("value", "first", "second"):
        assert torch.equal(own[name], before[name])
    assert not own["gradient"][:30].any()
    assert torch.equal(own["gradient"][30:], before["gradient"][30:])
    assert not own["touched"].any()
    twin.adam(**{**before, "touched": before["touched"]}, step=1, rate=0.1, enabled=torch.ones(1, dtype=torch.uint8))
    assert not torch.equal(before["value"], own["value"])
