"""The cache: what is resident, what it costs, what is read, and what happens to damaged rows."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering.random_scenes import BANDS, make_scene, near_keys
from zarr.storage import MemoryStore

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import BudgetError, DamagedNodeError, DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, key_levels
from infnerf_tiles.geometry.octree import Octree, treelet_root_keys
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.slot_memory import PAGE, SlotMemory

DEEP = near_keys(3, (0.1, 0.1, 0.1), 2.0)
ROOMY = 1 << 30


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.of_store(make_scene(MemoryStore(), keys=DEEP))


def cache_of(scene: Scene, budget: int = ROOMY) -> NodeCache:
    return NodeCache(scene.store, scene.index, scene.shape, budget)


def resident(cache: NodeCache) -> Int64:
    keys = cache.keys_by_slot
    return np.sort(keys[keys >= 0])


def closure(keys: Int64) -> Int64:
    """The nodes and their ancestors."""
    return Octree.from_keys(keys).keys


def cost(cache: NodeCache, keys: Int64) -> int:
    """Bytes of the nodes, their ancestors and all bases below which they stand, from the definition."""
    nodes = closure(keys)
    return len(nodes) * cache.node_bytes + len(np.unique(treelet_root_keys(nodes, BANDS))) * cache.base_bytes


@settings(max_examples=40)
@given(
    wishes=st.lists(st.lists(st.integers(0, len(DEEP) - 1), min_size=1, max_size=6), min_size=1, max_size=8),
    share=st.floats(1.0, 6.0),
)
def test_the_total_is_the_sum_and_never_above_the_budget(scene: Scene, wishes: list[list[int]], share: float) -> None:
    smallest = cache_of(scene, 1).smallest_working_set
    cache = cache_of(scene, int(share * smallest))
    for wish in wishes:
        keys = DEEP[wish]
        if cost(cache, keys) > cache.byte_budget:
            before = resident(cache)
            with pytest.raises(BudgetError, match="memory budget: expected at least"):
                cache.ensure(keys)
            assert np.array_equal(resident(cache), before)
        else:
            cache.ensure(keys)
            assert np.isin(closure(keys), resident(cache)).all()
        held = cache.num_nodes * cache.node_bytes + cache.num_bases * cache.base_bytes
        assert cache.num_bytes == held <= cache.byte_budget
        assert len(resident(cache)) == cache.num_nodes
    cache.close()


def test_rows_end_up_where_the_arena_says(scene: Scene) -> None:
    cache = cache_of(scene)
    arena = cache.ensure(DEEP[:5])
    index = scene.index
    for slot, key in enumerate(cache.keys_by_slot.tolist()):
        if key < 0:
            continue
        row = int(np.searchsorted(index.keys, key))
        table = scene.store.read_node(int(index.slots[row])).astype(np.float32)
        assert np.array_equal(arena.tables[slot].numpy().ravel(), table)
        assert np.array_equal(arena.occupancy[slot].numpy(), scene.store.read_occupancy(int(index.slots[row])))
        base = scene.store.read_base(int(index.base_slots[index.treelets[row]])).astype(np.float32)
        first = int(arena.dense_offset[arena.treelet[slot]])
        flat = base.reshape(-1, scene.shape.features)
        assert np.array_equal(arena.dense[first : first + len(flat)].numpy(), flat)
        assert arena.lambda_max[slot] == index.lambda_max[row]
        assert arena.level[slot] == NodeId.from_key(key).level
    assert torch.equal(arena.blocks, occupied_blocks(arena.occupancy, scene.shape.occupancy_cells))
    assert arena.blocks.any()
    assert arena.any_occupied[arena.root] == 1
    cache.close()


def test_only_what_is_missing_is_read(scene: Scene) -> None:
    cache = cache_of(scene)
    first, second = DEEP[:1], DEEP[:2]
    arena = cache.ensure(first)
    assert cache.counters.hits == 0
    # a chain of four nodes in two treelets
    assert cache.counters.misses == 4 + 2
    row_bytes = 2 * scene.shape.row_length + scene.shape.occupancy_bytes
    assert cache.counters.bytes_read == 4 * row_bytes + 2 * 2 * scene.shape.base_length
    assert cache.ensure(first) is arena
    cache.ensure(second)
    assert cache.counters.misses == 6 + len(closure(second)) - 4
    assert cache.counters.evictions == 0
    cache.close()


def test_the_least_recently_used_go_first(scene: Scene) -> None:
    apart = [DEEP[0], DEEP[-1], DEEP[len(DEEP) // 2]]
    chains = [closure(np.array([key])) for key in apart]
    cache = cache_of(scene, cost(cache_of(scene), np.array(apart[:2])))
    cache.ensure(chains[0])
    cache.ensure(chains[1])
    cache.ensure(chains[0])
    assert cache.counters.evictions == 0
    cache.ensure(chains[2])
    assert cache.counters.evictions > 0
    held = resident(cache)
    assert np.isin(chains[2], held).all()
    # of the chain that was not used last at least the finest node is gone, of the other one none
    assert chains[1][-1] not in held
    lost = np.setdiff1d(chains[0], held)
    assert len(lost) <= 1
    cache.close()


def test_untrained_nodes_and_what_hangs_below_them_are_not_drawn() -> None:
    gap = ancestor_keys(DEEP[:1], 2)
    with Scene.of_store(make_scene(MemoryStore(), keys=DEEP, planned=gap)) as scene:
        assert gap[0] not in scene.octree.keys
        assert DEEP[0] not in scene.octree.keys
        cache = cache_of(scene)
        cache.ensure(DEEP[:1])
        assert np.array_equal(resident(cache), closure(ancestor_keys(DEEP[:1], 1)))
        cache.close()


def flip(store_folder: Path, key: str) -> None:
    """Change one bit in the middle of an object."""
    path = store_folder / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["params", "occupancy", "base", "missing"])
def test_a_damaged_row_is_told_once_and_takes_what_is_below_along(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_scene(tmp_path / "s", keys=DEEP).close()
    scene = Scene.open(tmp_path / "s")
    victim = ancestor_keys(DEEP[:1], 2)[0]  # the root of a treelet of the second band
    row = int(np.searchsorted(scene.index.keys, victim))
    slot, base_slot = int(scene.index.slots[row]), int(scene.index.base_slots[scene.index.treelets[row]])
    if kind == "base":
        flip(tmp_path / "s", scene.store.row_key("base", base_slot))
        with pytest.raises(DamagedNodeError):
            scene.store.read_base(base_slot)
    elif kind == "missing":
        (tmp_path / "s" / scene.store.row_key("params", slot)).unlink()
        with pytest.raises(DamagedNodeError):
            scene.store.read_node(slot)
    else:
        flip(tmp_path / "s", scene.store.row_key("params" if kind == "params" else "occupancy", slot))
        with pytest.raises(DamagedNodeError):
            (scene.store.read_node if kind == "params" else scene.store.read_occupancy)(slot)
    cache = cache_of(scene)
    with caplog.at_level(logging.WARNING):
        arena = cache.ensure(DEEP)
        cache.ensure(DEEP[:3])
    assert [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1
    assert cache.damaged_nodes == (str(NodeId.from_key(int(victim))),)
    levels = key_levels(scene.index.keys)
    deep = np.flatnonzero(levels >= 2)
    below = deep[ancestor_keys(scene.index.keys[deep], 2) == victim]
    gone = np.setdiff1d(scene.index.keys, resident(cache))
    assert np.array_equal(gone, scene.index.keys[below])
    assert cache.num_bytes == cache.num_nodes * cache.node_bytes + cache.num_bases * cache.base_bytes
    # and nothing that is linked has no row
    linked = arena.children[arena.level >= 0]
    assert (arena.level[linked[linked >= 0].long()] > 0).all()
    cache.close()
    scene.close()


@pytest.mark.parametrize("kind", ["params", "base"])
def test_a_damaged_root_is_an_error(kind: str, tmp_path: Path) -> None:
    make_scene(tmp_path / "s", keys=DEEP).close()
    with Scene.open(tmp_path / "s") as scene:
        slot = int(scene.index.slots[0]) if kind == "params" else int(scene.index.base_slots[scene.index.treelets[0]])
        flip(tmp_path / "s", scene.store.row_key("params" if kind == "params" else "base", slot))
        cache = cache_of(scene)
        for _ in range(2):
            with pytest.raises(DamagedStoreError, match=r"the octree's root cannot be drawn .*run 'verify --repair'"):
                cache.ensure(DEEP)
        assert cache.num_bytes == cache.num_nodes == 0
        cache.close()


def test_a_lost_connection_is_no_damage(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(scene)
    with monkeypatch.context() as patch:

        def lost(slot: int) -> None:
            raise ConnectionError("reset by peer")

        patch.setattr(scene.store, "read_node", lost)
        with pytest.raises(ConnectionError):
            cache.ensure(DEEP[:2])
    assert cache.num_bytes == 0
    arena = cache.ensure(DEEP[:2])
    assert cache.damaged_nodes == ()
    assert (arena.level >= 0).sum() == len(closure(DEEP[:2]))
    cache.close()


def test_released_memory_goes_back() -> None:
    slots = SlotMemory(64, 4 * PAGE)
    array = slots.array(np.float32, PAGE)
    taken = [slots.take() for _ in range(3)]
    assert taken == [0, 1, 2]
    array[taken] = 7.0
    slots.release(1)
    assert slots.num_free == 62
    assert slots.take() == 1
    assert float(array[0, 0]) == float(array[2, -1]) == 7.0
    if slots._map is not None:
        assert not array[1].any(), "pages that were given back come as zeros"
    with pytest.raises(IndexError):
        [slots.take() for _ in range(62)]
    with pytest.raises(BudgetError, match="address space"):
        SlotMemory(1 << 40, 1 << 40)


def test_the_arena_is_on_the_memory_of_the_cache(scene: Scene) -> None:
    cache = cache_of(scene)
    arena = cache.ensure(DEEP[:1])
    again = cache.ensure(DEEP)
    assert arena.tables.data_ptr() == again.tables.data_ptr()
    assert again.tables.dtype == again.dense.dtype == torch.float32
    cache.close()


def test_rows_read_ahead_are_taken_and_not_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_node = scene.store.read_node

    def recorded(slot: int) -> np.ndarray:
        read.append(slot)
        return read_node(slot)

    monkeypatch.setattr(scene.store, "read_node", recorded)
    plain, ahead = cache_of(scene), NodeCache(scene.store, scene.index, scene.shape, ROOMY, prefetch_bytes=ROOMY)
    expected = plain.ensure(DEEP[:4])
    num_rows = len(read)
    ahead.prefetch(DEEP[:4])
    arena = ahead.ensure(DEEP[:4])
    assert len(read) == 2 * num_rows, "every row once more"
    assert ahead.prefetched_bytes == 0
    assert torch.equal(arena.tables[:num_rows], expected.tables[:num_rows])
    assert torch.equal(arena.occupancy, expected.occupancy)
    # what nobody took is forgotten by the next request; what is resident is not read ahead
    ahead.prefetch(DEEP)
    assert ahead.prefetched_bytes > 0
    ahead.prefetch(DEEP[:4])
    ahead.close()
    plain.close()
    assert ahead.prefetched_bytes == 0


def test_reading_ahead_keeps_to_its_bytes_and_hides_no_damage(tmp_path: Path) -> None:
    make_scene(tmp_path / "s", keys=DEEP).close()
    with Scene.open(tmp_path / "s") as scene:
        victim = int(np.searchsorted(scene.index.keys, DEEP[0]))
        flip(tmp_path / "s", scene.store.row_key("params", int(scene.index.slots[victim])))
        row_bytes = 2 * scene.shape.row_length + scene.shape.occupancy_bytes
        budget = 9 * 2 * scene.shape.base_length + 7 * row_bytes
        cache = NodeCache(scene.store, scene.index, scene.shape, ROOMY, prefetch_bytes=budget)
        cache.prefetch(DEEP)
        most = cost = 0
        while cost < budget - 4 * scene.shape.base_length:  # a row takes twice its bytes while it is read
            cost = cache.prefetched_bytes
            most = max(most, cost)
            time.sleep(0.001)
        assert most <= budget
        cache.ensure(DEEP[:1])
        assert cache.damaged_nodes == (str(NodeId.from_key(int(DEEP[0]))),)
        assert DEEP[0] not in resident(cache)
        cache.close()
