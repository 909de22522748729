"""Small scenes for the store's tests."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infnerf_tiles.geometry.node_id import NodeId, RootCube
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord, write_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader

NARROW = [NodeId(3, 7, 7, 7).key, NodeId(1, 0, 0, 0).key]  # 5 nodes, 2 treelets
WIDE = [NodeId(3, 0, 0, 0).key, NodeId(3, 7, 7, 7).key, NodeId(2, 3, 0, 1).key]  # 9 nodes, 4 treelets


def header(**changes: Any) -> SceneHeader:
    """A header with rows of a few hundred bytes."""
    fields: dict[str, Any] = {
        "root": RootCube((1.0, -2.5, 1e6 + 1 / 3), 4096.0),
        "cells": 8,
        "table_size": 64,
        "features": 2,
        "base_cells": 2,
        "occupancy_cells": 4,
        "band_levels": (0, 2),
        "max_level": 6,
        "gsd_ref": 0.1,
        "settings": {"training": {"steps": 500, "lr": 1e-2}, "photos": ["ä.jpg"]},
        "georeference": {"crs": "EPSG:2178", "origin": [7.5e6, 5.8e6, 100.0], "model_to_crs": None},
        "capacity": 4,
        "treelet_capacity": 1,
        "dataset": "ochota",
    }
    return SceneHeader(**(fields | changes))


def table(seed: int, store: SceneStore) -> np.ndarray[Any, np.dtype[np.float16]]:
    """A node's row, known from its seed."""
    length = store.header.rows["params"].row_length
    return np.random.default_rng(seed).standard_normal(length).astype(np.float16)


def bits(seed: int, store: SceneStore) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A node's occupancy."""
    return np.random.default_rng(seed).integers(0, 256, store.header.occupancy_bytes, dtype=np.uint8)


def base(seed: int, store: SceneStore) -> np.ndarray[Any, np.dtype[np.float16]]:
    """A treelet's base grid."""
    shape = store.header.rows["base"].tensors[0].shape
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def planned_index(store: SceneStore, keys: list[int] | None = None) -> SceneIndex:
    """An octree of a few treelets, nothing trained."""
    octree = Octree.from_keys(np.array(NARROW if keys is None else keys, dtype=np.int64))
    return SceneIndex.planned(cut(octree, store.header.band_levels))


@dataclass(frozen=True)
class TrainedTreelet:
    """What `train_treelet` wrote."""

    index: SceneIndex
    record: JournalRecord


def train_treelet(store: SceneStore, index: SceneIndex, row: int, seed: int = 0) -> TrainedTreelet:
    """Write rows and record of one treelet as a worker does; returns the index that a commit would make current.

    Node slots hold table(seed + slot), base slots base(seed + slot).
    """
    nodes = np.flatnonzero(index.treelets == row)
    slots = np.array(store.allocate(len(nodes)), dtype=np.int32)
    base_slot = store.allocate_treelets(1)[0]
    for slot in slots.tolist():
        store.write_node(slot, table(seed + slot, store), bits(seed + slot, store))
    store.write_base(base_slot, base(seed + base_slot, store))
    record = JournalRecord(
        treelet=str(NodeId.from_key(int(index.root_keys[row]))),
        status=TreeletState.TRAINED,
        seconds=1.5,
        peak_bytes=1 << 30,
        steps=100,
        settings_fingerprint="s",
        inputs_fingerprint="i",
        psnr=25.25,
        keys=index.keys[nodes],
        slots=slots,
        lambda_max=np.linspace(0, 1, len(nodes), dtype=np.float32),
        want_children=np.array(NodeId(3, 1, 1, 1).children()[0].key, dtype=np.int64).reshape(1),
        base_slot=base_slot,
        facts={"note": "x"},
    )
    write_record(store, record)
    columns = {name: getattr(index, name).copy() for name in ("slots", "states", "lambda_max", "base_slots")}
    columns["treelet_states"] = index.treelet_states.copy()
    columns["slots"][nodes] = slots
    columns["states"][nodes] = NodeState.TRAINED
    columns["lambda_max"][nodes] = record.lambda_max
    columns["base_slots"][row] = base_slot
    columns["treelet_states"][row] = TreeletState.TRAINED
    return TrainedTreelet(replace(index, **columns), record)


def trained_scene(store: SceneStore, seed: int = 0, keys: list[int] | None = None) -> SceneIndex:
    """Train and commit every treelet, with a decoder and an appearance; returns the committed index."""
    index = planned_index(store, keys)
    store.commit(index)
    rng = np.random.default_rng(seed)
    store.write_small("decoder", {"w0": rng.standard_normal((4, 8)).astype(np.float32), "b0": np.zeros(8, np.float32)})
    store.write_small("appearance", {"affine": rng.standard_normal((3, 3, 4)).astype(np.float32)})
    for row in range(index.num_treelets):
        index = train_treelet(store, index, row, seed).index
    store.commit(index)
    return index
