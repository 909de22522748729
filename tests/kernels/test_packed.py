"""Buffers of fixed capacity: what fits is what `march` gives, what does not is told."""

from dataclasses import fields
from types import ModuleType

import numpy as np
import pytest
import torch
from arenas import random_arena, random_octree, random_points, random_rays

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cpu, reference
from infnerf_tiles.kernels.arena import Arena, Gradients, MarchSettings, PackedSamples, Rays

EDGE = 50.0
SHAPE = FieldShape(cells=16, table_size=512, features=4)
SETTINGS = MarchSettings(near=1.0, step=1.5, gsd_root=EDGE / SHAPE.cells, lod_bias=-1.0)
TWINS = pytest.mark.parametrize("twin", [cpu, reference], ids=["cpu", "reference"])
COLUMNS = ("ray", "t", "dt", "wanted", "slot", "beta", "position", "blend", "slot_above", "position_above")


def scene(rng: np.random.Generator) -> tuple[Arena, Rays]:
    """Rays that meet matter where one treelet hands over to another."""
    while True:
        arena = random_arena(rng, random_octree(rng, 4, children=6.0), (0, 1, 2, 3), shape=SHAPE, fill=0.8)
        rays = random_rays(rng, 60, edge=EDGE, footprint=0.05)
        if bool((cpu.march(rays, arena, SETTINGS, keep=5, adapt=True).slot_above >= 0).any()):
            return arena, rays


def in_use(count: int) -> torch.Tensor:
    return torch.tensor([count], dtype=torch.int32)


@TWINS
def test_with_room_it_is_march(rng: np.random.Generator, twin: ModuleType) -> None:
    arena, rays = scene(rng)
    want = twin.march(rays, arena, SETTINGS, keep=5, adapt=True)
    out = PackedSamples.allocate(rays=60, capacity=want.count + 9, capacity_above=want.count)
    twin.march_packed(rays, arena, SETTINGS, num_rays=in_use(60), out=out, keep=5, adapt=True)
    assert int(out.count) == int(out.demand) == want.count
    assert out.ray_kept.all()
    assert torch.equal(out.ray_start, want.ray_start[:-1])
    assert torch.equal(out.ray_count, want.ray_start.diff().int())
    assert torch.equal(out.next_step, want.next_step)
    for name in COLUMNS:
        assert torch.equal(getattr(out, name)[: want.count], getattr(want, name)), name
    above = torch.nonzero(want.slot_above >= 0).squeeze(1)
    assert len(above)
    assert torch.equal(out.above_sample[: int(out.above_count)].long(), above)
    assert torch.equal(out.above_slot[: len(above)], want.slot_above[above])
    assert torch.equal(out.above_position[: len(above)], want.position_above[above])


def test_rays_that_do_not_fit_are_left_out_from_the_first_on(rng: np.random.Generator) -> None:
    arena, rays = scene(rng)
    want = cpu.march(rays, arena, SETTINGS, limit=7)
    used = 50
    most = int(want.ray_start[used])
    start = torch.zeros(60, dtype=torch.int64)
    for capacity in (0, 1, most // 2, most - 1, most):
        out = PackedSamples.allocate(rays=60, capacity=capacity, capacity_above=2)
        cpu.march_packed(rays, arena, SETTINGS, num_rays=in_use(used), out=out, start=start, limit=7)
        fits = int((want.ray_start[1 : used + 1] <= capacity).sum())
        assert out.ray_kept.tolist() == [1] * fits + [0] * (60 - fits)
        assert int(out.count) == int(want.ray_start[fits]) <= capacity
        assert int(out.demand) == most
        assert not out.ray_count[fits:].any()
        assert torch.equal(out.ray_count[:fits], want.ray_start.diff()[:fits].int())
        assert torch.equal(out.next_step[:fits], want.next_step[:fits])
        assert out.next_step[fits:used].tolist() == [0] * (used - fits)
        assert (out.next_step[used:] == -1).all()
        m = int(out.count)
        assert torch.equal(out.t[:m], want.t[:m])
        # no room for a second evaluation: drawn by the treelet's own node alone
        wanted = torch.nonzero(want.slot_above[:m] >= 0).squeeze(1)
        assert torch.equal(torch.nonzero(out.slot_above[:m] >= 0).squeeze(1), wanted[:2])
        assert (out.blend[wanted[2:]] == 1).all()


def test_rows_behind_the_count_keep_what_they_held(rng: np.random.Generator) -> None:
    arena, rays = scene(rng)
    out = PackedSamples.allocate(rays=60, capacity=4000, capacity_above=4000)
    cpu.march_packed(rays, arena, SETTINGS, num_rays=in_use(60), out=out)
    before = {field.name: getattr(out, field.name).clone() for field in fields(out)}
    cpu.march_packed(rays, arena, SETTINGS, num_rays=in_use(3), out=out)
    m, a = int(out.count), int(out.above_count)
    assert m < int(before["count"])
    for name in COLUMNS:
        assert torch.equal(getattr(out, name)[m:], before[name][m:]), name
    assert torch.equal(out.above_sample[a:], before["above_sample"][a:])


@TWINS
def test_counted_encode(rng: np.random.Generator, twin: ModuleType) -> None:
    arena = random_arena(rng, random_octree(rng, 3), shape=SHAPE)
    samples = random_points(rng, arena, 80)
    whole = torch.empty(80, 4)
    twin.encode_into(*samples, arena, whole)
    rows = [column.clone() for column in samples]
    rows[1][50:] = -9
    out = torch.full((80, 4), torch.nan)
    twin.encode_into(*rows, arena, out, count=in_use(50))
    assert torch.equal(out[:50], whole[:50])
    assert not out[50:].any()
    few, many = (Gradients(arena.level.shape[0], 512, arena.dense.shape[0], 4) for _ in range(2))
    torch.autograd.backward(twin.encode(*(s[:50] for s in samples), arena, few).sum())
    features = twin.encode(*rows, arena, many, count=in_use(50))
    assert torch.equal(features.detach(), out)
    torch.autograd.backward(features.sum())
    assert torch.equal(few.tables, many.tables)
    assert torch.equal(few.mark_dense, many.mark_dense)


@TWINS
def test_counted_composite(rng: np.random.Generator, twin: ModuleType) -> None:
    count = torch.tensor([3, 0, 5, 2], dtype=torch.int32)
    start = torch.cumsum(count, 0) - count
    columns = [torch.from_numpy(rng.uniform(0.5, 1.5, s)).float() for s in (10, (10, 3), 10, 10)]
    padded = [torch.cat([c, torch.full((4, *c.shape[1:]), torch.nan)]) for c in columns]
    leaves = padded[0].requires_grad_(), padded[1].requires_grad_()
    offsets = torch.tensor([0, 3, 3, 8, 10])
    want = twin.composite(offsets, *columns, stop=1e-4)
    got = twin.composite(start, *padded, stop=1e-4, ray_count=count)
    for k in range(3):
        assert torch.equal(got[k], want[k])
    assert torch.equal(got[3][:10], want[3])
    assert not got[3][10:].any()
    torch.autograd.backward(got[0].sum() + got[1].sum())
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad[:10].abs().sum() > 0
        assert not leaf.grad[10:].any()
    state = {"colour_out": torch.zeros(4, 3), "transmittance_out": torch.ones(4), "depth_out": torch.zeros(4)}
    weights = torch.full((14,), 7.0)
    twin.composite_into(start, *padded, 1e-4, **state, weights_out=weights, ray_count=count)
    for value, exact in zip(state.values(), want, strict=False):
        assert torch.equal(value, exact)
    assert torch.equal(weights[:10], want[3])
    assert (weights[10:] == 7).all()
