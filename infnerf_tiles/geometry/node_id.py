"""Node ids: (level, x, y, z), their int64 keys, and the root cube that gives them a place in the world.

key = level << 57 | Morton code of (x, y, z) with x in bit 0 of each triple. Sorted keys are therefore level by level,
and the eight children of a node are neighbours in the order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import total_ordering
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from infnerf_tiles.arrays import AnyArray, Float64, Int32, Int64, check_shape
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.aabb import Aabb, Vector

Bits = TypeVar("Bits", int, Int64)

MAX_LEVEL = 18
LEVEL_SHIFT = 57
_CODE_MASK = (1 << LEVEL_SHIFT) - 1
_TEXT = re.compile(r"L(\d{1,2})/(\d{1,6})-(\d{1,6})-(\d{1,6})", re.ASCII)


@total_ordering
@dataclass(frozen=True, slots=True)
class NodeId:
    """One cube of the octree; the root is NodeId(0, 0, 0, 0).

    ValueError unless 0 <= level <= MAX_LEVEL and 0 <= x, y, z < 2^level. Ordered as the keys are. Iterates as
    (level, x, y, z).
    """

    level: int
    x: int
    y: int
    z: int

    def __post_init__(self) -> None:
        for name in ("level", "x", "y", "z"):
            object.__setattr__(self, name, int(getattr(self, name)))
        if not 0 <= self.level <= MAX_LEVEL:
            raise ValueError(f"node level: expected 0 to {MAX_LEVEL}, got {self.level}")
        if not all(0 <= v < 1 << self.level for v in (self.x, self.y, self.z)):
            raise ValueError(f"node {self}: expected x, y, z from 0 to {(1 << self.level) - 1} at level {self.level}")

    @property
    def key(self) -> int:
        """The id as one non-negative integer below 2^63."""
        return self.level << LEVEL_SHIFT | _spread(self.x) | _spread(self.y) << 1 | _spread(self.z) << 2

    @classmethod
    def from_key(cls, key: int) -> "NodeId":
        """The id of a key; ValueError if `key` is none."""
        levels, xyz = decode_keys(np.array([key], dtype=np.int64))
        return cls(int(levels[0]), *(int(v) for v in xyz[0]))

    @property
    def parent(self) -> "NodeId":
        """The node one level up; ValueError for the root."""
        return self.ancestor(self.level - 1)

    @property
    def child_index(self) -> int:
        """Which child of its parent the node is: dx + 2 dy + 4 dz."""
        return (self.x & 1) + 2 * (self.y & 1) + 4 * (self.z & 1)

    def children(self) -> tuple["NodeId", ...]:
        """The eight nodes one level down, child c = dx + 2 dy + 4 dz; ValueError at MAX_LEVEL."""
        x, y, z = 2 * self.x, 2 * self.y, 2 * self.z
        return tuple(NodeId(self.level + 1, x + (c & 1), y + (c >> 1 & 1), z + (c >> 2)) for c in range(8))

    def ancestor(self, level: int) -> "NodeId":
        """The node at `level` on the path from the root to this one (itself at its own level)."""
        if not 0 <= level <= self.level:
            raise ValueError(f"ancestor of {self}: expected a level from 0 to {self.level}, got {level}")
        shift = self.level - level
        return NodeId(level, self.x >> shift, self.y >> shift, self.z >> shift)

    def __iter__(self) -> Iterator[int]:
        return iter((self.level, self.x, self.y, self.z))

    def __lt__(self, other: "NodeId") -> bool:
        return self.key < other.key

    def __str__(self) -> str:
        return f"L{self.level}/{self.x}-{self.y}-{self.z}"

    @classmethod
    def parse(cls, text: str) -> "NodeId":
        """Inverse of str(); SettingsError if `text` is no node id."""
        match = _TEXT.fullmatch(text)
        try:
            if match is not None:
                return cls(*(int(v) for v in match.groups()))
        except ValueError as error:
            raise SettingsError(f"node id {text!r}: {error}") from None
        raise SettingsError(f"node id: expected LEVEL/X-Y-Z such as L3/5-2-0 ('info' lists them), got {text!r}")


def encode_keys(levels: ArrayLike, xyz: AnyArray) -> Int64:
    """int64[n] keys of nodes given as a level (or int[n] levels) and int[n, 3] cells.

    ValueError if any level or cell is out of range.
    """
    check_shape("xyz", xyz, (None, 3))
    cells = xyz.astype(np.int64)
    level = np.broadcast_to(np.asarray(levels, dtype=np.int64), (len(cells),))
    if ((level < 0) | (level > MAX_LEVEL)).any():
        raise ValueError(f"node levels: expected 0 to {MAX_LEVEL}, got {level.min()} to {level.max()}")
    if ((cells < 0) | (cells >> level[:, None] != 0)).any():
        raise ValueError("node cells: expected 0 <= x, y, z < 2^level for every node, got cells outside their level")
    return (level << LEVEL_SHIFT) | morton(cells)


def decode_keys(keys: Int64) -> tuple[Int32, Int64]:
    """(levels int32[n], cells int64[n, 3]) of int64[n] keys; ValueError if one of them is no key."""
    levels = key_levels(keys)
    code = keys & _CODE_MASK
    if (code >> (3 * levels.astype(np.int64)) != 0).any():
        raise ValueError("node keys: expected Morton codes below 8^level, got a cell outside its level")
    return levels, np.stack([_compact(code), _compact(code >> 1), _compact(code >> 2)], axis=-1)


def key_levels(keys: Int64) -> Int32:
    """int32[n] levels of int64[n] keys; ValueError if one is not 0 to MAX_LEVEL."""
    check_shape("keys", keys, (None,))
    levels = keys >> LEVEL_SHIFT
    if ((levels < 0) | (levels > MAX_LEVEL)).any():
        raise ValueError(f"node keys: expected levels 0 to {MAX_LEVEL}, got {levels.min()} to {levels.max()}")
    return levels.astype(np.int32)


def parent_keys(keys: Int64) -> Int64:
    """int64[n] keys one level up; ValueError if the root is among `keys`."""
    return ancestor_keys(keys, key_levels(keys) - 1)


def child_keys(keys: Int64) -> Int64:
    """int64[n, 8] keys one level down, column c = dx + 2 dy + 4 dz; ValueError at MAX_LEVEL."""
    levels = key_levels(keys).astype(np.int64)
    if (levels == MAX_LEVEL).any():
        raise ValueError(f"children: expected nodes above level {MAX_LEVEL}, got one at that level")
    first = ((levels + 1) << LEVEL_SHIFT) | (keys & _CODE_MASK) << 3
    return first[:, None] + np.arange(8, dtype=np.int64)


def ancestor_keys(keys: Int64, level: ArrayLike) -> Int64:
    """int64[n] keys of the ancestors at `level` (one for all, or int[n]); ValueError unless 0 <= level <= own level."""
    levels = key_levels(keys).astype(np.int64)
    target = np.broadcast_to(np.asarray(level, dtype=np.int64), levels.shape)
    if ((target < 0) | (target > levels)).any():
        raise ValueError("ancestors: expected levels from 0 to each node's own, got one outside")
    return (target << LEVEL_SHIFT) | (keys & _CODE_MASK) >> 3 * (levels - target)


def morton(cells: Int64) -> Int64:
    """int64[n] Morton codes of int64[n, 3] cells, each 0 <= cell < 2^MAX_LEVEL (not checked), x in bit 0."""
    return _spread(cells[:, 0]) | _spread(cells[:, 1]) << 1 | _spread(cells[:, 2]) << 2


def _spread(v: Bits) -> Bits:
    """Moves bit i to bit 3 i; v is an int or int64[n]."""
    v = (v | v << 32) & 0x1F00000000FFFF
    v = (v | v << 16) & 0x1F0000FF0000FF
    v = (v | v << 8) & 0x100F00F00F00F00F
    v = (v | v << 4) & 0x10C30C30C30C30C3
    return (v | v << 2) & 0x1249249249249249


def _compact(v: Int64) -> Int64:
    """Inverse of _spread; ignores the other bits."""
    v = v & 0x1249249249249249
    v = (v ^ v >> 2) & 0x10C30C30C30C30C3
    v = (v ^ v >> 4) & 0x100F00F00F00F00F
    v = (v ^ v >> 8) & 0x1F0000FF0000FF
    v = (v ^ v >> 16) & 0x1F00000000FFFF
    return (v ^ v >> 32) & 0x1FFFFF


@dataclass(frozen=True, slots=True)
class RootCube:
    """The cube of the root node: its lowest corner `origin` and its `edge`, world units.

    ValueError unless both are finite and the edge is positive.
    """

    origin: Vector
    edge: float

    def __post_init__(self) -> None:
        x, y, z = (float(v) for v in self.origin)
        object.__setattr__(self, "origin", (x, y, z))
        object.__setattr__(self, "edge", float(self.edge))
        if not np.isfinite((x, y, z, self.edge)).all() or self.edge <= 0:
            raise ValueError(f"root cube: expected a finite origin and an edge > 0, got {self.origin} and {self.edge}")

    def to_unit(self, points: Float64) -> Float64:
        """float64[..., 3] world points in units of the cube: inside is [0, 1)^3, points outside fall outside it."""
        unit: Float64 = (points - np.asarray(self.origin)) / self.edge
        return unit

    def to_world(self, unit: Float64) -> Float64:
        """Inverse of to_unit, float64[..., 3]."""
        return np.asarray(self.origin) + unit * self.edge

    def node_edge(self, level: int) -> float:
        """Edge of the nodes of a level, world units."""
        return self.edge / (1 << level)

    def node_box(self, node: NodeId) -> Aabb:
        """World box of a node; neighbours get bit-equal faces, whatever their levels."""
        cell = np.array([node.x, node.y, node.z], dtype=np.float64)
        lo, hi = (self.to_world(corner / (1 << node.level)).tolist() for corner in (cell, cell + 1))
        return Aabb((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))
