"""Links between resident nodes: which slot is whose parent and child, and where a treelet hangs."""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Int32, Int64
from infnerf_tiles.geometry.node_id import decode_keys, parent_keys


@dataclass(frozen=True, kw_only=True)
class Links:
    """Slot numbers as `Arena` wants them; see there for the meaning of each array."""

    root: int
    level: Int32
    parent: Int32
    children: Int32
    treelet: Int32
    top_level: Int32
    top_xyz: Int64
    above: Int32


def link(keys: Int64, treelet: Int32, top_keys: Int64) -> Links:
    """Link resident nodes.

    Args:
        keys: int64 [S], node key per slot, -1 for a free slot.
        treelet: int32 [S], treelet row per slot.
        top_keys: int64 [R], key of each treelet's root node.

    A node whose parent is not resident hangs in the air and is never reached; the octree's root must be resident
    (ValueError otherwise).
    """
    num = keys.shape[0]
    level = np.full(num, -1, np.int32)
    parent = np.full(num, -1, np.int32)
    children = np.full((num, 8), -1, np.int32)
    used = np.flatnonzero(keys >= 0)
    order = used[np.argsort(keys[used], kind="stable")]
    sorted_keys = keys[order]
    if not len(order) or sorted_keys[0] != 0:
        raise ValueError("link: the octree's root node is not resident")
    levels, xyz = decode_keys(sorted_keys)
    level[order] = levels
    below = order[1:]
    # slots of the parents (any treelet), -1 where not resident
    wanted = parent_keys(sorted_keys[1:])
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(order) - 1)
    holder = np.where(sorted_keys[at] == wanted, order[at], -1).astype(np.int32)
    held = holder >= 0
    child = (xyz[1:, 0] & 1) + 2 * (xyz[1:, 1] & 1) + 4 * (xyz[1:, 2] & 1)
    children[holder[held], child[held]] = below[held]
    same = held & (treelet[below] == treelet[np.maximum(holder, 0)])
    parent[below[same]] = holder[same]
    above = np.full(top_keys.shape[0], -1, np.int32)
    top_level, top_xyz = decode_keys(top_keys)
    is_top = held & (sorted_keys[1:] == top_keys[treelet[below]])
    above[treelet[below[is_top]]] = holder[is_top]
    return Links(
        root=int(order[0]),
        level=level,
        parent=parent,
        children=children,
        treelet=treelet.astype(np.int32),
        top_level=top_level.astype(np.int32),
        top_xyz=top_xyz.astype(np.int64),
        above=above,
    )
