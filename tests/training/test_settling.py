"""Levels agree on what is occupied, so that a picture is continuous in the wanted level."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from training.small_scenes import SHAPE, ball_keys, ball_trainer, frame

from infnerf_tiles.arrays import Bool, Float32
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays
from infnerf_tiles.training.refresh import settle_levels
from infnerf_tiles.training.state import ResidentNodes
from infnerf_tiles.training.trainer import Trainer
from infnerf_tiles.volume.occupancy import cover_finer, octant, pack_cells, refined

O = SHAPE.occupancy_cells  # noqa: E741 - the arena's legend calls it that
THRESHOLD = 0.02


def filled(rng: np.random.Generator, trainer: Trainer) -> Trainer:
    """Random features: density in clumps."""
    state = trainer.state
    own = state.num_own
    state.tables[:own] = torch.from_numpy(rng.normal(0, 0.15, tuple(state.tables[:own].shape)).astype(np.float32))
    state.dense[:] = torch.from_numpy(rng.normal(0, 0.3, tuple(state.dense.shape)).astype(np.float32))
    return trainer


def random_cells(rng: np.random.Generator, trainer: Trainer) -> Bool:
    return rng.random((trainer.state.num_own, O, O, O)) < 0.5


def picture(trainer: Trainer, wanted: float) -> Float32:
    """Colours of rays through the middle when `wanted` is the level at distance 5."""
    q = 12
    y, x = np.meshgrid(np.linspace(-1.5, 1.5, q), np.linspace(-1.5, 1.5, q), indexing="ij")
    origins = np.stack([x.ravel(), y.ravel(), np.full(q * q, -5.0)], axis=1)
    directions = np.tile([0.0, 0.0, 1.0], (q * q, 1))
    root = trainer.frame.root
    march = replace(trainer.frame.march, step=0.5, lod_bias=wanted)
    # the same wanted level along the whole ray but for the distance
    footprint = np.full(q * q, march.gsd_root / 5.0)
    rays = Rays(
        origins=torch.from_numpy(root.to_unit(origins)), directions=torch.from_numpy(directions / root.edge),
        footprint=torch.from_numpy(footprint), offset=torch.full((q * q,), 0.5, dtype=torch.float64),
    )  # fmt: skip
    arena = trainer.state.arena
    kernels = for_device(arena.device)
    samples = kernels.march(rays, arena, march)
    sigma, colour = shade(arena, trainer.shared.decoder, samples, direction_basis(torch.from_numpy(directions)))
    rgb, _, _, _ = kernels.composite(samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-4)
    return np.asarray(rgb.numpy(), np.float32)


def steepest(trainer: Trainer, steps: int) -> float:
    pictures = [picture(trainer, w) for w in np.linspace(0.3, 2.3, steps + 1)]
    return float(max(np.abs(a - b).max() for a, b in pairwise(pictures)))


def test_parents_cover_their_children(rng: np.random.Generator) -> None:
    trainer = ball_trainer(ball_keys(2))
    state = trainer.state
    cells = random_cells(rng, trainer) & (rng.random((state.num_own, O, O, O)) < 0.1)
    before = cells.copy()
    children = state.arena.children.numpy()
    cover_finer(cells, state.level[: state.num_own], children[: state.num_own])
    assert (cells >= before).all()
    for slot in range(state.num_own):
        expected = before[slot].copy()
        for c in range(8):
            if (below := children[slot, c]) >= 0:
                finer = np.argwhere(cells[below])
                z, y, x = octant(c, O)
                part = expected[z, y, x]
                part[tuple((finer // 2).T)] = True
        assert np.array_equal(cells[slot], expected)


def test_children_take_what_their_parent_shows(rng: np.random.Generator) -> None:
    trainer = filled(rng, ball_trainer(ball_keys(2)))
    state = trainer.state
    cells = random_cells(rng, trainer)
    settled = settle_levels(state, trainer.shared.decoder, trainer.frame, cells, THRESHOLD)
    assert (settled >= cells).all()
    # with a threshold that everything passes children have all that their parent has, with one that nothing passes none
    children = state.arena.children.numpy()
    for threshold, whole in ((-1.0, True), (1e30, False)):
        settled = settle_levels(state, trainer.shared.decoder, trainer.frame, cells, threshold)
        again = settle_levels(state, trainer.shared.decoder, trainer.frame, settled, threshold)
        assert np.array_equal(settled, again)
        for slot in range(state.num_own):
            for c in range(8):
                if (below := children[slot, c]) >= 0:
                    coarser = refined(settled[slot : slot + 1][:, *octant(c, O)])[0]
                    expected = coarser if whole else cells[below] | settled[below]
                    assert np.array_equal(settled[below], expected)


def test_pictures_are_continuous_across_levels(rng: np.random.Generator) -> None:
    trainer = filled(rng, ball_trainer(ball_keys(2)))
    state = trainer.state
    cells = random_cells(rng, trainer)
    state.set_occupied(cells)
    torn = steepest(trainer, 64), steepest(trainer, 128)
    state.set_occupied(settle_levels(state, trainer.shared.decoder, trainer.frame, cells, 1e-3))
    smooth = steepest(trainer, 64), steepest(trainer, 128)
    assert smooth[1] < 0.65 * smooth[0]
    assert torn[1] > 0.75 * torn[0], "cells of each level by itself should show as jumps"


@pytest.mark.parametrize("above_occupied", [False, True])
def test_a_treelet_covers_what_the_treelet_above_shows(rng: np.random.Generator, above_occupied: bool) -> None:
    top = NodeId(1, 0, 1, 1)
    bits = pack_cells(np.full((1, O, O, O), above_occupied))
    frozen = ResidentNodes(
        keys=np.zeros(1, np.int64), treelet=np.zeros(1, np.int32),
        tables=rng.normal(0, 0.5, (1, SHAPE.row_length)).astype(np.float16), occupancy=bits,
        lambda_max=np.full(1, 9.0, np.float32), top_keys=np.zeros(1, np.int64),
        bases=np.full((1, SHAPE.base_length), 0.5, np.float16),
    )  # fmt: skip
    trainer = ball_trainer(np.array([top.key], np.int64), top=top, frozen=frozen, frame_=frame(1))
    nothing = np.zeros((1, O, O, O), np.bool_)
    settled = settle_levels(trainer.state, trainer.shared.decoder, trainer.frame, nothing, 1e-4)
    assert settled.all() == above_occupied
    assert settled.any() == above_occupied
