"""What a scene store contains, in numbers: rows, tensors, caps, and the header that every other size follows from.

A row is one chunk of a Zarr array. Its schema (tensor name, dtype, shape, byte offset) is kept in the root attributes,
so a row can be read without this package. Node keys are `level << 57 | Morton code of (x, y, z)`, x in bit 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from infnerf_tiles.errors import DamagedStoreError, StoreFormatError
from infnerf_tiles.geometry.node_id import MAX_LEVEL, RootCube

FORMAT_VERSION = 1

# Caps: nothing larger is allocated, whatever a file claims.
MAX_SLOTS = 1 << 30
MAX_NODES = 1 << 27
MAX_TREELETS = 1 << 24
MAX_ROW_BYTES = 1 << 28
MAX_OBJECT_BYTES = 1 << 30
MAX_SHARD_ROWS = 1 << 16
MAX_DOCUMENT_BYTES = 1 << 26

NODE_KEY_NOTE = "int64: level << 57 | Morton code of (x, y, z), x in bit 0 of each triple"
OCCUPANCY_NOTE = "numpy.packbits(cells, bitorder='little'), cells in C order of (z, y, x)"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor inside a row: numpy dtype name (little-endian), shape, offset in bytes from the start of the row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "offset": self.offset}


@dataclass(frozen=True, kw_only=True)
class RowSchema:
    """The tensors of one row; `dtype` is that of the Zarr array which holds the rows."""

    dtype: str
    tensors: tuple[TensorSpec, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return max((t.offset + t.nbytes for t in self.tensors), default=0)

    @property
    def row_length(self) -> int:
        """Elements of `dtype` in one row."""
        return self.row_bytes // np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values."""
        return {"dtype": self.dtype, "row_length": self.row_length, "tensors": [t.to_json() for t in self.tensors]}


def _row(dtype: str, name: str, shape: tuple[int, ...]) -> RowSchema:
    return RowSchema(dtype=dtype, tensors=(TensorSpec(name=name, dtype=dtype, shape=shape, offset=0),))


@dataclass(frozen=True, kw_only=True)
class SceneHeader:
    """Everything about a scene that is fixed when it is built, and its present capacities.

    root: the octree's cube, world units. cells: N, cells per node edge. table_size: T entries of a node's table.
    features: F. base_cells: cells per edge of a base grid, which has (base_cells + 1)^3 vertices. occupancy_cells:
    cells per edge of a node's occupancy. band_levels: levels of the treelet roots, ascending from 0. max_level: deepest
    level that growth may reach. gsd_ref: world units. settings: the resolved settings, JSON values. georeference: JSON
    values (`crs`, `origin`, `model_to_crs`) or None. capacity, treelet_capacity: rows that the arrays can hold.
    shard_rows: rows that share one object, 1 except in packed copies, which cannot be changed.
    dataset: name of the input folder, without its path. created (ISO 8601), package_version: filled in by
    `SceneStore.create` when empty. ValueError if a number is out of range.
    """

    root: RootCube
    cells: int
    table_size: int
    features: int
    base_cells: int
    occupancy_cells: int
    band_levels: tuple[int, ...]
    max_level: int
    gsd_ref: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    georeference: Mapping[str, Any] | None = None
    capacity: int = 1024
    treelet_capacity: int = 64
    shard_rows: int = 1
    dataset: str = ""
    created: str = ""
    package_version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "band_levels", tuple(int(level) for level in self.band_levels))
        limits = {
            "cells": (1, 4096),
            "table_size": (1, 1 << 26),
            "features": (1, 64),
            "base_cells": (1, 512),
            "occupancy_cells": (1, 1024),
            "max_level": (0, MAX_LEVEL),
            "capacity": (1, MAX_SLOTS),
            "treelet_capacity": (1, MAX_TREELETS),
            "shard_rows": (1, MAX_SHARD_ROWS),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"scene header {name}: expected an integer from {low} to {high}, got {value!r}")
        if not (math.isfinite(self.gsd_ref) and self.gsd_ref > 0):
            raise ValueError(f"scene header gsd_ref: expected a positive length, got {self.gsd_ref!r}")
        bands = self.band_levels
        if not bands or bands[0] != 0 or list(bands) != sorted(set(bands)) or bands[-1] > self.max_level:
            raise ValueError(
                f"scene header band_levels: expected ascending levels from 0 to max_level {self.max_level}, got {bands}"
            )
        for name, schema in self.rows.items():
            if schema.row_bytes > MAX_ROW_BYTES:
                raise ValueError(
                    f"scene header: expected rows of {name} up to {MAX_ROW_BYTES} bytes, got {schema.row_bytes}"
                )

    @property
    def occupancy_bytes(self) -> int:
        """B: bytes of one node's occupancy bits."""
        return -(-(self.occupancy_cells**3) // 8)

    @property
    def rows(self) -> dict[str, RowSchema]:
        """The schema of each row array: `params` and `occupancy` per node, `base` per treelet."""
        vertices = self.base_cells + 1
        return {
            "params": _row("float16", "table", (self.table_size, self.features)),
            "occupancy": _row("uint8", "bits", (self.occupancy_bytes,)),
            "base": _row("float16", "grid", (vertices, vertices, vertices, self.features)),
        }

    def to_json(self) -> dict[str, Any]:
        """The root attributes that stem from the header."""
        return {
            "scene": {
                "root_origin": list(self.root.origin),
                "root_edge": self.root.edge,
                "cells": self.cells,
                "table_size": self.table_size,
                "features": self.features,
                "base_cells": self.base_cells,
                "occupancy_cells": self.occupancy_cells,
                "band_levels": list(self.band_levels),
                "max_level": self.max_level,
                "gsd_ref": self.gsd_ref,
            },
            "capacity": self.capacity,
            "treelet_capacity": self.treelet_capacity,
            **({"shard_rows": self.shard_rows} if self.shard_rows > 1 else {}),
            "rows": {name: schema.to_json() for name, schema in self.rows.items()},
            "node_keys": NODE_KEY_NOTE,
            "occupancy_bits": OCCUPANCY_NOTE,
            "settings": dict(self.settings),
            "georeference": None if self.georeference is None else dict(self.georeference),
            "provenance": {
                "dataset": self.dataset,
                "created": self.created,
                "package_version": self.package_version,
            },
        }

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> "SceneHeader":
        """Inverse of `to_json`; DamagedStoreError if something is missing or out of range, StoreFormatError if the
        rows are laid out otherwise than this version would lay them out."""
        try:
            scene = dict(attributes["scene"])
            origin = tuple(float(v) for v in scene.pop("root_origin"))
            provenance = attributes["provenance"]
            header = cls(
                root=RootCube((origin[0], origin[1], origin[2]), float(scene.pop("root_edge"))),
                settings=attributes["settings"],
                georeference=attributes["georeference"],
                capacity=attributes["capacity"],
                treelet_capacity=attributes["treelet_capacity"],
                shard_rows=attributes.get("shard_rows", 1),
                dataset=provenance["dataset"],
                created=provenance["created"],
                package_version=provenance["package_version"],
                **scene,
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DamagedStoreError(
                f"scene header: expected complete attributes of format {FORMAT_VERSION}, got {error!r}; "
                "run 'verify --repair' or build the scene again"
            ) from error
        expected = {name: schema.to_json() for name, schema in header.rows.items()}
        if attributes.get("rows") != expected:
            raise StoreFormatError(
                f"scene rows: expected {expected}, got {attributes.get('rows')}; open it with the version that made it"
            )
        return header

    def with_capacity(self, capacity: int, treelet_capacity: int) -> "SceneHeader":
        """The same header with other capacities."""
        return replace(self, capacity=capacity, treelet_capacity=treelet_capacity)


def pack_tensors(shapes: Sequence[tuple[str, str, tuple[int, ...]]], alignment: int = 64) -> RowSchema:
    """A uint8 row that holds the given (name, dtype, shape) tensors one after the other, each aligned."""
    tensors: list[TensorSpec] = []
    offset = 0
    for name, dtype, shape in shapes:
        tensors.append(TensorSpec(name=name, dtype=dtype, shape=shape, offset=offset))
        offset += -(-tensors[-1].nbytes // alignment) * alignment
    return RowSchema(dtype="uint8", tensors=tuple(tensors))
