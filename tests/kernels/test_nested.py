"""A folded base stands for all nested grids, in what samples see and in what they teach."""

import numpy as np
import pytest
import torch
from arenas import full_octree, random_arena, random_points

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.field.treelet import fold_corrections
from infnerf_tiles.kernels import reference
from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Gradients, dense_rows

SHAPE = FieldShape(cells=32, table_size=64, features=4)


@pytest.mark.parametrize("grids", [1, 2, 3])
def test_folding_is_interpolation_at_the_vertices(rng: np.random.Generator, grids: int) -> None:
    dense = torch.from_numpy(rng.normal(size=(dense_rows(16, grids), 4))).float()
    out = torch.full((SHAPE.base_rows + 5, 4), 7.0)
    reference.fold_dense(dense, out, base_cells=16, grids=grids)
    vertices = 17**3
    want = fold_corrections(dense, SHAPE, grids)
    torch.testing.assert_close(out[:vertices], want[:vertices], atol=1e-6, rtol=0.0)
    assert (out[vertices:] == 7).all()


def test_the_gradient_spreads_to_what_each_grid_would_have_got(rng: np.random.Generator) -> None:
    grids = 3
    arena = random_arena(rng, full_octree(0), shape=SHAPE, max_grids=1)
    arena.tables = arena.tables.nan_to_num(0.0)
    arena.dense = torch.zeros(dense_rows(16, grids), 4)
    samples = random_points(rng, arena, 300)
    towards = torch.from_numpy(rng.normal(size=(300, 4))).float()
    each, folded = (Gradients(arena.level.shape[0], 64, arena.dense.shape[0], 4) for _ in range(2))
    for gradients, used in ((each, grids), (folded, 1)):
        arena.dense_grids = torch.full_like(arena.dense_grids, used)
        torch.autograd.backward(reference.encode(*samples, arena, gradients), towards)
    reference.spread_gradient(folded, base_cells=16, grids=grids)
    torch.testing.assert_close(folded.dense, each.dense, atol=1e-4, rtol=1e-5)
    marked = folded.mark_dense.repeat_interleave(VERTEX_BLOCK)[: len(folded.dense)]
    assert (marked[folded.dense.abs().sum(dim=1) > 0] == 1).all()
