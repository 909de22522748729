"""One trainer on a small ball: what a step does, what stays frozen, what a checkpoint keeps."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from training.small_scenes import (
    SHAPE,
    ball_keys,
    ball_trainer,
    differences,
    frame,
    new_shared,
    state_arrays,
    tiny,
)

from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import evaluate_nodes, shade
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.training import checkpoint, trainer
from infnerf_tiles.training.host_step import HostStep
from infnerf_tiles.training.refresh import cell_optical_depth, refresh_occupancy
from infnerf_tiles.training.state import Frame, ResidentNodes
from infnerf_tiles.training.trainer import Trainer
from infnerf_tiles.volume.occupancy import pack_cells

TOP = NodeId(1, 0, 1, 0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread: the work is too small to share out."""
    set_threads(1)
    yield
    set_threads(None)


def host(t: Trainer) -> HostStep:
    """The trainer's kind of step."""
    assert isinstance(t.stepper, HostStep)
    return t.stepper


def frozen_root(rng: np.random.Generator) -> ResidentNodes:
    """The committed octree's root and a node below it with a random field, everything occupied."""
    keys = np.array([0, NodeId(1, 1, 1, 1).key], np.int64)
    n = len(keys)
    return ResidentNodes(
        keys=keys,
        treelet=np.zeros(n, np.int32),
        tables=rng.normal(0.0, 0.3, (n, SHAPE.row_length)).astype(np.float16),
        occupancy=np.full((n, SHAPE.occupancy_bytes), 255, np.uint8),
        lambda_max=np.full(n, 5.0, np.float32),
        top_keys=np.zeros(1, np.int64),
        bases=rng.normal(0.0, 0.3, (1, SHAPE.base_length)).astype(np.float16),
    )


def inner_trainer(rng: np.random.Generator, frame_: Frame | None = None) -> Trainer:
    """A trainer of the treelet TOP below a frozen root."""
    keys = np.array(sorted([TOP.key, *(child.key for child in TOP.children()[:3])]), np.int64)
    return ball_trainer(
        keys, top=TOP, frozen=frozen_root(rng), shared=new_shared(8, trainable=False), total_rays=1000, frame_=frame_
    )


def test_a_ball_is_learned() -> None:
    t = ball_trainer(ball_keys(2), total_rays=15000, settings=tiny("training.samples_per_step=4096"))
    first = np.mean([t.train_step() for _ in range(3)])
    t.run()
    last = np.mean([t.train_step() for _ in range(5)])
    assert last < 0.7 * first
    assert t.progress == 1.0


@pytest.mark.parametrize("grows", [False, True])
def test_a_training_that_goes_on_equals_one_that_never_stopped(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.training.growth.MIN_WEIGHT", 0.01)
    keys = ball_keys(1)
    settings = tiny("training.lambda_distortion=0.01", "training.lambda_transparency=0.01")

    def new() -> Trainer:
        return ball_trainer(
            keys, settings=settings, grows=grows, room=30, total_rays=3000, frame_=frame(3, can_go_below=True)
        )

    straight, first, second = new(), new(), new()
    straight.run()
    half = straight.step // 2
    for _ in range(half):
        first.train_step()
    arrays, counters = checkpoint.save(first)
    arrays = {name: array.copy() for name, array in arrays.items()}
    first.train_step()  # what was saved must not depend on what comes after
    checkpoint.restore(second, arrays, counters)
    assert second.step == half
    second.run()
    assert differences(state_arrays(straight), state_arrays(second)) == []
    if grows:
        assert straight.state.num_own > len(keys)
        assert straight.work.counters.growths > 0


def test_refreshes_and_checkpoints_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.training.schedule.PRIOR_STEPS", 4)
    settings = tiny("training.occupancy_every=8", "training.occupancy_threshold=0.02")
    straight, other = (ball_trainer(ball_keys(1), settings=settings, total_rays=2000) for _ in range(2))
    for _ in range(11):
        straight.train_step()
    arrays, counters = checkpoint.save(straight)
    checkpoint.restore(other, {k: v.copy() for k, v in arrays.items()}, counters)
    straight.run()
    other.run()
    assert not straight.state.occupied().all()
    assert differences(state_arrays(straight), state_arrays(other)) == []


def test_a_checkpoint_of_another_treelet_is_refused() -> None:
    arrays, counters = checkpoint.save(ball_trainer(ball_keys(1)))
    with pytest.raises(ValueError, match="L0/0-0-0"):
        checkpoint.restore(ball_trainer(ball_keys(2)), arrays, counters)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bits(threads: int) -> None:
    results = []
    for count in (1, threads):
        set_threads(count)
        t = ball_trainer(ball_keys(1), total_rays=3000, grows=True, room=20)
        t.run()
        results.append(state_arrays(t))
    assert differences(*results) == []


def test_another_seed_draws_other_pixels() -> None:
    a, b = ball_trainer(ball_keys(1)), ball_trainer(ball_keys(1))
    b.work.seed = (8, *b.seed[1:])
    assert a.train_step() != b.train_step()


def test_frozen_nodes_and_the_shared_parts_never_move(rng: np.random.Generator) -> None:
    t = inner_trainer(rng)
    capacity, own_rows = t.state.capacity, SHAPE.training_dense_rows
    before = state_arrays(t)
    t.run()
    after = state_arrays(t)
    assert np.array_equal(before["tables"][capacity:], after["tables"][capacity:])
    assert np.array_equal(before["dense"][own_rows:], after["dense"][own_rows:])
    assert [n for n in differences(before, after) if n.startswith("shared")] == []
    assert not np.array_equal(before["tables"][: t.state.num_own], after["tables"][: t.state.num_own])
    assert not np.array_equal(before["dense"][:own_rows], after["dense"][:own_rows])
    assert all(p.grad is None for p in t.shared.parameters())


def test_the_hand_over_mixes_the_parents_output_and_the_own(rng: np.random.Generator) -> None:
    t = inner_trainer(rng, frame(lod_bias=-2.7))  # level 1 is handed over at distances of 3.1 to 6.2
    t.state.tables[: t.state.num_own] = torch.from_numpy(
        rng.normal(0.0, 0.5, (t.state.num_own, SHAPE.table_size, SHAPE.features)).astype(np.float32)
    )
    batch = t.pixels.draw(np.random.default_rng(0), 400)
    rays, basis = host(t).make_rays(batch, np.full(400, 0.5))
    samples = for_device(t.state.arena.device).march(rays, t.state.arena, t.frame.march, keep=64, adapt=True)
    own, mixed = samples.slot < t.state.capacity, samples.slot_above >= 0
    assert bool((own & mixed).any())
    assert bool((own & ~mixed).any())
    assert bool((~own).any())
    top_octave = own & (samples.wanted > TOP.level - 1) & (samples.wanted < TOP.level)
    assert torch.equal(mixed, top_octave)
    assert torch.allclose(samples.blend[mixed], samples.wanted[mixed] - (TOP.level - 1), atol=1e-5)
    kept, frozen = host(t)._visible(samples, basis)
    sigma, colour = host(t)._shade(kept, frozen, basis)
    expected_sigma, expected_colour = shade(t.state.arena, t.shared.decoder, kept, basis)
    assert torch.allclose(sigma, expected_sigma, rtol=1e-4, atol=1e-6)
    assert torch.allclose(colour, expected_colour, atol=1e-5)
    # and by hand: the parent's output and the own one
    at = torch.nonzero((kept.slot_above >= 0) & (kept.slot < t.state.capacity)).squeeze(1)
    direction = basis[kept.ray.long()[at]]
    parent = evaluate_nodes(
        t.state.arena, t.shared.decoder, kept.position_above[at], kept.slot_above[at], torch.ones(len(at)), direction
    )
    mine = evaluate_nodes(t.state.arena, t.shared.decoder, kept.position[at], kept.slot[at], kept.beta[at], direction)
    share, dt = kept.blend[at], kept.dt[at]
    alpha, alpha_above = -share * torch.expm1(-mine[0] * dt), -(1 - share) * torch.expm1(-parent[0] * dt)
    both = alpha + alpha_above
    assert torch.allclose(-torch.expm1(-sigma[at] * dt), both, rtol=1e-4, atol=1e-6)
    light = alpha[:, None] * mine[1] + alpha_above[:, None] * parent[1]
    assert torch.allclose(both[:, None] * colour[at], light, atol=1e-5)


def test_gradients_reach_own_nodes_alone(rng: np.random.Generator) -> None:
    t = inner_trainer(rng)
    batch = t.pixels.draw(np.random.default_rng(0), 300)
    rays, basis = host(t).make_rays(batch, np.full(300, 0.5))
    samples = for_device(t.state.arena.device).march(rays, t.state.arena, t.frame.march, keep=64, adapt=True)
    samples, frozen = host(t)._visible(samples, basis)
    assert frozen.frozen is not None
    assert frozen.above is not None
    assert not frozen.frozen.sigma.requires_grad
    assert not frozen.above.sigma.requires_grad
    loss, _, _ = host(t)._loss(batch, None, rays, samples, frozen, basis, basis, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    g = t.moments.gradients
    assert g.tables.shape[0] == t.state.capacity
    assert bool(g.tables[: t.state.num_own].any())
    assert not bool(g.tables[t.state.num_own :].any())
    assert all(p.grad is None for p in t.shared.parameters())


def test_nan_in_a_table_stops_before_anything_is_updated() -> None:
    t = ball_trainer(ball_keys(1))
    for _ in range(3):
        t.train_step()
    t.state.tables[1:9] = math.nan
    before = state_arrays(t)
    with pytest.raises(NonFiniteError, match=r"L0/0-0-0.*step 3.*nan"):
        t.train_step()
    after = state_arrays(t)
    assert [n for n, a in before.items() if not np.array_equal(a, after[n], equal_nan=a.dtype.kind == "f")] == []


def test_nan_in_a_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    t = ball_trainer(ball_keys(1))
    t.train_step()
    composite = host(t).kernels.composite

    def poisoned(*args: torch.Tensor, **options: float) -> tuple[torch.Tensor, ...]:
        rgb, *rest = composite(*args, **options)
        rgb.register_hook(lambda grad: grad * math.nan)
        return rgb, *rest

    monkeypatch.setattr(host(t).kernels, "composite", poisoned)
    t.train_step()  # its loss was finite; what it left behind is not
    with pytest.raises(NonFiniteError):
        t.train_step()


def test_refreshing_keeps_what_is_dense_and_empties_what_is_not() -> None:
    t = ball_trainer(ball_keys(1))
    state, o = t.state, SHAPE.occupancy_cells
    # the density follows the first feature: thick in the half x < 0.5 of the cube, nothing beyond
    vertices = np.arange((SHAPE.base_cells + 1) ** 3)
    column = vertices % (SHAPE.base_cells + 1)
    state.dense[: len(vertices), 0] = torch.from_numpy(np.where(column <= SHAPE.base_cells // 2, 9.0, -30.0)).float()
    for _ in range(12):
        refresh_occupancy(
            state, t.shared.decoder, t.frame, np.random.default_rng(0), threshold=0.01, decay=0.6, share=0.5
        )
    cells = state.occupied()
    assert cells[0][:, :, : o // 2].all()
    assert not cells[0][:, :, o // 2 + 1 :].any()
    left = np.array([NodeId.from_key(int(k)).x == 0 for k in state.keys[1:9]])
    assert cells[1:9][left].all()
    assert not cells[1:9][~left][:, :, :, 2:].any()
    assert np.array_equal(pack_cells(cells), state.occupancy[: state.num_own].numpy())
    assert bool(state.arena.any_occupied[0])


def test_an_emptied_cell_comes_back_when_it_turns_dense() -> None:
    t = ball_trainer(ball_keys(1))
    state = t.state
    state.set_occupied(np.zeros_like(state.occupied()))
    state.ema[:] = 0
    state.dense[:, 0] = 9.0
    refresh_occupancy(state, t.shared.decoder, t.frame, np.random.default_rng(0), threshold=0.01, decay=0.6)
    share = state.occupied().mean()
    assert 0.1 < share < 0.4
    refresh_occupancy(state, t.shared.decoder, t.frame, np.random.default_rng(1), threshold=0.01, decay=0.6, share=1.0)
    assert state.occupied().all()


def test_optical_depth_takes_the_larger_of_with_and_without_the_residual() -> None:
    t = ball_trainer(ball_keys(1))
    state = t.state
    o = SHAPE.occupancy_cells
    state.dense[:, 0] = 0.1
    base_only = cell_optical_depth(state, t.shared.decoder, t.frame, np.arange(o**3), np.random.default_rng(0))
    state.tables[0, :, 0] = -40.0
    with_residual = cell_optical_depth(state, t.shared.decoder, t.frame, np.arange(o**3), np.random.default_rng(0))
    assert np.allclose(base_only, with_residual)
    state.tables[0, :, 0] = 0.6
    denser = cell_optical_depth(state, t.shared.decoder, t.frame, np.arange(o**3), np.random.default_rng(0))
    assert (denser > 2.0 * base_only).all()
    # a node one level down without features of its own goes on with what its parent shows, at the parent's step length
    finer = cell_optical_depth(state, t.shared.decoder, t.frame, o**3 + np.arange(o**3), np.random.default_rng(0))
    assert np.allclose(finer, denser, rtol=1e-3)


def test_rays_of_a_batch_are_those_of_its_pixels() -> None:
    t = ball_trainer(ball_keys(1))
    batch = t.pixels.draw(np.random.default_rng(0), 100)
    rays, basis = host(t).make_rays(batch, np.zeros(100))
    origins, directions = t.work.cameras.rays(batch.photo, batch.xy)
    assert np.allclose(rays.origins.numpy() * t.frame.root.edge + np.array(t.frame.root.origin), origins)
    assert np.allclose(rays.directions.numpy() * t.frame.root.edge, directions)
    assert np.allclose(rays.footprint.numpy(), 2.0**batch.pyramid / 40.0)
    assert torch.allclose(basis, direction_basis(torch.from_numpy(directions)))
    assert trainer.psnr_of(0.01) == pytest.approx(20.0)
