"""What the seed stage hands to the driver: written by the task that trained it, made part of the scene by the driver.

Only the driver changes the index, so the task leaves one bundle, and the driver's take-up can be repeated after a kill.
"""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError, DamagedStoreError
from infnerf_tiles.field.treelet import base_from_above
from infnerf_tiles.geometry.node_id import NodeId, key_levels
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.store.bundle import drop_bundle, read_bundle, write_bundle
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.merge import with_warm_rows
from infnerf_tiles.training.result import TrainedTreelet
from infnerf_tiles.training.trainer import Trainer

_PATH = "scratch/seed"
_GROUPS = ("appearance", "background", "decoder")
"""Small groups in the order in which they are written: a scene with a decoder has its seed stage behind it."""


@dataclass(frozen=True, kw_only=True)
class SeedSlots:
    """Rows that the task may write."""

    nodes: range
    bases: range


def write_seed_result(store: SceneStore, trained: TrainedTreelet, trainer: Trainer, slots: SeedSlots) -> None:
    """Write the rows, then the bundle that names them, with decoder, appearance and background.

    Every treelet starts from the coarse features that its own nodes' residuals were trained with: those of its parent
    move on while the parent is trained.
    """
    shared, state, shape = trainer.shared, trainer.state, trainer.state.shape
    roots = trained.keys[np.isin(key_levels(trained.keys), store.header.band_levels[1:])]
    if len(trained.keys) > len(slots.nodes) or len(roots) >= len(slots.bases):
        raise ValueError(f"seed stage: {len(trained.keys)} nodes and {len(roots)} bases are more than {slots}")
    v = shape.base_cells + 1
    for key, slot in zip(roots.tolist(), slots.bases[1:], strict=False):
        node = NodeId.from_key(key)
        above = int(np.flatnonzero(state.keys == node.parent.key)[0])
        base = base_from_above(state.arena, (node.x, node.y, node.z), above)[: v**3]
        store.write_base(slot, base.cpu().numpy().reshape(v, v, v, -1).astype(np.float16))
    node_slots = slots.nodes[: len(trained.keys)]
    for k, slot in enumerate(node_slots):
        store.write_node(slot, trained.tables[k], trained.occupancy[k])
    store.write_base(slots.bases.start, trained.base)
    known = np.zeros(len(shared.appearance.affine), np.uint8)
    known[np.unique(trainer.pixels.patches.photo)] = 1
    arrays: dict[str, AnyArray] = {
        "keys": trained.keys,
        "slots": np.array(node_slots, np.int32),
        "base_keys": np.concatenate([np.zeros(1, np.int64), roots]),
        "base_slots": np.array(slots.bases[: 1 + len(roots)], np.int32),
        "appearance/affine": shared.appearance.affine.detach().cpu().numpy(),
        "appearance/known": known,
        "background/coefficients": shared.background.coefficients.detach().cpu().numpy(),
    }
    arrays |= {f"decoder/{name}": array for name, array in shared.decoder.to_arrays().items()}
    write_bundle(store.data, _PATH, arrays, {})


def take_up_seed_result(store: SceneStore) -> bool:
    """Make a finished seed stage part of the scene: a new index generation (still planned) and the small groups.

    False if there is none, or its rows have been collected as garbage since: then it has to be trained again.
    """
    try:
        found = read_bundle(store.data, _PATH)
    except DamagedStoreError:
        found = None
    if found is None:
        return False
    index, arrays = store.read_index(), found.arrays
    octree = Octree.from_keys(np.union1d(index.keys, arrays["keys"]))
    bases = dict(zip(arrays["base_keys"].tolist(), arrays["base_slots"].tolist(), strict=True))
    try:
        store.commit(with_warm_rows(octree, store.header.band_levels, arrays["keys"], arrays["slots"], bases))
    except DamagedNodeError:
        drop_bundle(store.data, _PATH)
        return False
    for group in _GROUPS:
        prefix = f"{group}/"
        store.write_small(group, {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})  # type: ignore[arg-type]
    drop_bundle(store.data, _PATH)
    return True


def drop_seed_result(store: SceneStore) -> None:
    """Forget a finished seed stage that is not part of the scene yet."""
    drop_bundle(store.data, _PATH)
