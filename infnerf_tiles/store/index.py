"""The index: which nodes and treelets exist, in which state, in which slots. One complete copy per generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float32, Int32, Int64, UInt8
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import ancestor_keys, decode_keys
from infnerf_tiles.geometry.octree import Treelet
from infnerf_tiles.store.array_layout import ArrayLayout, read_column, write_column
from infnerf_tiles.store.documents import document_key, group_document, read_group
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.schema import MAX_NODES, MAX_TREELETS

NO_SLOT = -1


class NodeState(IntEnum):
    """State of a node; a planned one has no row and counts as missing when drawing."""

    PLANNED = 0
    TRAINED = 1


class TreeletState(IntEnum):
    """State of a treelet; a failed one is tried again by the next `train`."""

    PLANNED = 0
    TRAINED = 1
    FAILED = 2


# column name in the store -> (field of SceneIndex, dtype)
_NODE_COLUMNS = {
    "key": ("keys", "int64"),
    "slot": ("slots", "int32"),
    "treelet": ("treelets", "int32"),
    "state": ("states", "uint8"),
    "lambda_max": ("lambda_max", "float32"),
}
_TREELET_COLUMNS = {
    "treelet_key": ("root_keys", "int64"),
    "treelet_band": ("bands", "int32"),
    "treelet_base_slot": ("base_slots", "int32"),
    "treelet_state": ("treelet_states", "uint8"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneIndex:
    """Nodes and treelets of a scene as columns.

    Per node, n of them, ascending by key: keys int64; slots int32 (row of `params` and `occupancy`, -1 none); treelets
    int32 (row in the treelet table); states uint8 (NodeState); lambda_max float32 (largest wanted level that the node
    was trained at).
    Per treelet, in any order: root_keys int64; bands int32 (row in the header's band_levels); base_slots int32 (row of
    `base`, -1 none); treelet_states uint8 (TreeletState).
    """

    keys: Int64
    slots: Int32
    treelets: Int32
    states: UInt8
    lambda_max: Float32
    root_keys: Int64
    bands: Int32
    base_slots: Int32
    treelet_states: UInt8

    @property
    def num_nodes(self) -> int:
        """Number of nodes n."""
        return len(self.keys)

    @property
    def num_treelets(self) -> int:
        """Number of treelets."""
        return len(self.root_keys)

    @classmethod
    def planned(cls, treelets: Sequence[Treelet]) -> "SceneIndex":
        """The index of a scene in which nothing is trained yet."""
        counts = [len(treelet.keys) for treelet in treelets]
        keys = np.concatenate([np.asarray(t.keys, dtype=np.int64) for t in treelets] or [np.empty(0, np.int64)])
        rows = np.repeat(np.arange(len(treelets), dtype=np.int32), counts)
        order = np.argsort(keys, kind="stable")
        return cls(
            keys=keys[order],
            slots=np.full(len(keys), NO_SLOT, dtype=np.int32),
            treelets=rows[order],
            states=np.zeros(len(keys), dtype=np.uint8),
            lambda_max=np.zeros(len(keys), dtype=np.float32),
            root_keys=np.array([t.root.key for t in treelets], dtype=np.int64),
            bands=np.array([t.band for t in treelets], dtype=np.int32),
            base_slots=np.full(len(treelets), NO_SLOT, dtype=np.int32),
            treelet_states=np.zeros(len(treelets), dtype=np.uint8),
        )

    def same_as(self, other: "SceneIndex") -> bool:
        """Whether all columns are equal."""
        return all(np.array_equal(getattr(self, f), getattr(other, f)) for f, _ in _columns().values())

    def check(self, *, next_slot: int, next_treelet_slot: int, num_bands: int, max_level: int) -> None:
        """ValueError, saying what is wrong, unless the columns fit together.

        Keys ascend, are unique and closed under parents; every node lies in its treelet's cube and, unless it is the
        treelet's root, has its parent in the same treelet; slots are below those handed out so far and used once;
        trained nodes and treelets have slots.
        """
        for field, dtype in _columns().values():
            column = getattr(self, field)
            length = self.num_nodes if field in _node_fields() else self.num_treelets
            _require(column.dtype == np.dtype(dtype), f"{field}: expected {dtype}, got {column.dtype}")
            _require(column.shape == (length,), f"{field}: expected {length} entries, got shape {column.shape}")
        _require(self.num_nodes <= MAX_NODES, f"expected up to {MAX_NODES} nodes, got {self.num_nodes}")
        _require(self.num_treelets <= MAX_TREELETS, f"expected up to {MAX_TREELETS} treelets, got {self.num_treelets}")
        _require(bool((np.diff(self.keys) > 0).all()), "keys: expected ascending, unique node keys")
        _require(len(np.unique(self.root_keys)) == self.num_treelets, "root_keys: expected unique treelet roots")
        _require_within("bands", self.bands, 0, num_bands - 1)
        _require_within("states", self.states, 0, max(NodeState))
        _require_within("treelet_states", self.treelet_states, 0, max(TreeletState))
        _require_within("treelets", self.treelets, 0, self.num_treelets - 1)
        _require_slots("slots", self.slots, next_slot, self.states == NodeState.TRAINED)
        _require_slots("base_slots", self.base_slots, next_treelet_slot, self.treelet_states == TreeletState.TRAINED)
        trained = self.lambda_max[self.states == NodeState.TRAINED]
        _require(bool(np.isfinite(trained).all()), "lambda_max: expected finite levels for trained nodes")
        self._check_tree(max_level)

    def _check_tree(self, max_level: int) -> None:
        levels, _ = decode_keys(self.keys)
        root_levels, _ = decode_keys(self.root_keys)
        _require_within("levels", levels, 0, max_level)
        top = root_levels[self.treelets]
        _require(bool((levels >= top).all()), "treelets: expected nodes at or below their treelet's root level")
        inside = ancestor_keys(self.keys, top) == self.root_keys[self.treelets]
        _require(bool(inside.all()), "treelets: expected every node inside its treelet's root cube")
        below = np.flatnonzero(levels > 0)
        parents = ancestor_keys(self.keys[below], levels[below] - 1)
        at = np.minimum(np.searchsorted(self.keys, parents), max(self.num_nodes - 1, 0))
        _require(bool((self.keys[at] == parents).all()), "keys: expected the parent of every node")
        together = (self.treelets[at] == self.treelets[below]) | (levels == top)[below]
        _require(bool(together.all()), "treelets: expected a node and its parent in one treelet, up to its root")


def plan_again(index: SceneIndex, treelet_rows: AnyArray) -> SceneIndex:
    """A copy of `index` in which these treelets (int[k] rows) and their nodes are planned, without slots."""
    copy = SceneIndex(**{field: getattr(index, field).copy() for field, _ in _columns().values()})
    nodes = np.isin(copy.treelets, treelet_rows)
    copy.states[nodes] = NodeState.PLANNED
    copy.slots[nodes] = NO_SLOT
    copy.lambda_max[nodes] = 0.0
    copy.treelet_states[treelet_rows] = TreeletState.PLANNED
    copy.base_slots[treelet_rows] = NO_SLOT
    return copy


def plan_warm(index: SceneIndex, treelet_rows: AnyArray, lost_keys: AnyArray, lost_bases: AnyArray) -> SceneIndex:
    """As `plan_again`, but rows that are whole keep their slots, so that training begins with what is in them.

    lost_keys: int64[k], nodes whose rows are lost; lost_bases: int64[k], roots of the treelets whose bases are."""
    copy = plan_again(index, treelet_rows)
    nodes = np.isin(index.treelets, treelet_rows) & ~np.isin(index.keys, lost_keys)
    copy.slots[nodes] = index.slots[nodes]
    whole = np.zeros(index.num_treelets, np.bool_)
    whole[treelet_rows] = True
    whole &= ~np.isin(index.root_keys, lost_bases)
    copy.base_slots[whole] = index.base_slots[whole]
    return copy


def _columns() -> dict[str, tuple[str, str]]:
    return _NODE_COLUMNS | _TREELET_COLUMNS


def _node_fields() -> set[str]:
    return {field for field, _ in _NODE_COLUMNS.values()}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"index {message}")


def _require_within(name: str, column: AnyArray, low: int, high: int) -> None:
    if len(column) and not (column.min() >= low and column.max() <= high):
        raise ValueError(f"index {name}: expected {low} to {high}, got {column.min()} to {column.max()}")


def _require_slots(name: str, slots: Int32, next_slot: int, needed: AnyArray) -> None:
    _require_within(name, slots, NO_SLOT, next_slot - 1)
    used = slots[slots != NO_SLOT]
    # sorted, since numpy's unique takes a second for a million slots
    _require(bool((np.diff(np.sort(used)) > 0).all()), f"{name}: expected every slot once")
    _require(bool((slots[needed] != NO_SLOT).all()), f"{name}: expected a slot for everything that is trained")


def generation_path(generation: int) -> str:
    """Path of the group that holds a generation."""
    return f"index/{generation}"


def write_generation(
    store: GuardedStore, generation: int, index: SceneIndex, root_attributes: Mapping[str, Any]
) -> None:
    """Write a complete generation, its group document last; `root_attributes` is kept with it as a spare copy."""
    path = generation_path(generation)
    for layout, field in _layouts(path, index.num_nodes, index.num_treelets):
        write_column(store, layout, getattr(index, field))
    attributes = {"nodes": index.num_nodes, "treelets": index.num_treelets, "root": dict(root_attributes)}
    store.write_bytes(document_key(path), group_document(attributes))


def read_generation(store: GuardedStore, generation: int) -> tuple[SceneIndex, dict[str, Any]]:
    """A generation and the spare copy of the root attributes; DamagedStoreError if it is missing or damaged.

    What the columns say is not checked here but by `SceneIndex.check`.
    """
    path = generation_path(generation)
    attributes = read_group(store, path)
    try:
        if attributes is None:
            raise ValueError("it is missing")
        nodes, treelets, root = int(attributes["nodes"]), int(attributes["treelets"]), dict(attributes["root"])
        if not (0 <= nodes <= MAX_NODES and 0 <= treelets <= MAX_TREELETS):
            raise ValueError(f"it claims {nodes} nodes and {treelets} treelets")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStoreError(
            f"scene {store.name}: index generation {generation} cannot be read ({error}); run 'verify --repair'"
        ) from error
    columns = {field: read_column(store, layout) for layout, field in _layouts(path, nodes, treelets)}
    return SceneIndex(**columns), root


def generation_keys(generation: int, index: SceneIndex) -> list[str]:
    """Keys of everything that a generation with this index is stored under."""
    path = generation_path(generation)
    keys = [document_key(path)]
    for layout, _ in _layouts(path, index.num_nodes, index.num_treelets):
        keys += [document_key(layout.path), *([layout.chunk_key(0)] if layout.shape[0] else [])]
    return keys


def _layouts(path: str, nodes: int, treelets: int) -> list[tuple[ArrayLayout, str]]:
    layouts = []
    for name, (field, dtype) in _columns().items():
        length = nodes if field in _node_fields() else treelets
        layout = ArrayLayout(path=f"{path}/{name}", dtype=dtype, shape=(length,), chunk=(max(length, 1),))
        layouts.append((layout, field))
    return layouts
