"""How far rays reach with some of the nodes: against the march, and against a walk that skips no step."""

import math

import numpy as np
import pytest
import torch
from arenas import random_arena, random_rays
from torch import Tensor

from infnerf_tiles.arrays import Bool
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import encode_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import cpu
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.kernels.cpu.reach import END, reach

EDGE = 50.0
SHAPE = FieldShape(cells=16, table_size=64, features=2)
SETTINGS = MarchSettings(near=0.3, step=1.5, gsd_root=EDGE / SHAPE.cells, lod_bias=1.0)


def some_octree(rng: np.random.Generator) -> Octree:
    """Many nodes, and many places where one is missing."""
    return Octree.from_keys(encode_keys(4, rng.integers(0, 16, (600, 3))))


def needed(rays: Rays, q: int, step: int, octree: Octree, dead: Bool) -> int:
    """Row of the finest node that a step is drawn with; -1 outside the root cube."""
    c = SETTINGS.step * float(rays.footprint[q])
    t = SETTINGS.near * (1 + 0.5 * c) * math.exp((step + float(rays.offset[q])) * math.log1p(c))
    point = (rays.origins[q] + t * rays.directions[q]).numpy()
    if point.min() < 0 or point.max() >= 1:
        return -1
    wanted = math.log2(SETTINGS.gsd_root / (t * float(rays.footprint[q]))) + SETTINGS.lod_bias
    row, level = 0, 0
    while level < wanted:
        cell = np.floor(point * 2.0 ** (level + 1)).astype(int) & 1
        below = int(octree.children[row, cell @ (1, 2, 4)])
        if below < 0 or dead[below]:
            break
        row, level = below, level + 1
    return row


def closed(octree: Octree, chosen: Bool) -> Bool:
    """Without the nodes of which an ancestor is not chosen."""
    result = chosen.copy()
    result[0] = True
    for row in range(1, octree.num_nodes):
        result[row] &= result[octree.parents[row]]
    return result


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_ray_stops_at_the_first_step_whose_node_is_not_held(share: float, rng: np.random.Generator) -> None:
    octree = some_octree(rng)
    rays = random_rays(rng, 60, edge=EDGE, footprint=0.02)
    held = closed(octree, rng.random(octree.num_nodes) < share)
    dead = ~closed(octree, rng.random(octree.num_nodes) < 0.95)
    start = torch.from_numpy(rng.choice([0, 0, 40, -1], 60))
    ends, lacking, met = reach(rays, SETTINGS, start=start, children=octree.children, held=held, dead=dead)
    passed = np.zeros_like(met)
    stopped = 0
    for q in range(60):
        if start[q] < 0:
            assert (ends[q], lacking[q]) == (END, -1)
            continue
        expected = END
        for step in range(int(start[q]), 600):
            row = needed(rays, q, step, octree, dead)
            if row >= 0 and not held[row]:
                expected = step
                assert lacking[q] == row
                break
            passed[max(row, 0)] |= row >= 0
        assert ends[q] == expected
        assert (lacking[q] < 0) == (expected == END)
        stopped += expected < END
    assert stopped > 10
    assert np.array_equal(met, passed)
    _, _, ahead = reach(rays, SETTINGS, start=start, children=octree.children, held=held, dead=dead, beyond=True)
    assert (ahead & ~held).sum() >= len(np.unique(lacking[lacking >= 0]))
    assert ahead[met].all()


def steps_of(t: Tensor, rays: Rays, ray: Tensor) -> Tensor:
    c = SETTINGS.step * rays.footprint[ray]
    return torch.log(t.double() / (SETTINGS.near * (1 + c / 2))) / torch.log1p(c) - rays.offset[ray]


def test_a_march_up_to_there_draws_with_held_nodes_alone(rng: np.random.Generator) -> None:
    octree = some_octree(rng)
    arena = random_arena(rng, octree, (0, 2), shape=SHAPE, fill=0.5)
    rays = random_rays(rng, 1500, edge=EDGE, footprint=0.02)
    held = closed(octree, rng.random(octree.num_nodes) < 0.7)
    none = np.zeros_like(held)
    start = torch.zeros(1500, dtype=torch.int64)
    ends, _, _ = reach(rays, SETTINGS, start=start, children=octree.children, held=held, dead=none)
    samples = cpu.march(rays, arena, SETTINGS, adapt=True)
    ray = samples.ray.long()
    before = steps_of(samples.t, rays, ray) < torch.from_numpy(ends)[ray].double() - 0.5
    # slots of the arena are shuffled: find each slot's row by walking both trees
    row_of = {arena.root: 0}
    pending = [arena.root]
    while pending:
        slot = pending.pop()
        for c, below in enumerate(arena.children[slot].tolist()):
            if below >= 0:
                row_of[below] = int(octree.children[row_of[slot], c])
                pending.append(below)
    used = [row_of[slot] for slot in samples.slot[before].tolist()]
    assert len(used) > 200
    assert held[used].all()
    assert not held[[row_of[slot] for slot in samples.slot[~before].tolist()]].all()
