"""Marching: the fast twin against the one that skips nothing, and both against the definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from arenas import (
    chain_octree,
    differing,
    full_octree,
    make_rays,
    node_corners,
    random_arena,
    random_octree,
    random_rays,
)
from torch import Tensor

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.footprint import level_and_weight, wanted_level
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import cpu, reference
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples
from infnerf_tiles.kernels.blocks import occupied_blocks

EDGE = 50.0
SHAPE = FieldShape(cells=16, table_size=64, features=2)
SETTINGS = MarchSettings(near=0.3, step=1.5, gsd_root=EDGE / SHAPE.cells, lod_bias=-2.0)
ROOT_ONLY = full_octree(0)


def full_arena(rng: np.random.Generator, octree: Octree, bands: tuple[int, ...] = (0,)) -> Arena:
    """Every cell occupied, nodes trained at every wanted level."""
    arena = random_arena(rng, octree, bands, shape=SHAPE, fill=1.0, empty_nodes=0.0)
    return replace(arena, lambda_max=torch.full_like(arena.lambda_max, torch.inf))


def both(rays: Rays, arena: Arena, settings: MarchSettings = SETTINGS, **options: object) -> Samples:
    """The fast twin's samples, after checking that the slow twin has the same."""
    fast = cpu.march(rays, arena, settings, **options)  # type: ignore[arg-type]
    slow = reference.march(rays, arena, settings, **options)  # type: ignore[arg-type]
    assert differing(fast, slow) == []
    return fast


def unit_points(samples: Samples, rays: Rays, t: Tensor | None = None) -> Tensor:
    ray = samples.ray.long()
    at = samples.t.double() if t is None else t
    return rays.origins[ray] + at[:, None] * rays.directions[ray]


def lattice_steps(samples: Samples, rays: Rays, settings: MarchSettings = SETTINGS) -> Tensor:
    """Real step number of each sample, from its distance."""
    ray = samples.ray.long()
    c = settings.step * rays.footprint[ray]
    return torch.log(samples.t / (settings.near * (1 + c / 2))) / torch.log1p(c) - rays.offset[ray]


@pytest.mark.parametrize(
    ("cells", "depth", "bands", "fill", "lod_bias"),
    [
        (16, 0, (0,), 0.3, 0.0),
        (16, 4, (0,), 0.15, -3.0),
        (16, 6, (0, 2, 4), 0.3, -1.0),
        (32, 5, (0, 3), 0.03, 0.5),
        (64, 3, (0, 1, 2, 3), 0.02, -2.5),
        (128, 2, (0, 1), 0.003, -3.0),
    ],
)
@pytest.mark.parametrize("adapt", [False, True])
def test_skipping_loses_no_sample(
    rng: np.random.Generator, cells: int, depth: int, bands: tuple[int, ...], fill: float, lod_bias: float, adapt: bool
) -> None:
    shape = FieldShape(cells=cells, table_size=64, features=2)
    settings = replace(SETTINGS, gsd_root=EDGE / cells, lod_bias=lod_bias)
    arena = random_arena(rng, random_octree(rng, depth), bands, shape=shape, fill=fill)
    samples = both(random_rays(rng, 103, edge=EDGE), arena, settings, adapt=adapt)
    assert samples.count == samples.ray_start[-1]


@pytest.mark.parametrize("cells", [16, 32, 64])
def test_single_cells_are_not_passed_over(rng: np.random.Generator, cells: int) -> None:
    shape = FieldShape(cells=cells, table_size=64, features=2)
    arena = random_arena(rng, random_octree(rng, 2, children=5.0), shape=shape)
    alone = rng.random((arena.level.shape[0], shape.occupancy_cells**3)) < 16 / shape.occupancy_cells**3 + 0.005
    bits = torch.from_numpy(np.packbits(alone, axis=1, bitorder="little"))
    blocks = occupied_blocks(bits, shape.occupancy_cells)
    arena = replace(arena, occupancy=bits, blocks=blocks, any_occupied=torch.ones_like(arena.any_occupied))
    assert both(random_rays(rng, 150, edge=EDGE, footprint=0.02), arena).count


def test_no_rays(rng: np.random.Generator) -> None:
    samples = both(random_rays(rng, 0), full_arena(rng, ROOT_ONLY))
    assert samples.ray_start.tolist() == [0]
    assert samples.position.shape == (0, 3)


def test_rays_past_the_cube_and_rays_left_out_have_no_samples(rng: np.random.Generator) -> None:
    origins = np.array([[2.0, 0.5, 0.5], [-0.5, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 0.5]])
    directions = np.array([[1.0, 0.1, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    rays = make_rays(origins, directions, edge=EDGE, footprint=0.01)
    samples = both(rays, full_arena(rng, ROOT_ONLY), start=torch.tensor([0, 0, 0, -1]))
    assert samples.count == 0
    assert samples.next_step.tolist() == [-1, -1, -1, -1]


def test_nothing_occupied(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 4), shape=SHAPE, fill=0.0)
    assert both(random_rays(rng, 20), arena).count == 0


def test_rays_in_faces_of_cells_and_nodes(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 4, children=6.0), (0, 2), shape=SHAPE, fill=0.5, empty_nodes=0.1)
    grid = np.array([0.0, 1 / 64, 0.25, 0.5, 0.75, 63 / 64, 1 - 2.0**-53])
    faces = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    for axis in range(3):
        origins = np.insert(faces, axis, rng.choice([-0.25, 0.0, 0.375, 1.0, 1.25], len(faces)), axis=1)
        directions = np.zeros_like(origins)
        directions[:, axis] = np.where(origins[:, axis] > 0.5, -1.0, 1.0)
        both(make_rays(origins, directions, edge=EDGE, footprint=0.02), arena)
    # and along the diagonals, which cross edges and corners only
    diagonals = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    both(make_rays(0.5 - 0.75 * diagonals, diagonals, edge=EDGE, footprint=0.02), arena)


def test_deepest_level(rng: np.random.Generator) -> None:
    point = (rng.integers(2**16, 2**17, 3) + 0.5) / 2**18  # the middle of a node
    arena = random_arena(rng, chain_octree(18, point), (0, 15), shape=SHAPE, fill=1.0, empty_nodes=0.0)
    directions = rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rays = make_rays(point - directions * 1e-5, directions, edge=EDGE, footprint=0.05)
    samples = both(rays, arena, replace(SETTINGS, near=1e-5, lod_bias=0.0))
    assert int(arena.level[samples.slot.long()].max()) == 18


def test_steps_tile_a_full_cube(rng: np.random.Generator) -> None:
    rays = random_rays(rng, 50, edge=EDGE)
    samples = both(rays, full_arena(rng, ROOT_ONLY))
    steps = lattice_steps(samples, rays)
    torch.testing.assert_close(steps, steps.round(), atol=2e-3, rtol=0.0)
    inner = samples.ray[1:] == samples.ray[:-1]
    assert (steps.round().diff()[inner] == 1).all()
    front, back = (samples.t - samples.dt / 2)[1:][inner], (samples.t + samples.dt / 2)[:-1][inner]
    torch.testing.assert_close(front, back, rtol=1e-5, atol=0.0)
    points = unit_points(samples, rays)
    assert (points > -1e-5).all()
    assert (points < 1 + 1e-5).all()
    # the steps before the first and behind the last sample lie outside the cube, or before the lattice
    start, end = samples.ray_start[:-1], samples.ray_start[1:]
    some = end > start
    growth = torch.log1p(SETTINGS.step * rays.footprint[some])
    before = samples.t[start[some]] * torch.exp(-growth)
    behind = samples.t[end[some] - 1] * torch.exp(growth)
    for t, at_near in ((before, steps.round()[start[some]] == 0), (behind, torch.zeros(int(some.sum())).bool())):
        outside = rays.origins[some] + t[:, None] * rays.directions[some]
        assert (at_near | ((outside < 1e-5) | (outside > 1 - 1e-5)).any(dim=1)).all()


def test_level_and_weight_are_the_footprints(rng: np.random.Generator) -> None:
    octree = random_octree(rng, 5)
    arena, rays = full_arena(rng, octree), random_rays(rng, 60, edge=EDGE)
    samples = both(rays, arena)
    footprints = (samples.t.double() * rays.footprint[samples.ray.long()]).numpy()
    wanted = wanted_level(SETTINGS.gsd_root, footprints, SETTINGS.lod_bias)
    np.testing.assert_allclose(samples.wanted.numpy(), wanted, atol=1e-5)
    # distances were rounded to float32: leave out what that may have moved over a face or a level
    points = unit_points(samples, rays).numpy()
    fine = np.abs(points * 32 - np.round(points * 32)).min(axis=1) > 1e-4
    fine &= np.abs(wanted - np.round(wanted)) > 1e-4
    deepest = octree.deepest_level(np.clip(points, 0.0, 1.0 - 1e-9))
    level, beta = level_and_weight(wanted, deepest)
    np.testing.assert_array_equal(arena.level[samples.slot.long()].numpy()[fine], level[fine])
    np.testing.assert_allclose(samples.beta.numpy()[fine], beta[fine], atol=1e-5)
    assert fine.mean() > 0.5


def test_weight_stops_at_the_largest_trained_level(rng: np.random.Generator) -> None:
    arena = full_arena(rng, random_octree(rng, 4, children=8.0))
    trained = arena.level + torch.from_numpy(rng.uniform(-1.5, 0.5, arena.level.shape[0])).float()
    arena = replace(arena, lambda_max=trained)
    samples = both(random_rays(rng, 40, edge=EDGE), arena)
    slot = samples.slot.long()
    below = arena.level[slot] > 0
    expected = (torch.minimum(samples.wanted, trained[slot]) - (arena.level[slot] - 1)).clamp(0, 1)
    torch.testing.assert_close(samples.beta[below], expected[below], atol=1e-6, rtol=0.0)
    assert (samples.beta[~below] == 1).all()


def test_hand_over_goes_to_the_node_above(rng: np.random.Generator) -> None:
    octave = torch.zeros(0, dtype=torch.bool)
    while not octave.any():  # in some octrees no ray meets a treelet's top where it hands over
        arena, rays = full_arena(rng, random_octree(rng, 5, children=6.0), (0, 2, 4)), random_rays(rng, 60, edge=EDGE)
        samples = both(rays, arena)
        slot, above = samples.slot.long(), samples.slot_above.long()
        tree = arena.treelet[slot].long()
        top = (arena.level[slot] == arena.top_level[tree]) & (arena.level[slot] > 0)
        octave = top & (samples.wanted < arena.level[slot])
    assert torch.equal(above >= 0, octave)
    assert torch.equal(samples.slot_above[octave], arena.above[tree][octave])
    weight = samples.wanted - (arena.level[slot] - 1)
    torch.testing.assert_close(samples.blend[octave], weight[octave], atol=1e-6, rtol=0.0)
    assert (samples.beta[octave] == 1).all()
    assert (samples.blend[~octave] == 1).all()
    for chosen, position, node in (
        (torch.ones_like(octave), samples.position, slot),
        (octave, samples.position_above, above),
    ):
        root = arena.treelet[node[chosen]].long()
        back = (position[chosen] + arena.top_xyz[root]) / torch.exp2(arena.top_level[root].double())[:, None]
        torch.testing.assert_close(back, unit_points(samples, rays)[chosen].clamp(0, 1), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("below", [1e-8, 1e-12, 2.0**-52])
def test_positions_stay_inside_their_node_after_rounding(rng: np.random.Generator, below: float) -> None:
    arena = full_arena(rng, full_octree(3), (0, 2))
    faces = np.array([0.125, 0.25, 0.5, 0.75, 1.0]) - below
    origins = np.stack([faces, faces[::-1], np.full(5, -0.1)], axis=1)
    rays = make_rays(origins, np.tile([0.0, 0.0, 1.0], (5, 1)), edge=EDGE, footprint=0.02)
    samples = both(rays, arena, replace(SETTINGS, lod_bias=0.0))
    corner, edge = (torch.from_numpy(a) for a in node_corners(arena))
    for position, slot in (
        (samples.position, samples.slot.long()),
        (samples.position_above[samples.slot_above >= 0], samples.slot_above[samples.slot_above >= 0].long()),
    ):
        assert len(slot)
        assert (position >= corner[slot]).all()
        assert (position < corner[slot] + edge[slot, None]).all()


@pytest.mark.parametrize("adapt", [False, True])
def test_pieces_make_the_whole(rng: np.random.Generator, adapt: bool) -> None:
    arena = random_arena(rng, random_octree(rng, 5), (0, 3), shape=SHAPE, fill=0.4)
    rays = random_rays(rng, 40, edge=EDGE)
    whole = cpu.march(rays, arena, SETTINGS, adapt=adapt)
    columns = []
    start = torch.zeros(40, dtype=torch.int64)
    while (start >= 0).any():
        piece = both(rays, arena, start=start, limit=1 + len(columns), adapt=adapt)
        columns.append((piece.ray, piece.t, piece.slot, piece.position))
        assert (piece.next_step[start < 0] == -1).all()
        start = piece.next_step
    assert len(columns) > 1
    for q in range(40):
        own = [[column[piece[0] == q] for column in piece] for piece in columns]
        together = [torch.cat(parts) for parts in zip(*own, strict=True)]
        alone = slice(int(whole.ray_start[q]), int(whole.ray_start[q + 1]))
        assert all(
            torch.equal(a, b[alone])
            for a, b in zip(together, (whole.ray, whole.t, whole.slot, whole.position), strict=True)
        )


@pytest.mark.parametrize("keep", [1, 2, 7, 10**6])
def test_thinning_keeps_the_length(rng: np.random.Generator, keep: int) -> None:
    arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=SHAPE, fill=0.4)
    rays = random_rays(rng, 60, edge=EDGE)
    whole, thin = cpu.march(rays, arena, SETTINGS), both(rays, arena, keep=keep)
    before, after = whole.ray_start.diff(), thin.ray_start.diff()
    assert torch.equal(after, before.clamp(max=keep))
    assert torch.equal(thin.next_step, whole.next_step)
    torch.testing.assert_close(lengths(thin, 60), lengths(whole, 60), rtol=1e-6, atol=0.0)
    # evenly: every sample that stays stands for as many as any other, or one more
    each, rest = before // after.clamp(min=1), before % after.clamp(min=1)
    for q in range(60):
        stay = torch.isin(whole.t[whole.ray == q], thin.t[thin.ray == q]).nonzero().squeeze(1)
        assert len(stay) == after[q]
        assert (stay.diff() >= each[q]).all()
        assert (stay.diff() <= each[q] + 1 + (rest[q] > 0)).all()


def test_a_few_rays_with_very_many_samples(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 2), shape=SHAPE, fill=0.7, empty_nodes=0.0)
    rays = random_rays(rng, 70, edge=EDGE, footprint=0.02)
    fine = torch.arange(70) % 5 == 0
    rays = replace(rays, footprint=torch.where(fine, rays.footprint / 16, rays.footprint))
    whole = both(rays, arena)
    many = whole.ray_start.diff() > 300
    assert many.any()
    assert (whole.ray_start.diff() < 100).sum() > 20
    both(rays, arena, keep=300, adapt=True)
    piece = both(rays, arena, limit=290)
    assert (piece.ray_start.diff()[many] == 290).all()
    both(rays, arena, start=piece.next_step)


def lengths(samples: Samples, num_rays: int) -> Tensor:
    """Summed length of each ray's samples."""
    return torch.zeros(num_rays, dtype=torch.float64).index_add(0, samples.ray.long(), samples.dt.double())


def test_blocks_cover_what_their_steps_would(rng: np.random.Generator) -> None:
    rays = random_rays(rng, 200, edge=EDGE, footprint=0.005)
    arena = full_arena(rng, ROOT_ONLY)
    settings = replace(SETTINGS, lod_bias=2.0)
    steps, blocks = cpu.march(rays, arena, settings), both(rays, arena, settings, adapt=True)
    assert 0 < blocks.count < 0.3 * steps.count
    whole, covered = lengths(steps, 200), lengths(blocks, 200)
    # half a block too much or too little where the ray enters the cube, and where it leaves it
    assert ((covered - whole).abs() <= 1.01 * blocks.dt.max()).all()
    torch.testing.assert_close(covered.sum(), whole.sum(), rtol=0.05, atol=0.0)
    # inside a ray they follow each other without gap or overlap, wherever their length changes
    c = settings.step * rays.footprint[blocks.ray.long()]
    size = torch.log1p(blocks.dt * (1 + c / 2) / blocks.t) / torch.log1p(c)
    inner = blocks.ray[1:] == blocks.ray[:-1]
    middle = lattice_steps(blocks, rays, settings).round()
    exponent = torch.log2(size).round()
    assert (exponent.diff()[inner] <= 0).all()
    first = middle - torch.floor(2 ** (exponent - 1))
    assert torch.equal((first + 2**exponent)[:-1][inner], first[1:][inner])


def test_blocks_are_single_steps_where_nodes_are_as_fine_as_wanted(rng: np.random.Generator) -> None:
    rays = random_rays(rng, 60, edge=EDGE, footprint=0.02)
    settings = replace(SETTINGS, near=5.0, lod_bias=-3.0)
    arena = random_arena(rng, full_octree(3), (0, 2), shape=SHAPE, fill=0.4)
    steps, blocks = cpu.march(rays, arena, settings), both(rays, arena, settings, adapt=True)
    assert steps.count
    assert steps.wanted.max() <= 3
    assert differing(steps, blocks) == []


def test_same_bits_every_time_and_for_any_thread_count(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 5), (0, 2), shape=SHAPE, fill=0.3)
    rays = random_rays(rng, 301, edge=EDGE)
    try:
        cpu.set_threads(1)
        one = cpu.march(rays, arena, SETTINGS, keep=9)
    finally:
        cpu.set_threads()
    assert differing(one, cpu.march(rays, arena, SETTINGS, keep=9)) == []
    assert differing(one, cpu.march(rays, arena, SETTINGS, keep=9)) == []


def test_strided_rays(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 3), shape=SHAPE, fill=0.3)
    rays = random_rays(rng, 20, edge=EDGE)
    strided = Rays(
        origins=rays.origins.T.contiguous().T,
        directions=rays.directions.repeat_interleave(2, dim=0)[::2],
        footprint=torch.tensor(0.01, dtype=torch.float64).expand(20),
        offset=rays.offset,
    )
    packed = replace(rays, footprint=torch.full((20,), 0.01, dtype=torch.float64))
    assert differing(cpu.march(strided, arena, SETTINGS), cpu.march(packed, arena, SETTINGS)) == []


def test_float64_arena_gives_float64_samples(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 3), (0, 2), shape=SHAPE, fill=0.3)
    rays = random_rays(rng, 30, edge=EDGE)
    precise = replace(arena, tables=arena.tables.double())
    exact, rounded = reference.march(rays, precise, SETTINGS), reference.march(rays, arena, SETTINGS)
    assert exact.t.dtype == exact.position.dtype == torch.float64
    assert torch.equal(exact.t.float(), rounded.t)
    torch.testing.assert_close(unit_points(exact, rays), unit_points(rounded, rays), atol=1e-6, rtol=0.0)
    tree = arena.treelet[exact.slot.long()].long()
    back = (exact.position + arena.top_xyz[tree]) / torch.exp2(arena.top_level[tree].double())[:, None]
    torch.testing.assert_close(back, unit_points(exact, rays).clamp(0, 1), atol=1e-11, rtol=0.0)
