"""The octree's topology: which nodes exist. Immutable; everything else about a node is kept elsewhere, by key."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from infnerf_tiles.arrays import AnyArray, Bool, Float64, Int32, Int64, check_shape
from infnerf_tiles.geometry.node_id import (
    LEVEL_SHIFT,
    MAX_LEVEL,
    NodeId,
    ancestor_keys,
    decode_keys,
    key_levels,
    morton,
    parent_keys,
)

Array = TypeVar("Array", bound=AnyArray)


@dataclass(frozen=True, eq=False)
class Octree:
    """A set of nodes closed under parents. Build it with `from_keys`.

    keys: int64[n], sorted, unique, read-only; row i of every other array is node keys[i].
    """

    keys: Int64

    @classmethod
    def from_keys(cls, keys: AnyArray) -> "Octree":
        """The smallest octree with the nodes of int64[n] `keys` (any order, repeats allowed) and their ancestors."""
        wanted = np.unique(np.asarray(keys, dtype=np.int64))
        decode_keys(wanted)  # refuses what is no key
        parts = [wanted]
        level = key_levels(wanted)
        # one level at a time from the bottom: the ancestors found so far have parents too
        pending = np.empty(0, dtype=np.int64)
        for d in range(int(level[-1]) if len(level) else 0, 0, -1):
            pending = np.unique(parent_keys(np.concatenate([pending, wanted[level == d]])))
            parts.append(pending)
        merged = np.unique(np.concatenate(parts))
        merged.setflags(write=False)
        return cls(merged)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.keys)

    @cached_property
    def levels(self) -> Int32:
        """int32[n], ascending."""
        return _frozen(key_levels(self.keys))

    @cached_property
    def xyz(self) -> Int64:
        """int64[n, 3] cell of each node within its level."""
        return _frozen(decode_keys(self.keys)[1])

    @property
    def depth(self) -> int:
        """Deepest level; -1 for an empty octree."""
        return int(self.levels[-1]) if self.num_nodes else -1

    @cached_property
    def parents(self) -> Int32:
        """int32[n] row of each node's parent, -1 for the root."""
        rows = np.full(self.num_nodes, -1, dtype=np.int32)
        rows[1:] = self.index_of(parent_keys(self.keys[1:]))
        return _frozen(rows)

    @cached_property
    def children(self) -> Int32:
        """int32[n, 8] rows of each node's children, -1 where missing."""
        rows = np.full((self.num_nodes, 8), -1, dtype=np.int32)
        child = np.arange(1, self.num_nodes)
        rows[self.parents[1:], self.keys[1:] & 7] = child
        return _frozen(rows)

    def index_of(self, keys: AnyArray) -> Int64:
        """int64, shaped as `keys`: row of each node, -1 where it does not exist."""
        asked = np.asarray(keys, dtype=np.int64)
        if not self.num_nodes:
            return np.full(asked.shape, -1, dtype=np.int64)
        rows = np.minimum(np.searchsorted(self.keys, asked), self.num_nodes - 1)
        return np.where(self.keys[rows] == asked, rows, -1)

    def deepest_level(self, unit_points: Float64, limit: ArrayLike = MAX_LEVEL) -> Int32:
        """Level of the deepest existing node around each point, at most `limit` (one for all, or int[m]).

        `unit_points`: float64[m, 3] in units of the root cube. Returns int32[m]; -1 outside the cube, or if the octree
        is empty.
        """
        rows = self.deepest_row(unit_points, limit)
        return np.where(rows >= 0, self.levels[rows], -1).astype(np.int32) if self.num_nodes else rows.astype(np.int32)

    def deepest_row(self, unit_points: Float64, limit: ArrayLike = MAX_LEVEL) -> Int64:
        """As deepest_level, but the row of that node: int64[m], -1 where there is none."""
        check_shape("unit_points", unit_points, (None, 3))
        found = np.full(len(unit_points), -1, dtype=np.int64)
        if not self.num_nodes:
            return found
        limits = np.broadcast_to(np.asarray(limit, dtype=np.int64), found.shape)
        active = np.flatnonzero(inside_unit(unit_points) & (limits >= 0))
        found[active] = 0
        code = morton(unit_cells(unit_points[active], self.depth))
        for d in range(1, self.depth + 1):
            keep = limits[active] >= d
            active, code = active[keep], code[keep]
            below = self.children[found[active], (code >> 3 * (self.depth - d)) & 7]
            exists = below >= 0
            active, code = active[exists], code[exists]
            found[active] = below[exists]
        return found

    def with_keys(self, keys: AnyArray) -> "Octree":
        """This octree and the nodes of int64[k] `keys`, with their ancestors."""
        return Octree.from_keys(np.concatenate([self.keys, np.asarray(keys, dtype=np.int64)]))

    def without(self, keys: AnyArray) -> "Octree":
        """This octree without the nodes of int64[k] `keys` and whatever hangs below them; unknown keys are ignored."""
        return self.without_rows(np.isin(self.keys, np.asarray(keys, dtype=np.int64)))

    def without_rows(self, rows: Bool) -> "Octree":
        """This octree without the nodes of bool[n] `rows` and whatever hangs below them."""
        check_shape("rows", rows, (self.num_nodes,))
        if not rows.any():
            return self
        gone = rows.copy()
        for d in range(1, self.depth + 1):
            level_rows = np.flatnonzero(self.levels == d)
            gone[level_rows] |= gone[self.parents[level_rows]]
        return Octree(_frozen(self.keys[~gone]))


@dataclass(frozen=True, eq=False)
class Treelet:
    """A root node and its existing descendants down to the next band.

    band: index of the band among the octree's band root levels. keys: int64[k], sorted, the root first.
    """

    root: NodeId
    band: int
    keys: Int64


def inside_unit(unit_points: Float64) -> Bool:
    """bool[m]: which of float64[m, 3] lie in [0, 1)^3; NaN does not."""
    inside: Bool = np.logical_and.reduce((unit_points >= 0) & (unit_points < 1), axis=1)
    return inside


def unit_cells(unit_points: Float64, level: int) -> Int64:
    """int64[m, 3] cells at `level` of float64[m, 3] points in units of the root cube (exact: a power of two scales)."""
    return np.floor(unit_points * float(1 << level)).astype(np.int64)


def grow_from_points(
    unit_points: Float64,
    wanted_levels: Float64,
    max_level: int,
    min_points: int,
    dilation: bool = True,
    *,
    margin_cells: float = 2.0,
    cells_per_edge: int = 128,
) -> Octree:
    """The octree that the points ask for.

    A node of level d exists where at least `min_points` points in its cube are wanted at λ >= d − 0.5, so a child never
    exists without its parent; the root always exists. With `dilation` a node's cube is taken larger by `margin_cells`
    of its own cells (of `cells_per_edge`) on each side, which keeps surfaces near its faces covered.

    unit_points: float64[m, 3] in units of the root cube (points outside are ignored); wanted_levels: float64[m].
    ValueError if max_level, min_points or the margin (below half an edge) make no sense.
    """
    check_shape("unit_points", unit_points, (None, 3))
    check_shape("wanted_levels", wanted_levels, (len(unit_points),))
    margin = margin_cells / cells_per_edge if dilation else 0.0
    if not 0 <= max_level <= MAX_LEVEL:
        raise ValueError(f"max_level: expected 0 to {MAX_LEVEL}, got {max_level}")
    if min_points < 1:
        raise ValueError(f"min_points: expected at least 1, got {min_points}")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin: expected margin_cells / cells_per_edge in [0, 0.5), got {margin}")
    inside = inside_unit(unit_points)
    points, wanted = unit_points[inside], wanted_levels[inside]
    levels = [np.zeros(1, dtype=np.int64)]
    for d in range(1, max_level + 1):
        enough = wanted >= d - 0.5
        points, wanted = points[enough], wanted[enough]
        code, count = np.unique(_touched(points, d, margin), return_counts=True)
        code = code[count >= min_points]
        if not len(code):
            break
        levels.append((d << LEVEL_SHIFT) | code)
    return Octree(_frozen(np.concatenate(levels)))


def _touched(points: Float64, level: int, margin: float) -> Int64:
    """Morton codes of every cube that holds a point or has it within `margin` edges; one entry per (point, cube)."""
    cells = unit_cells(points, level)
    if margin > 0:
        fraction = points * float(1 << level) - cells
        for axis in range(3):
            low = np.flatnonzero((fraction[:, axis] < margin) & (cells[:, axis] > 0))
            high = np.flatnonzero((fraction[:, axis] >= 1 - margin) & (cells[:, axis] < (1 << level) - 1))
            step = np.zeros(3, dtype=np.int64)
            step[axis] = 1
            cells = np.concatenate([cells, cells[low] - step, cells[high] + step])
            # the copies keep the point's fraction, so that edges and corners follow from the axes in turn
            fraction = np.concatenate([fraction, fraction[low], fraction[high]])
    return morton(cells)


def band_root_levels(depth: int, treelet_height: int) -> tuple[int, ...]:
    """Ascending levels at which an octree of `depth` (deepest level) is cut.

    Bands are `treelet_height` levels each, counted from the finest up; the first band takes what is left over.
    """
    if depth < 0 or treelet_height < 1:
        raise ValueError(f"bands: expected depth >= 0 and treelet_height >= 1, got {depth} and {treelet_height}")
    return (0, *sorted(range(depth + 1 - treelet_height, 0, -treelet_height)))


def treelet_root_keys(keys: Int64, band_levels: Sequence[int]) -> Int64:
    """int64[n] key of the treelet root that each node of int64[n] `keys` belongs to."""
    bands = _band_array(band_levels)
    return ancestor_keys(keys, bands[np.searchsorted(bands, key_levels(keys), side="right") - 1])


def cut(octree: Octree, band_levels: Sequence[int]) -> tuple[Treelet, ...]:
    """The octree's treelets, sorted by band, then by root key. Every node is in exactly one."""
    bands = _band_array(band_levels)
    roots = treelet_root_keys(octree.keys, band_levels)
    # stable: within a treelet the keys stay sorted, so its root comes first
    order = np.argsort(roots, kind="stable")
    unique_roots, starts = np.unique(roots[order], return_index=True)
    groups = np.split(octree.keys[order], starts[1:]) if len(unique_roots) else []
    levels, cells = decode_keys(unique_roots)
    band = np.searchsorted(bands, levels)
    return tuple(
        Treelet(NodeId(level, x, y, z), b, _frozen(keys))
        for level, (x, y, z), b, keys in zip(levels.tolist(), cells.tolist(), band.tolist(), groups, strict=True)
    )


def _band_array(band_levels: Sequence[int]) -> Int64:
    bands = np.asarray(band_levels, dtype=np.int64)
    if not len(bands) or bands[0] != 0 or (np.diff(bands) <= 0).any():
        raise ValueError(f"band levels: expected ascending levels that start at 0, got {tuple(band_levels)}")
    return bands


def _frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array
