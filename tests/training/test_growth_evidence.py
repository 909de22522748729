"""What samples say about nodes, and the nodes that grow from it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training.small_scenes import SHAPE, ball_keys

from infnerf_tiles.geometry.node_id import NodeId, child_keys, decode_keys
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.training.growth import MIN_PHOTOS, MIN_WEIGHT, Evidence
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.volume.occupancy import dilate_cells

TOP = NodeId(0, 0, 0, 0)


def new_state(depth: int = 2, room: int = 8) -> TrainingState:
    keys = ball_keys(depth)
    return TrainingState(SHAPE, TOP, keys, len(keys) + room, ResidentNodes.none(SHAPE))


def note(
    evidence: Evidence, state: TrainingState, slot: np.ndarray, wanted: np.ndarray, weight: np.ndarray,
    position: np.ndarray, photo: np.ndarray, ray: np.ndarray,
) -> None:  # fmt: skip
    """Add samples given by the columns that evidence looks at."""
    columns = (slot, wanted, position, ray)
    samples = SimpleNamespace(
        **{k: torch.from_numpy(v) for k, v in zip(("slot", "wanted", "position", "ray"), columns, strict=True)}
    )
    now = torch.tensor([1], dtype=torch.int32)
    evidence.note(samples, torch.from_numpy(weight), torch.from_numpy(photo), state.arena, now)  # type: ignore[arg-type]


def test_evidence_counts_as_a_slow_loop_does(rng: np.random.Generator) -> None:
    state = new_state()
    evidence = Evidence(state.capacity, state.shape.occupancy_cells)
    seen: dict[int, float] = {}
    count: dict[tuple[int, int], int] = {}
    photos: dict[tuple[int, int], set[int]] = {}
    for _ in range(3):
        num, rays = 4000, 200
        slot = rng.integers(0, state.num_own, num).astype(np.int32)
        wanted = rng.uniform(-0.5, 4.0, num).astype(np.float32)
        weight = rng.uniform(0.0, 0.4, num).astype(np.float32)
        inside = rng.random((num, 3))
        position = state.local_position(torch.from_numpy(slot), torch.from_numpy(inside.astype(np.float32))).numpy()
        photo = rng.integers(0, 150, rays)
        ray = rng.integers(0, rays, num).astype(np.int32)
        note(evidence, state, slot, wanted, weight, position, photo, ray)
        for m in range(num):
            s = int(slot[m])
            if weight[m] < np.float32(MIN_WEIGHT):
                continue
            seen[s] = max(seen.get(s, -1.0), float(wanted[m]))
            if wanted[m] < state.level[s] + 0.5:
                continue
            level, xyz = (int(state.level[s]), decode_keys(state.keys[s : s + 1])[1][0])
            half = np.floor((position[m].astype(np.float64) * 2**level - xyz) * 2).astype(int)
            octant = (s, int(half[0] + 2 * half[1] + 4 * half[2]))
            count[octant] = count.get(octant, 0) + 1
            photos.setdefault(octant, set()).add(int(photo[ray[m]]) % 63)
    for s in range(state.capacity):
        assert evidence.seen[s] == pytest.approx(seen.get(s, -1.0))
        for c in range(8):
            assert evidence.count[s, c] == count.get((s, c), 0)
            bits = {b for b in range(63) if (int(evidence.photos[s, c]) >> b) & 1}
            assert bits == photos.get((s, c), set())
    floor = int(np.median([*count.values()]))
    expected = {k for k, n in count.items() if n >= floor and len(photos[k]) >= MIN_PHOTOS}
    assert expected
    assert set(zip(*(a.tolist() for a in evidence.octants(floor)), strict=True)) == expected


def test_few_photos_are_no_evidence_however_many_samples() -> None:
    state = new_state(1)
    for photos, grows in ((MIN_PHOTOS - 1, False), (MIN_PHOTOS, True)):
        evidence = Evidence(state.capacity, state.shape.occupancy_cells)
        ray = np.arange(60, dtype=np.int32)
        ones = np.ones(60, np.float32)
        position = np.full((60, 3), 0.3, np.float32)
        note(evidence, state, np.ones(60, np.int32), 9 * ones, ones, position, (ray % photos).astype(np.int64), ray)
        assert bool(len(evidence.octants(10)[0])) == grows
        assert len(evidence.octants(61)[0]) == 0
        evidence.forget()
        assert len(evidence.octants(1)[0]) == 0
        assert evidence.seen[1] == 9.0


def test_frozen_slots_leave_no_evidence() -> None:
    state = new_state(1)
    evidence = Evidence(4, state.shape.occupancy_cells)
    one = np.ones(1, np.float32)
    note(
        evidence, state, np.array([4], np.int32), 9 * one, one, np.full((1, 3), 0.3, np.float32), np.zeros(1, np.int64),
        np.zeros(1, np.int32),
    )  # fmt: skip
    assert (evidence.seen == -1).all()
    assert (evidence.count == 0).all()


def test_children_link_to_their_parents_and_start_from_their_cells(rng: np.random.Generator) -> None:
    state = new_state(2)
    o = SHAPE.occupancy_cells
    cells = rng.random((state.num_own, o, o, o)) < 0.2
    state.start_occupancy(cells, 0.5)
    before = state.num_own
    grown = dilate_cells(cells, state.neighbours)
    leaf = int(np.flatnonzero(state.level == 2)[3])
    slots, octants = np.array([leaf, leaf, 0]), np.array([6, 1, 2])  # the root has its eight children already
    assert state.add_children(slots, octants, 3) == 2
    assert state.num_own == before + 2
    for new, octant in ((before, 6), (before + 1, 1)):
        assert state.keys[new] == child_keys(state.keys[leaf : leaf + 1])[0, octant]
        assert state.arena.children[leaf, octant] == new
        assert state.arena.parent[new] == leaf
        assert state.level[new] == 3
        part = np.zeros((o, o, o), np.bool_)
        for z in range(o):
            for y in range(o):
                for x in range(o):
                    up = [(v + o * ((octant >> k) & 1)) // 2 for k, v in enumerate((x, y, z))]
                    part[z, y, x] = grown[leaf, up[2], up[1], up[0]]
        assert np.array_equal(state.occupied()[new], part)
        assert np.array_equal(state.ema[new].numpy() > 0, state.occupied()[new])
        assert not state.tables[new].any()
        assert bool(state.arena.any_occupied[new]) == bool(state.occupied()[new].any())
    assert np.array_equal(state.occupied()[:before], cells)
    assert torch.equal(state.arena.blocks, occupied_blocks(state.occupancy, o))


def test_growth_stops_at_the_capacity_and_at_the_deepest_level() -> None:
    state = new_state(2, room=3)
    leaves = np.flatnonzero(state.level[: state.num_own] == 2)
    assert state.add_children(leaves, np.zeros(len(leaves), np.int64), 2) == 0
    assert state.num_own == len(ball_keys(2))
    assert state.add_children(leaves, np.zeros(len(leaves), np.int64), 3) == 3
    assert state.num_own == state.capacity
    assert state.add_children(leaves, np.ones(len(leaves), np.int64), 3) == 0
    assert len(np.unique(state.keys)) == state.capacity
