"""Compositing: closed forms, gradients against autograd, and a carry that cannot be told from one go."""

import math
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from infnerf_tiles.kernels import cpu, reference

NEVER = 0.0
Packed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""ray_start, sigma, colour, t, dt."""


def random_packet(rng: np.random.Generator, rays: int, *, longest: int = 40, thickness: float = 0.1) -> Packed:
    """Rays of 0 to `longest` samples, each sample about `thickness` optically thick, some empty, some opaque."""
    counts = rng.integers(0, longest + 1, rays) * (rng.random(rays) > 0.2)
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    m = int(start[-1])
    dt = rng.uniform(0.05, 0.2, m)
    sigma = rng.exponential(thickness, m) / dt
    kind = rng.random(m)
    sigma[kind < 0.2] = 0.0
    sigma[kind > 0.98] = 1e4
    t = np.concatenate([5.0 + np.cumsum(dt[a:b]) for a, b in pairwise(start)] or [dt])
    columns = (sigma, rng.random((m, 3)), t, dt)
    return start, *(torch.from_numpy(np.asarray(c)).float() for c in columns)  # type: ignore[return-value]


def as_float64(packet: Packed) -> Packed:
    start, *columns = packet
    return start, *(c.double() for c in columns)  # type: ignore[return-value]


@pytest.mark.parametrize("rays", [0, 1, 2, 257])
@pytest.mark.parametrize("stop", [NEVER, 1e-4, 0.3])
def test_twins_agree(rng: np.random.Generator, rays: int, stop: float) -> None:
    packet = random_packet(rng, rays)
    exact = reference.composite(*as_float64(packet), stop=stop)
    for twin in (cpu, reference):
        results = twin.composite(*packet, stop=stop)
        # where T comes within rounding of `stop`, twins may end a ray at different samples: of weight below `stop`
        room = stop * 1.001 if stop < 1e-3 else 3e-6
        if stop == 0.3 and rays > 2:
            sure = (exact[1] > 0.3001) | (exact[1] < 0.2)
            assert sure.sum() > rays / 4
            results = tuple(r[sure] for r in results[:3])
            expected = tuple(e[sure] for e in exact[:3])
        else:
            expected = exact
        for got, want, scale in zip(results, expected, (1.0, 1.0, 10.0, 1.0), strict=False):
            torch.testing.assert_close(got.double(), want, atol=max(room, 3e-6) * scale, rtol=0.0)


def test_no_samples_leave_rays_clear() -> None:
    start = torch.zeros(4, dtype=torch.int64)
    empty = torch.zeros(0)
    for twin in (cpu, reference):
        colour, trans, depth, weights = twin.composite(start, empty, torch.zeros(0, 3), empty, empty, stop=1e-4)
        assert colour.tolist() == [[0.0] * 3] * 3
        assert trans.tolist() == [1.0] * 3
        assert depth.tolist() == [0.0] * 3
        assert weights.shape == (0,)


@pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
def test_a_slab_of_one_colour(twin: ModuleType) -> None:
    """n steps through constant density and colour: exactly 1 - exp(-sigma L), however it is cut."""
    for n, sigma, length in ((1, 0.7, 2.0), (64, 0.7, 2.0), (1000, 3.0, 0.5)):
        start = torch.tensor([0, n])
        dt = torch.full((n,), length / n)
        t = 1.0 + (torch.arange(n) + 0.5) * length / n
        rgb = torch.tensor([0.2, 0.5, 1.0])
        colour, trans, depth, weights = twin.composite(
            start, torch.full((n,), sigma), rgb.expand(n, 3), t, dt, stop=NEVER
        )
        opacity = 1 - math.exp(-sigma * length)
        torch.testing.assert_close(trans, torch.tensor([1 - opacity]), rtol=1e-4, atol=0.0)
        torch.testing.assert_close(colour, rgb[None] * opacity, rtol=1e-4, atol=0.0)
        torch.testing.assert_close(weights.sum(), torch.tensor(opacity), rtol=1e-4, atol=0.0)
        if n > 1:
            # the mean of t under sigma exp(-sigma (t - 1)), times the opacity
            expected = opacity + 1 / sigma - math.exp(-sigma * length) * (length + 1 / sigma)
            torch.testing.assert_close(depth, torch.tensor([expected]), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
def test_an_opaque_sample_hides_what_is_behind(twin: ModuleType) -> None:
    start = torch.tensor([0, 3])
    sigma = torch.tensor([0.0, torch.inf, 5.0])
    colour = torch.tensor([[9.0, 9.0, 9.0], [0.1, 0.2, 0.3], [9.0, 9.0, 9.0]])
    t, dt = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
    rgb, trans, depth, weights = twin.composite(start, sigma, colour, t, dt, stop=NEVER)
    assert torch.equal(rgb, colour[1:2])
    assert trans.tolist() == [0.0]
    assert depth.tolist() == [2.0]
    assert weights.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
def test_at_the_stop_is_not_below_it(twin: ModuleType) -> None:
    sigma = torch.tensor([0.0, 0.7, 0.7], requires_grad=True)
    ones = torch.ones(3)
    _, trans, _, weights = twin.composite(torch.tensor([0, 3]), sigma, torch.ones(3, 3), ones, ones, stop=1.0)
    through = math.exp(-0.7)
    torch.testing.assert_close(trans.detach(), torch.tensor([through]))
    torch.testing.assert_close(weights.detach(), torch.tensor([0.0, 1 - through, 0.0]))
    torch.autograd.backward(trans.sum())
    assert sigma.grad is not None
    torch.testing.assert_close(sigma.grad, torch.tensor([-through, -through, 0.0]))


def test_weights_and_transmittance_make_one(rng: np.random.Generator) -> None:
    packet = random_packet(rng, 300)
    for stop in (NEVER, 0.2):
        _, trans, _, weights = cpu.composite(*packet, stop=stop)
        ray = torch.repeat_interleave(packet[0].diff())
        total = torch.zeros(300).index_add(0, ray, weights) + trans
        torch.testing.assert_close(total, torch.ones(300), atol=1e-5, rtol=0.0)


def test_a_ray_ends_at_its_first_sample_below_stop(rng: np.random.Generator) -> None:
    start, sigma, colour, t, dt = random_packet(rng, 200, thickness=0.3)
    _, trans, _, weights = cpu.composite(start, sigma, colour, t, dt, stop=0.25)
    ended = 0
    for q in range(200):
        own = slice(int(start[q]), int(start[q + 1]))
        before = torch.cumprod(torch.exp(-sigma[own].double() * dt[own].double()), 0)
        before = torch.cat([torch.ones(1).double(), before])
        if ((before - 0.25).abs() < 1e-5).any():
            continue
        live = before[:-1] >= 0.25
        assert torch.equal(weights[own] > 0, live & (sigma[own] > 0))
        last = before[int(live.sum())]
        torch.testing.assert_close(trans[q].double(), last, atol=1e-5, rtol=0.0)
        ended += int(not live.all())
    assert ended > 20


@pytest.mark.parametrize("stop", [NEVER, 0.05])
@pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
def test_going_on_is_bit_equal_to_one_go(rng: np.random.Generator, twin: ModuleType, stop: float) -> None:
    """The ray is cut at every sample in turn."""
    longest = 25
    m = int(longest)
    _, sigma, colour, t, dt = random_packet(rng, 400, longest=m)
    # one ray repeated, cut behind sample 0, 1, ... of it
    one = [c[:m] for c in (sigma, colour, t, dt)]
    assert len(one[0]) == m
    whole = twin.composite(torch.tensor([0, m]), *one, stop=stop)
    for cut in range(m + 1):
        state = {
            "colour_out": torch.zeros(1, 3),
            "transmittance_out": torch.ones(1),
            "depth_out": torch.zeros(1),
        }
        weights = []
        for part in (slice(0, cut), slice(cut, m)):
            columns = [c[part] for c in one]
            own = torch.full((len(columns[0]),), torch.nan)
            start = torch.tensor([0, len(own)])
            twin.composite_into(start, *columns, stop, **state, weights_out=own)
            weights.append(own)
        for got, want in zip((*state.values(), torch.cat(weights)), whole, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("stop", [NEVER, 0.1])
@pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
def test_going_on_in_ragged_packets(rng: np.random.Generator, twin: ModuleType, stop: float) -> None:
    """Every ray is cut somewhere else."""
    packet = random_packet(rng, 150)
    start, *columns = packet
    whole = twin.composite(*packet, stop=stop)
    cut = start[:-1] + (torch.from_numpy(rng.random(150)) * (start.diff() + 1)).long()
    rank = torch.arange(len(columns[0]))
    ray = torch.repeat_interleave(start.diff())
    state = {"colour_out": torch.zeros(150, 3), "transmittance_out": torch.ones(150), "depth_out": torch.zeros(150)}
    for chosen in (rank < cut[ray], rank >= cut[ray]):
        counts = torch.zeros(151, dtype=torch.int64)
        counts[1:] = torch.bincount(ray[chosen], minlength=150)
        parts = [c[chosen] for c in columns]
        twin.composite_into(counts.cumsum(0), *parts, stop, **state, weights_out=torch.empty(len(parts[0])))
    for got, want in zip(state.values(), whole, strict=False):
        assert torch.equal(got, want)


@pytest.mark.parametrize("stop", [NEVER, 1e-4, 0.1])
def test_gradients_are_autograds(rng: np.random.Generator, stop: float) -> None:
    packet = random_packet(rng, 150, thickness=0.15)
    start, sigma, colour, t, dt = packet
    # a ray whose T passes within rounding of `stop` may end elsewhere in float64; such rays go
    exact_in = as_float64(packet)
    ray = torch.repeat_interleave(start.diff())
    towards = [torch.from_numpy(rng.normal(size=s)) for s in ((150, 3), (150,), (150,), (len(sigma),))]
    unsure = _near_stop(start, sigma, dt, stop)
    for k in range(3):
        towards[k][unsure] = 0.0
    towards[3][unsure[ray]] = 0.0
    exact_sigma, exact_colour = exact_in[1].requires_grad_(), exact_in[2].requires_grad_()
    outs = reference.composite(start, exact_sigma, exact_colour, *exact_in[3:], stop=stop)
    torch.autograd.backward(outs, towards)
    assert exact_sigma.grad is not None
    assert exact_colour.grad is not None
    assert unsure.sum() < 10
    for twin in (cpu, reference):
        own_sigma, own_colour = sigma.clone().requires_grad_(), colour.clone().requires_grad_()
        outs = twin.composite(start, own_sigma, own_colour, t, dt, stop=stop)
        torch.autograd.backward(outs, [g.float() for g in towards])
        assert own_sigma.grad is not None
        assert own_colour.grad is not None
        # values up to about 10 (depth), 40 samples to a ray, dt below 0.2
        torch.testing.assert_close(own_sigma.grad.double(), exact_sigma.grad, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(own_colour.grad.double(), exact_colour.grad, atol=2e-6, rtol=1e-4)


def _near_stop(start: Tensor, sigma: Tensor, dt: Tensor, stop: float) -> Tensor:
    """bool [Q]: rays whose transmittance passes so close to `stop` that rounding decides where they end."""
    rows = []
    for q in range(len(start) - 1):
        own = slice(int(start[q]), int(start[q + 1]))
        trans = torch.cumprod(torch.exp(-sigma[own].double() * dt[own].double()), 0)
        rows.append(bool(((trans / max(stop, 1e-30) - 1).abs() < 1e-4).any()))
    return torch.tensor(rows, dtype=torch.bool)


def test_only_what_is_asked_for_gets_a_gradient(rng: np.random.Generator) -> None:
    start, sigma, colour, t, dt = random_packet(rng, 20)
    sigma.requires_grad_()
    _, trans, _, _ = cpu.composite(start, sigma, colour, t, dt, stop=NEVER)
    torch.autograd.backward(trans.log().clamp(min=-50).sum())
    # T = exp(-sum sigma dt): every sample of a ray that lets light through counts by its length
    ray = torch.repeat_interleave(start.diff())
    assert sigma.grad is not None
    through = trans.detach()[ray] > 1e-20
    assert through.any()
    torch.testing.assert_close(sigma.grad[through], -dt[through], rtol=1e-4, atol=0.0)


def test_same_bits_every_time_and_for_any_thread_count(rng: np.random.Generator) -> None:
    start, sigma, colour, t, dt = random_packet(rng, 1000)
    runs = []
    try:
        for threads in (1, None, None):
            cpu.set_threads(threads)
            own_sigma, own_colour = sigma.clone().requires_grad_(), colour.clone().requires_grad_()
            outs = cpu.composite(start, own_sigma, own_colour, t, dt, stop=1e-3)
            torch.autograd.backward(outs[0].square().sum())
            assert own_sigma.grad is not None
            assert own_colour.grad is not None
            runs.append([*(o.detach() for o in outs), own_sigma.grad, own_colour.grad])
    finally:
        cpu.set_threads()
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_strided_columns(rng: np.random.Generator) -> None:
    start, sigma, colour, t, dt = random_packet(rng, 30)
    both = torch.stack([sigma, t], dim=1)
    strided = cpu.composite(start, both[:, 0], colour.T.contiguous().T, both[:, 1], dt, stop=NEVER)
    for got, want in zip(strided, cpu.composite(start, sigma, colour, t, dt, stop=NEVER), strict=True):
        assert torch.equal(got, want)
