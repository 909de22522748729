"""Shading of samples: one sample's result whatever its company, and the hand-over between treelets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from arenas import random_arena, random_octree, random_points, random_rays

from infnerf_tiles.field.decoder import Decoder, DecoderShape, direction_basis
from infnerf_tiles.field.shading import DECODER_BLOCK, evaluate_nodes, shade
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cpu
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples

SHAPE = FieldShape(cells=16, table_size=1024, features=4)
EDGE = 50.0
SETTINGS = MarchSettings(near=0.3, step=1.5, gsd_root=EDGE / SHAPE.cells, lod_bias=-1.0)


@pytest.fixture
def decoder(rng: np.random.Generator) -> Decoder:
    shape = DecoderShape(features=4, hidden=64, geometry_features=15, gsd_ref=0.5, density_bias=5.0, max_exponent=8.0)
    return Decoder(shape, torch.Generator().manual_seed(int(rng.integers(1 << 30))))


@pytest.fixture
def arena(rng: np.random.Generator) -> Arena:
    return random_arena(rng, random_octree(rng, 5, children=6.0), (0, 2, 4), shape=SHAPE, fill=0.6)


def marched(rng: np.random.Generator, arena: Arena) -> tuple[Samples, torch.Tensor, Rays]:
    rays = random_rays(rng, 300, edge=EDGE)
    samples = cpu.march(rays, arena, SETTINGS)
    return samples, direction_basis(rays.directions * EDGE), rays


@pytest.mark.parametrize("count", [0, 1, 7, DECODER_BLOCK, DECODER_BLOCK + 1, 2 * DECODER_BLOCK + 77])
def test_a_sample_does_not_depend_on_its_batch(
    rng: np.random.Generator, arena: Arena, decoder: Decoder, count: int
) -> None:
    position, slot, beta = random_points(rng, arena, count)
    basis = torch.from_numpy(rng.normal(size=(count, 16))).float()
    sigma, colour = evaluate_nodes(arena, decoder, position, slot, beta, basis)
    assert sigma.shape == (count,)
    assert colour.shape == (count, 3)
    assert not sigma.requires_grad
    for _ in range(4 if count else 0):
        some = torch.from_numpy(rng.choice(count, int(rng.integers(1, min(count, 300) + 1)), replace=False))
        again = evaluate_nodes(arena, decoder, position[some], slot[some], beta[some], basis[some])
        assert torch.equal(again[0], sigma[some])
        assert torch.equal(again[1], colour[some])


def test_evaluation_is_encode_then_decode(rng: np.random.Generator, arena: Arena, decoder: Decoder) -> None:
    position, slot, beta = random_points(rng, arena, 500)
    basis = torch.from_numpy(rng.normal(size=(500, 16))).float()
    features = torch.empty(500, 4)
    cpu.encode_into(position, slot, beta, arena, features)
    for got, want in zip(
        evaluate_nodes(arena, decoder, position, slot, beta, basis), decoder(features, basis), strict=True
    ):
        torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-6)


def test_hand_over_blends_the_outputs(rng: np.random.Generator, arena: Arena, decoder: Decoder) -> None:
    samples, basis, _ = marched(rng, arena)
    while not (samples.slot_above >= 0).any():  # some octrees have no matter where treelets meet
        arena = random_arena(rng, random_octree(rng, 5, children=6.0), (0, 2, 4), shape=SHAPE, fill=0.6)
        samples, basis, _ = marched(rng, arena)
    mixed = samples.slot_above >= 0
    per_sample = basis[samples.ray.long()]
    own = evaluate_nodes(arena, decoder, samples.position, samples.slot, samples.beta, per_sample)
    above = evaluate_nodes(
        arena,
        decoder,
        samples.position_above[mixed],
        samples.slot_above[mixed],
        torch.ones(int(mixed.sum())),
        per_sample[mixed],
    )
    sigma_above = torch.zeros_like(own[0]).masked_scatter(mixed, above[0])
    dt = samples.dt
    for blend in (samples.blend, torch.where(mixed, 0.0, 1.0), torch.ones_like(samples.blend)):
        sigma, colour = shade(arena, decoder, replace(samples, blend=blend), basis)
        assert torch.equal(sigma[blend == 1], own[0][blend == 1])
        assert torch.equal(colour[~mixed], own[1][~mixed])
        alpha, alpha_above = -blend * torch.expm1(-own[0] * dt), -(1 - blend) * torch.expm1(-sigma_above * dt)
        torch.testing.assert_close(-torch.expm1(-sigma * dt), alpha + alpha_above, rtol=1e-5, atol=1e-6)
        light = (alpha[:, None] * own[1])[mixed] + alpha_above[mixed, None] * above[1]
        torch.testing.assert_close(colour[mixed] * (alpha + alpha_above)[mixed, None], light, rtol=1e-5, atol=1e-6)


def test_a_shaded_sample_does_not_depend_on_the_other_rays(
    rng: np.random.Generator, arena: Arena, decoder: Decoder
) -> None:
    samples, basis, rays = marched(rng, arena)
    sigma, colour = shade(arena, decoder, samples, basis)
    for first, last in ((0, 1), (17, 120), (120, 300)):
        part = Rays(
            origins=rays.origins[first:last],
            directions=rays.directions[first:last],
            footprint=rays.footprint[first:last],
            offset=rays.offset[first:last],
        )
        again = shade(arena, decoder, cpu.march(part, arena, SETTINGS), basis[first:last])
        own = slice(int(samples.ray_start[first]), int(samples.ray_start[last]))
        assert torch.equal(again[0], sigma[own])
        assert torch.equal(again[1], colour[own])


def test_no_samples(rng: np.random.Generator, decoder: Decoder) -> None:
    empty = random_arena(rng, random_octree(rng, 2), shape=SHAPE, fill=0.0)
    samples, basis, _ = marched(rng, empty)
    sigma, colour = shade(empty, decoder, samples, basis)
    assert sigma.shape == (0,)
    assert colour.shape == (0, 3)
