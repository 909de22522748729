"""How far each treelet may grow, so that a scene never has more nodes than it was planned with."""

from collections.abc import Mapping

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.store.bundle import drop_bundle, read_bundle, write_bundle
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.inputs import scene_inputs, scene_settings
from infnerf_tiles.training.tasks import treelet_capacity

MIN_ROOM = 8
"""Nodes that a treelet may grow by however few it has, as long as the scene's limit allows."""


def node_limit(store: SceneStore) -> int:
    """Most nodes that the scene may have, growth included."""
    most = scene_settings(store.header).octree.max_nodes
    limit = scene_inputs(store.header).node_limit
    return most if limit is None else min(most, limit)


def capacities(store: SceneStore, index: SceneIndex, band: int) -> Mapping[int, int]:
    """Node slots of each treelet of a band, by root key; kept in the scene's scratch, so that whoever goes on after an
    interruption gives the treelets that are left the same.

    What the limit leaves is shared out by nodes among the treelets of this band and of those below it.
    """
    path = _path(band)
    rows = np.flatnonzero(index.bands == band)
    keys: Int64 = index.root_keys[rows]
    found = read_bundle(store.data, path)
    if found is not None:
        known = dict(zip(found.arrays["keys"].tolist(), found.arrays["capacity"].tolist(), strict=True))
        if all(key in known for key in keys.tolist()):
            return known
    nodes = np.bincount(index.treelets, minlength=index.num_treelets)
    left = max(node_limit(store) - index.num_nodes, 0)
    below = int(nodes[index.bands >= band].sum())
    made = {}
    rest = left
    for key, n in sorted(zip(keys.tolist(), nodes[rows].tolist(), strict=True)):
        # a share of less than a few would keep the coarse bands, which have few nodes, from growing at all
        room = min(rest, max(MIN_ROOM, left * n // max(below, 1)))
        made[key] = treelet_capacity(n, room)
        rest -= made[key] - n
    arrays = {"keys": np.fromiter(made, np.int64, len(made)), "capacity": np.array(list(made.values()), np.int64)}
    write_bundle(store.data, path, arrays, {})
    return made


def forget_capacities(store: SceneStore, band: int | None = None) -> None:
    """Share out anew: after a band is done, or (None) all of them, when treelets are planned again."""
    for level in range(len(store.header.band_levels)) if band is None else [band]:
        drop_bundle(store.data, _path(level))


def _path(band: int) -> str:
    return f"scratch/band-{band}"
