"""Feature grids: the fast twin against the torch one, and the torch one against autograd and closed forms."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from arenas import full_octree, node_corners, random_arena, random_octree, random_points
from torch import Tensor

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cpu, reference
from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Arena, Gradients, dense_grid_rows, table_is_dense

# (N + 1)^3 is 4,913: the first table is dense, the second hashed, the third hashed with heavy collisions; rows of the
# last are so short that a task of the backward pass has whole blocks
SHAPES = [
    FieldShape(cells=16, table_size=8192, features=4),
    FieldShape(cells=16, table_size=1024, features=4),
    FieldShape(cells=32, table_size=64, features=8),
    FieldShape(cells=16, table_size=1024, features=2),
]
NAMES = ["dense", "hashed", "collisions", "short"]
HASHED = SHAPES[1]


def small_arena(rng: np.random.Generator, shape: FieldShape, dtype: torch.dtype = torch.float32) -> Arena:
    return random_arena(rng, random_octree(rng, 4), (0, 2), shape=shape, dtype=dtype)


def as_float64(arena: Arena) -> Arena:
    """The same arena as leaves of autograd."""
    tables = arena.tables.double().nan_to_num_(0.0).requires_grad_()
    return replace(arena, tables=tables, dense=arena.dense.double().requires_grad_())


def buffers(arena: Arena) -> Gradients:
    """Gradient buffers for every slot."""
    return Gradients(arena.tables.shape[0], arena.table_size, arena.dense.shape[0], arena.features)


def dense_marks(gradients: Gradients) -> Tensor:
    return gradients.mark_dense.repeat_interleave(VERTEX_BLOCK)[: gradients.dense.shape[0]]


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
@pytest.mark.parametrize("count", [0, 1, 513, 1999])
def test_twins_agree(rng: np.random.Generator, shape: FieldShape, count: int) -> None:
    arena = small_arena(rng, shape)
    samples = random_points(rng, arena, count)
    fast, slow = torch.full((count, shape.features), torch.nan), torch.full((count, shape.features), torch.nan)
    cpu.encode_into(*samples, arena, fast)
    reference.encode_into(*samples, arena, slow)
    exact = reference.encode(*samples, as_float64(arena), None)
    assert exact.dtype == torch.float64
    # up to 8 corners of up to 5 dense grids and 4 nodes, values about 1
    torch.testing.assert_close(fast.double(), exact.detach(), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(slow.double(), exact.detach(), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_gradients_are_autograds(rng: np.random.Generator, shape: FieldShape) -> None:
    arena = small_arena(rng, shape)
    samples = random_points(rng, arena, 1501)
    exact = as_float64(arena)
    towards = torch.from_numpy(rng.normal(size=(1501, shape.features)))
    torch.autograd.backward(reference.encode(*samples, exact, None), towards)
    assert exact.tables.grad is not None
    assert exact.dense.grad is not None
    # a table of few rows collects hundreds of contributions about 1 each
    scale = 2e-6 * max(1.0, float(exact.tables.grad.abs().max()))
    for twin in (cpu, reference):
        gradients = buffers(arena)
        torch.autograd.backward(twin.encode(*samples, arena, gradients), towards.float())
        torch.testing.assert_close(gradients.tables.double(), exact.tables.grad, atol=scale, rtol=1e-5)
        torch.testing.assert_close(gradients.dense.double(), exact.dense.grad, atol=scale, rtol=1e-5)
        marked = gradients.mark_tables.repeat_interleave(VERTEX_BLOCK, dim=1)
        assert (marked[gradients.tables.abs().sum(dim=2) > 0] == 1).all()
        assert (dense_marks(gradients)[gradients.dense.abs().sum(dim=1) > 0] == 1).all()
        assert (marked == 0).any()  # else the marks say nothing


def test_marks_of_the_twins_agree(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    samples = random_points(rng, arena, 300)
    marks = []
    for twin in (cpu, reference):
        gradients = buffers(arena)
        torch.autograd.backward(twin.encode(*samples, arena, gradients).sum())
        marks.append((gradients.mark_tables, gradients.mark_dense))
    assert torch.equal(marks[0][0], marks[1][0])
    assert torch.equal(marks[0][1], marks[1][1])


def test_gradients_add_up_over_calls(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    samples = random_points(rng, arena, 100)
    for twin in (cpu, reference):
        once, twice = buffers(arena), buffers(arena)
        torch.autograd.backward(twin.encode(*samples, arena, once).sum())
        for _ in range(2):
            torch.autograd.backward(twin.encode(*samples, arena, twice).sum())
        torch.testing.assert_close(twice.tables, 2 * once.tables)
        torch.testing.assert_close(twice.dense, 2 * once.dense)


def test_buffers_may_cover_only_what_learns(rng: np.random.Generator) -> None:
    """Slots behind the trainable ones are resident but frozen."""
    arena = random_arena(rng, full_octree(1), (0,), shape=HASHED, max_grids=2)
    used = torch.nonzero(arena.level >= 0).squeeze(1)
    # the root and one child to the front
    child = int(arena.children[arena.root, 3])
    order = torch.tensor([arena.root, child, *[int(s) for s in used if int(s) not in (arena.root, child)]])
    where = torch.full((arena.level.shape[0],), -1, dtype=torch.int64)
    where[order] = torch.arange(len(order))
    parent = arena.parent[order].long()
    moved = replace(
        arena,
        root=0,
        tables=arena.tables[order],
        level=arena.level[order],
        treelet=arena.treelet[order],
        parent=torch.where(parent >= 0, where[parent.clamp(min=0)], -1).int(),
    )
    position = torch.from_numpy(rng.uniform([0.5, 0.5, 0.0], [1.0, 1.0, 0.5], (200, 3))).float()
    samples = (position, torch.ones(200, dtype=torch.int32), torch.full((200,), 0.5))
    gradients = Gradients(2, HASHED.table_size, moved.dense.shape[0], HASHED.features)
    everything = buffers(moved)
    torch.autograd.backward(cpu.encode(*samples, moved, gradients).sum())
    torch.autograd.backward(cpu.encode(*samples, moved, everything).sum())
    assert torch.equal(gradients.tables, everything.tables[:2])
    assert not everything.tables[2:].any()


@pytest.mark.parametrize("shape", SHAPES[:2], ids=["dense", "hashed"])
def test_constant_grids_give_their_sum(rng: np.random.Generator, shape: FieldShape) -> None:
    arena = small_arena(rng, shape)
    arena = replace(arena, tables=torch.ones_like(arena.tables), dense=torch.ones_like(arena.dense))
    position, slot, beta = random_points(rng, arena, 400)
    tree = arena.treelet[slot.long()].long()
    above = arena.level[slot.long()] - arena.top_level[tree]
    expected = arena.dense_grids[tree] + above + beta
    out = torch.empty(400, shape.features)
    cpu.encode_into(position, slot, beta, arena, out)
    torch.testing.assert_close(out, expected[:, None].expand_as(out), atol=2e-6, rtol=0.0)


def test_beta_weighs_the_own_table_alone(rng: np.random.Generator) -> None:
    """Also in the first slot, whose table and dense grids both begin at row 0."""
    arena = random_arena(rng, full_octree(0), shape=HASHED)
    while arena.root != 0:
        arena = random_arena(rng, full_octree(0), shape=HASHED)
    arena = replace(arena, tables=torch.ones_like(arena.tables), dense=torch.ones_like(arena.dense))
    position, slot = torch.from_numpy(rng.random((100, 3))).float(), torch.zeros(100, dtype=torch.int32)
    beta, out = torch.full((100,), 0.25), torch.empty(100, HASHED.features)
    gradients = buffers(arena)
    cpu.encode_into(position, slot, beta, arena, out)
    torch.autograd.backward(cpu.encode(position, slot, beta, arena, gradients).sum())
    grids = int(arena.dense_grids[0])
    torch.testing.assert_close(out, torch.full_like(out, grids + 0.25), atol=2e-6, rtol=0.0)
    # a sample leaves its weight in each grid, divided among the vertices
    assert float(gradients.dense.sum()) == pytest.approx(100 * HASHED.features * grids, rel=1e-4)
    assert float(gradients.tables.sum()) == pytest.approx(100 * HASHED.features * 0.25, rel=1e-4)


@pytest.mark.parametrize("shape", [HASHED, SHAPES[3]], ids=["hashed", "short"])
def test_rows_asked_for_ahead_have_the_same_bits(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, shape: FieldShape
) -> None:
    arena = small_arena(rng, shape)
    samples = random_points(rng, arena, 999)
    # frozen and missing ones among those ahead
    slots = arena.tables.shape[0] // 2
    own = replace(arena, parent=torch.where(arena.parent < slots, arena.parent, -1))
    runs = []
    for most in (1 << 40, 0):
        monkeypatch.setattr(sys.modules["infnerf_tiles.kernels.cpu.encode"], "_TABLES", most)
        gradients = Gradients(slots, shape.table_size, arena.dense.shape[0], shape.features)
        out = cpu.encode(*samples, own, gradients)
        torch.autograd.backward(out.square().sum())
        runs.append((out.detach(), gradients.tables, gradients.dense))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_slots_without_nodes_may_hold_any_links(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    samples = random_points(rng, arena, 200)
    unused, slots = torch.nonzero(arena.level < 0).squeeze(1), arena.level.shape[0]
    left = replace(arena, level=arena.level.clone(), parent=arena.parent.clone(), treelet=arena.treelet.clone())
    left.level[unused] = torch.tensor([0, 3, 5], dtype=torch.int32)
    # a ring, and one below a node
    left.parent[unused] = torch.tensor([int(unused[1]), int(unused[0]), slots - 1], dtype=torch.int32)
    left.treelet[unused] = torch.tensor([1, 0, 0], dtype=torch.int32)
    outs = torch.empty(2, 200, HASHED.features)
    for one, out in zip((arena, left), outs, strict=True):
        cpu.encode_into(*samples, one, out)
    assert torch.equal(outs[0], outs[1])


def test_linear_grids_give_a_linear_field(rng: np.random.Generator) -> None:
    """Dense grids that hold the vertex positions interpolate to the sample's position, on far faces too."""
    shape = SHAPES[0]
    arena = random_arena(rng, full_octree(0), shape=shape, max_grids=1)
    tables, dense = torch.zeros_like(arena.tables), torch.zeros_like(arena.dense)
    for n, rows in ((shape.cells, tables[arena.root]), (shape.base_cells, dense)):
        axis = torch.arange(n + 1) / n
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        rows[: (n + 1) ** 3, :3] = torch.stack([x.ravel(), y.ravel(), z.ravel()], dim=1)
    arena = replace(arena, tables=tables, dense=dense)
    position = torch.from_numpy(rng.random((500, 3))).float()
    position[:50] = torch.from_numpy(rng.choice([0.0, 0.5, 1 - 2.0**-24], (50, 3))).float()
    slot, beta = torch.full((500,), arena.root, dtype=torch.int32), torch.full((500,), 0.25)
    out = torch.empty(500, shape.features)
    cpu.encode_into(position, slot, beta, arena, out)
    torch.testing.assert_close(out[:, :3], 1.25 * position, atol=1e-6, rtol=0.0)


def test_neighbours_in_a_node_are_continuous(rng: np.random.Generator) -> None:
    """No jump where a sample goes from cell to cell, hashed or not: the cells share their vertices."""
    for shape in SHAPES:
        arena = small_arena(rng, shape)
        corner, edge = node_corners(arena)
        slots = np.flatnonzero(arena.level.numpy() >= 0).astype(np.int32)
        slot = rng.choice(slots, 300)
        axis = rng.integers(0, 3, 300)
        inside = rng.random((300, 3))
        inside[np.arange(300), axis] = rng.integers(1, shape.cells, 300) / shape.cells
        face = (corner[slot] + inside * edge[slot, None]).astype(np.float32)
        before = face.copy()
        before[np.arange(300), axis] = np.nextafter(face[np.arange(300), axis], np.float32(0.0))
        out = torch.empty(2, 300, shape.features)
        for side, position in enumerate((face, before)):
            cpu.encode_into(torch.from_numpy(position), torch.from_numpy(slot), torch.ones(300), arena, out[side])
        torch.testing.assert_close(out[0], out[1], atol=1e-3, rtol=0.0)


def test_a_sample_does_not_depend_on_the_others(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    position, slot, beta = random_points(rng, arena, 700)
    together, alone = torch.empty(700, 4), torch.empty(1, 4)
    cpu.encode_into(position, slot, beta, arena, together)
    for m in rng.integers(0, 700, 40).tolist():
        cpu.encode_into(position[m : m + 1], slot[m : m + 1], beta[m : m + 1], arena, alone)
        assert torch.equal(alone[0], together[m])


def test_same_bits_every_time_and_for_any_thread_count(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    samples = random_points(rng, arena, 3001)
    towards = torch.from_numpy(rng.normal(size=(3001, 4))).float()
    runs = []
    try:
        for threads in (1, None, None):
            cpu.set_threads(threads)
            gradients = buffers(arena)
            out = cpu.encode(*samples, arena, gradients)
            torch.autograd.backward(out, towards)
            runs.append((out.detach(), gradients.tables, gradients.dense, gradients.mark_tables, gradients.mark_dense))
    finally:
        cpu.set_threads()
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_strided_samples(rng: np.random.Generator) -> None:
    arena = small_arena(rng, HASHED)
    position, slot, _ = random_points(rng, arena, 50)
    packed, strided = torch.empty(50, 4), torch.empty(50, 4)
    cpu.encode_into(position, slot, torch.ones(50), arena, packed)
    cpu.encode_into(position.T.contiguous().T, slot, torch.ones(1).expand(50), arena, strided)
    assert torch.equal(packed, strided)


def test_the_hash_spreads_blocks(rng: np.random.Generator) -> None:
    """Vertex blocks meet in a row about as often as if their rows were drawn by lot."""
    shape = FieldShape(cells=64, table_size=2**18, features=4)
    assert not table_is_dense(shape.cells, shape.table_size)
    arena = random_arena(rng, full_octree(0), shape=shape, max_grids=1)
    # one vertex of every block: 32^3 of them for as many places
    vertices = torch.cartesian_prod(*[torch.arange(0, 64, 2) / 64] * 3)
    slot = torch.full((len(vertices),), arena.root, dtype=torch.int32)
    gradients = buffers(arena)
    torch.autograd.backward(cpu.encode(vertices, slot, torch.ones(len(vertices)), arena, gradients).sum())
    used = int((gradients.tables[arena.root, :, 0] > 0).sum())
    assert used >= 0.8 * 2**15 * (1 - math.exp(-1.0))


def test_dense_rows_are_whole_blocks() -> None:
    for cells in (4, 8, 16):
        assert dense_grid_rows(cells) % VERTEX_BLOCK == 0
        assert 0 <= dense_grid_rows(cells) - (cells + 1) ** 3 < VERTEX_BLOCK
