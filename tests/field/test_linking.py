"""Links between slots, against an arena that was linked in another way."""

import numpy as np
import pytest
import torch
from arenas import random_arena, random_octree

from infnerf_tiles.arrays import Int64
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId, encode_keys
from infnerf_tiles.kernels.arena import Arena

SHAPE = FieldShape(cells=16, table_size=64, features=2)


def slot_keys(arena: Arena) -> Int64:
    """Key of the node in each slot, -1 for a free one, by walking down from the root."""
    keys = np.full(arena.level.shape[0], -1, np.int64)
    pending = [(arena.root, NodeId(0, 0, 0, 0))]
    while pending:
        slot, node = pending.pop()
        keys[slot] = node.key
        for child, below in zip(node.children(), arena.children[slot].tolist(), strict=True):
            if below >= 0:
                pending.append((below, child))
    return keys


def test_links_are_the_octrees(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 5), (0, 2, 4), shape=SHAPE)
    tops = np.concatenate(
        [
            encode_keys(int(level), xyz[None])
            for level, xyz in zip(arena.top_level.numpy(), arena.top_xyz.numpy(), strict=True)
        ]
    )
    links = link(slot_keys(arena), arena.treelet.numpy(), tops)
    assert links.root == arena.root
    for name in ("level", "parent", "children", "treelet", "top_level", "top_xyz", "above"):
        ours, theirs = torch.from_numpy(getattr(links, name)), getattr(arena, name)
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def test_a_node_without_its_parent_is_never_reached() -> None:
    keys = np.array([NodeId(2, 0, 0, 0).key, NodeId(0, 0, 0, 0).key, -1], np.int64)
    links = link(keys, np.zeros(3, np.int32), np.array([0], np.int64))
    assert links.root == 1
    assert (links.children == -1).all()
    assert links.parent.tolist() == [-1, -1, -1]


def test_the_root_must_be_there() -> None:
    with pytest.raises(ValueError, match="root"):
        link(np.array([NodeId(1, 0, 0, 0).key, -1], np.int64), np.zeros(2, np.int32), np.array([0], np.int64))
