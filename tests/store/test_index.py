"""The index refuses what contradicts itself, when it is written and when it is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from store_scenes import WIDE, header, planned_index, trained_scene
from zarr.storage import MemoryStore

from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.documents import document_key, group_document
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState, write_generation
from infnerf_tiles.store.scene_store import SceneStore


def damaged(index: SceneIndex, column: str, row: int, value: int | float) -> SceneIndex:
    values = getattr(index, column).copy()
    values[row] = value
    return replace(index, **{column: values})


def without_node(index: SceneIndex, node: NodeId) -> SceneIndex:
    keep = index.keys != node.key
    columns = ("keys", "slots", "treelets", "states", "lambda_max")
    return replace(index, **{column: getattr(index, column)[keep] for column in columns})


def deepest(index: SceneIndex) -> int:
    return index.num_nodes - 1


@pytest.fixture
def store() -> SceneStore:
    """What the index says does not depend on the place: memory is enough."""
    return SceneStore.create(MemoryStore(), header())


CONTRADICTIONS = {
    "keys: expected ascending": lambda i: damaged(i, "keys", 1, int(i.keys[0])),
    "keys: expected the parent of every node": lambda i: without_node(i, NodeId(1, 1, 1, 1)),
    "node keys: expected Morton codes below": lambda i: damaged(i, "keys", deepest(i), int(i.keys[-1]) + (1 << 40)),
    "levels: expected 0 to 6": lambda i: damaged(i, "keys", deepest(i), NodeId(7, 127, 127, 127).key),
    "expected every node inside": lambda i: damaged(i, "treelets", deepest(i), 1),
    "treelets: expected 0 to": lambda i: damaged(i, "treelets", 0, 99),
    "at or below their treelet's root": lambda i: damaged(i, "treelets", 1, 1),
    "root_keys: expected unique": lambda i: damaged(i, "root_keys", 1, int(i.root_keys[0])),
    "bands: expected 0 to 1": lambda i: damaged(i, "bands", 0, 2),
    "states: expected 0 to 1": lambda i: damaged(i, "states", 0, 2),
    "treelet_states: expected 0 to 2": lambda i: damaged(i, "treelet_states", 0, 3),
    "index slots: expected -1 to": lambda i: damaged(i, "slots", 0, 1000),
    "index slots: expected every slot once": lambda i: damaged(i, "slots", 0, int(i.slots[1])),
    "index slots: expected a slot for": lambda i: damaged(i, "slots", 0, -1),
    "index base_slots: expected a slot for": lambda i: damaged(i, "base_slots", 0, -1),
    "lambda_max: expected finite": lambda i: damaged(i, "lambda_max", 0, np.nan),
    "slots: expected int32": lambda i: replace(i, slots=i.slots.astype(np.int64)),
    "states: expected 9 entries": lambda i: replace(i, states=i.states[1:]),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_are_refused(store: SceneStore, message: str) -> None:
    index = trained_scene(store, keys=WIDE)
    with pytest.raises(ValueError, match=message):
        store.commit(CONTRADICTIONS[message](index))
    assert store.read_index().same_as(index)


def test_a_node_must_share_its_parents_treelet(store: SceneStore) -> None:
    index = planned_index(store, WIDE)
    top = int(np.flatnonzero(index.keys == NodeId(1, 1, 1, 1).key)[0])
    split = replace(
        index,
        root_keys=np.append(index.root_keys, NodeId(0, 0, 0, 0).key + 0),
        bands=np.append(index.bands, np.int32(0)),
        base_slots=np.append(index.base_slots, np.int32(-1)),
        treelet_states=np.append(index.treelet_states, np.uint8(0)),
    )
    with pytest.raises(ValueError, match="unique treelet roots"):
        store.commit(split)
    split.root_keys[-1] = NodeId(1, 1, 1, 1).key
    store.commit(split)  # a treelet may be split at any node ...
    leaf = int(np.flatnonzero(index.keys == NodeId(2, 3, 3, 3).key)[0])
    assert index.treelets[leaf] != index.treelets[top]
    with pytest.raises(ValueError, match="expected a node and its parent in one treelet"):
        store.commit(damaged(index, "treelets", deepest(index), 0))  # ... but holds all nodes down to the next root


def test_a_stored_contradiction_is_damage(store: SceneStore) -> None:
    index = trained_scene(store, keys=WIDE)
    write_generation(store.data, store.generation, damaged(index, "slots", 0, int(index.slots[1])), {})
    with pytest.raises(DamagedStoreError, match=r"contradicts itself \(index slots: expected every slot once"):
        SceneStore.open(store.data).read_index()


@pytest.mark.parametrize(("field", "value"), [("nodes", 1 << 40), ("treelets", -1), ("nodes", "9"), ("nodes", None)])
def test_sizes_are_capped_before_anything_is_allocated(store: SceneStore, field: str, value: object) -> None:
    store.commit(planned_index(store, WIDE))
    key = document_key("index/1")
    attributes = json.loads(store.data.read_bytes(key) or b"")["attributes"]
    store.data.write_bytes(key, group_document(attributes | {field: value}))
    if value == "9":  # a number all the same
        assert store.read_index().num_nodes == 9
    else:
        with pytest.raises(DamagedStoreError, match="index generation 1 cannot be read"):
            store.read_index()


def test_planned_and_states(store: SceneStore) -> None:
    index = planned_index(store, WIDE)
    assert (index.num_nodes, index.num_treelets) == (9, 4)
    assert (index.states == NodeState.PLANNED).all()
    assert (index.treelet_states == TreeletState.PLANNED).all()
    assert index.root_keys[index.treelets[0]] == index.keys[0] == 0
