"""Read a treelet's surroundings from the scene, and what it starts from."""

import logging

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float16, Float32, Int64, UInt8
from infnerf_tiles.data.observers import observers
from infnerf_tiles.errors import DamagedNodeError
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.field.treelet import base_from_above
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, decode_keys, key_levels, parent_keys
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.kept import facts_of
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.volume.occupancy import cells_of_points, dilate_cells, unpack_cells

_log = logging.getLogger(__name__)

SURROUNDINGS_BYTES = 512 << 20
"""Most bytes of frozen nodes around one training."""


def dense_rows_of_base(base: Float16, shape: FieldShape) -> Float32:
    """Base grid [V, V, V, F] as dense rows float32 [base_rows, F] with zero padding."""
    rows = np.zeros((shape.base_rows, shape.features), np.float32)
    flat = base.reshape(-1, shape.features)
    rows[: len(flat)] = flat
    return rows


def read_surroundings(
    context: Context, index: SceneIndex, top: NodeId, band: int, budget: int = SURROUNDINGS_BYTES
) -> ResidentNodes:
    """Committed nodes of the bands above, within `budget` bytes: coarse levels first, then by distance from `top`."""
    store, shape = context.store, context.shape
    above = (index.bands[index.treelets] < band) & (index.states == NodeState.TRAINED)
    above &= index.base_slots[index.treelets] != NO_SLOT
    rows = np.flatnonzero(above)
    if not len(rows):
        return ResidentNodes.none(shape)
    levels, xyz = decode_keys(index.keys[rows])
    centre = (np.array([top.x, top.y, top.z]) + 0.5) / 2.0**top.level
    reach = np.abs((xyz + 0.5) / np.exp2(levels)[:, None] - centre).max(axis=1)
    chain = np.isin(index.keys[rows], [top.ancestor(k).key for k in range(top.level)])
    order = np.lexsort((reach, levels, ~chain))
    rows = np.sort(rows[order[: max(1, budget // shape.node_bytes)]])
    rows = _with_parents(index.keys, rows)
    used, treelet = np.unique(index.treelets[rows], return_inverse=True)
    tables: Float16 = np.empty((len(rows), shape.row_length), np.float16)
    bits: UInt8 = np.empty((len(rows), shape.occupancy_bytes), np.uint8)
    for k, slot in enumerate(index.slots[rows].tolist()):
        tables[k], bits[k] = _read_node(store, slot)
    bases: Float16 = np.empty((len(used), shape.base_length), np.float16)
    for k, slot in enumerate(index.base_slots[used].tolist()):
        bases[k] = dense_rows_of_base(store.read_base(slot), shape).ravel()
    return ResidentNodes(
        keys=index.keys[rows],
        treelet=treelet.astype(np.int32),
        tables=tables,
        occupancy=bits,
        lambda_max=index.lambda_max[rows],
        top_keys=index.root_keys[used],
        bases=bases,
    )


def _with_parents(keys: Int64, rows: Int64) -> Int64:
    """Those of the rows whose whole chain of ancestors is among them."""
    kept = keys[rows]
    levels = key_levels(kept)
    present = kept[levels == 0]
    for level in range(1, int(levels.max(initial=0)) + 1):
        here = kept[levels == level]
        present = np.concatenate([present, here[np.isin(parent_keys(here), present)]])
    return rows[np.isin(keys[rows], present)]


def _read_node(store: SceneStore, slot: int) -> tuple[Float16, UInt8]:
    return store.read_node(slot), store.read_occupancy(slot)


def warm_start(context: Context, index: SceneIndex, state: TrainingState) -> Bool:
    """Fill own nodes from the rows that they have: the seed stage's, or of the training before photos came.

    Returns:
        bool [num_own]: which nodes were filled. A damaged row is passed over: the node starts from zero.
    """
    filled = np.zeros(state.num_own, np.bool_)
    rows = np.searchsorted(index.keys, state.keys[: state.num_own])
    shape = context.shape
    for k, row in enumerate(rows.tolist()):
        slot = int(index.slots[row])
        if slot < 0:
            continue
        try:
            table, bits = _read_node(context.store, slot)
        except DamagedNodeError as error:
            _log.warning("%s; the node starts from zero", error)
            continue
        state.tables[k] = torch.from_numpy(table.astype(np.float32)).view(shape.table_size, shape.features)
        state.occupancy[k] = torch.from_numpy(bits)
        filled[k] = True
    state.publish()
    return filled


def start_base(context: Context, index: SceneIndex, row: int, state: TrainingState) -> None:
    """Set the base: the one that there is (the seed stage's, or of the training before photos came), else the treelet
    above at its finest level, else zero (the first one)."""
    arena = state.arena
    above = int(arena.above[0])
    rows = state.shape.base_rows
    if index.base_slots[row] >= 0:
        base = context.store.read_base(int(index.base_slots[row]))
        state.dense[:rows] = torch.from_numpy(dense_rows_of_base(base, state.shape))
    elif above >= 0:
        top = state.top
        state.dense[:rows] = base_from_above(arena, (top.x, top.y, top.z), above)
    state.publish()


def start_occupancy(context: Context, state: TrainingState, filled: Bool) -> Bool:
    """Cells to begin with, bool [num_own, O, O, O]: the seed stage's, else the parent's dilated, and the points'.

    Without points and without a parent everything is occupied.
    """
    o = state.shape.occupancy_cells
    children = state.arena.children.cpu().numpy()
    points, have_points = context.photos.points, context.has_surface_points
    known = np.zeros((len(state.keys), o, o, o), np.bool_)
    if points is not None and have_points:
        root = context.store.header.root
        # a point marks cells next to its own; those of own nodes are no larger than the treelet's cube
        near = facts_of(context.photos).sorted_points(points.xyz, root).around(state.top)
        near = near[observers(points, context.photos.cameras).reliable[near]]
        unit = root.to_unit(points.xyz[near])
        known = cells_of_points(unit, state.level, children, root=state.arena.root, occupancy_cells=o)
    cells = known[: state.num_own].copy()
    all_bits = state.occupancy.cpu().numpy()
    order = np.argsort(state.level[: state.num_own], kind="stable")
    slot_of = {int(k): s for s, k in enumerate(state.keys) if k >= 0}
    half = o // 2
    for s in order.tolist():
        if filled[s]:
            cells[s] |= unpack_cells(all_bits[s : s + 1], o)[0]
            continue
        key = int(state.keys[s])
        parent = slot_of.get(int(parent_keys(np.array([key]))[0])) if key else None
        if parent is None:
            if not have_points:
                cells[s] = True
            continue
        bits = cells[parent] if parent < state.capacity else unpack_cells(all_bits[parent : parent + 1], o)[0]
        c = key & 7
        z, y, x = (c >> 2) * half, ((c >> 1) & 1) * half, (c & 1) * half
        part = bits[z : z + half, y : y + half, x : x + half]
        finer = part.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        # the points narrow a node down where there are any; else the parent's cells are all there is to go by
        if not cells[s].any():
            cells[s] = dilate_cells(finer[None])[0]
    return cells


def own_ancestors(keys: Int64, level: int) -> Int64:
    """Unique ancestors at `level` of the keys that are at least that deep."""
    deep = keys[key_levels(keys) >= level]
    return np.unique(ancestor_keys(deep, np.full(len(deep), level)))
