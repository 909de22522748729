"""Scenes of any number of nodes: topology and index are real and on disk, rows are made when they are read.

A million real rows of the default size are a terabyte. Here the ground of a city is a plane with blocks on it; a row is
valid, of full size, and follows from its slot: noise from a small pool (slot modulo the pool's size), and occupancy
from where the slot's node stands on the ground.
"""

from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from numcodecs.zstd import Zstd
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from infnerf_tiles.arrays import Int64
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import RootCube, decode_keys, encode_keys
from infnerf_tiles.geometry.octree import Octree, band_root_levels, cut
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.settings import load_settings
from infnerf_tiles.store.documents import DOCUMENT, document_key, group_document, plain_group_document
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState, write_generation
from infnerf_tiles.store.location import open_location
from infnerf_tiles.store.root import CONTAINERS, RootState
from infnerf_tiles.store.row_arrays import RowArrays
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader

FINEST_GSD = 0.05  # metres; the same for all sizes: more nodes are a larger city
TREELET_HEIGHT = 4
_POOL = 8
_BLOCK_SHARE = 0.2  # of the leaf columns that a building stands on


def depth_for(num_nodes: int) -> int:
    """Depth of the octree whose number of nodes is nearest to that."""
    counts = [sum((1 + _BLOCK_SHARE) * 4**level for level in range(depth + 1)) for depth in range(12)]
    return int(np.argmin(np.abs(np.log(counts) - np.log(num_nodes))))


def make_scene(folder: Path, num_nodes: int, shape: FieldShape) -> int:
    """Write everything but the rows of a city of about so many nodes; returns the exact number."""
    depth = depth_for(num_nodes)
    side = 2**depth
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    ground = np.stack([x, y, np.full(side * side, side // 2)], axis=1)
    built = np.random.default_rng(1).random(side * side) < _BLOCK_SHARE
    keys = [encode_keys(depth, ground)]
    if depth > 1:
        keys.append(encode_keys(depth, ground[built] + np.array([0, 0, 1])))
    octree = Octree.from_keys(np.concatenate(keys))
    bands = band_root_levels(depth, TREELET_HEIGHT)
    settings = load_settings(None, [])
    edge = FINEST_GSD * shape.cells * side
    planned = SceneIndex.planned(cut(octree, bands))
    num, treelets = planned.num_nodes, planned.num_treelets
    index = SceneIndex(
        keys=planned.keys,
        slots=np.arange(num, dtype=np.int32),
        treelets=planned.treelets,
        states=np.full(num, NodeState.TRAINED, np.uint8),
        lambda_max=np.full(num, 40.0, np.float32),
        root_keys=planned.root_keys,
        bands=planned.bands,
        base_slots=np.arange(treelets, dtype=np.int32),
        treelet_states=np.full(treelets, TreeletState.TRAINED, np.uint8),
    )
    header = SceneHeader(
        root=RootCube((0.0, 0.0, 0.0), edge),
        cells=shape.cells,
        table_size=shape.table_size,
        features=shape.features,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        band_levels=bands,
        max_level=depth,
        gsd_ref=edge / shape.cells,
        settings=settings.model_dump(mode="json"),
        capacity=num,
        treelet_capacity=treelets,
    )
    root = RootState(header=header, generation=1, previous_generation=0, next_slot=num, next_treelet_slot=treelets)
    data = open_location(folder, "w")
    RowArrays(data, header).write_metadata(header)
    for container in CONTAINERS:
        data.write_bytes(document_key(container), plain_group_document())
    write_generation(data, 1, index, root.to_json())
    data.replace_durably(DOCUMENT, group_document(root.to_json()))
    store = SceneStore(data, root, writable=True)
    _write_small(store, settings)
    store.close()
    return num


def _write_small(store: SceneStore, settings: Any) -> None:
    header = store.header
    field = settings.field
    decoder = Decoder(
        decoder_shape(
            features=header.features,
            hidden=field.hidden,
            geometry_features=field.geometry_features,
            density_bias=field.density_bias,
            gsd_ref=header.gsd_ref,
            gsd_finest=FINEST_GSD,
        ),
        torch.Generator().manual_seed(0),
    )
    arrays = decoder.to_arrays()
    # what is occupied is opaque within a fraction of its finest cells
    arrays["density_out.bias"][0] += field.density_bias + float(np.log(4 * header.gsd_ref / FINEST_GSD))
    store.write_small("decoder", arrays)
    store.write_small("background", {"coefficients": np.zeros((9, 3), np.float32)})
    poses = np.stack(list(views(header.root.edge).values()))
    camera = Camera("SIMPLE_PINHOLE", 640, 480, (500.0, 320.0, 240.0))
    cameras = PosedCameras(cameras=(camera,), camera_index=np.zeros(len(poses), np.int32), camera_to_world=poses)
    store.write_cameras(cameras, tuple(views(1.0)), np.zeros(len(poses), np.bool_))


def views(edge: float) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """float64[3, 4] by name: along a street, obliquely from a drone, and all of the city from above."""
    middle, ground = edge / 2, edge / 2
    places = {
        "street": ((-0.3, -0.2, 2.0), (60.0, 11.0, 3.0)),
        "oblique": ((-0.4, -0.3, 120.0), (140.0, 90.0, 0.0)),
        "bird's-eye": ((0.0, -0.4 * edge, 0.75 * edge), (0.0, 0.0, 0.0)),
    }
    offset = np.array([middle + 0.013 * edge, middle - 0.021 * edge, ground])
    return {
        name: look_at(offset[None] + eye, offset[None] + target, np.array([0.0, 0.0, 1.0]))[0]
        for name, (eye, target) in places.items()
    }


class MadeRows(WrapperStore[LocalStore]):
    """A folder without rows, read as if they were there."""

    def __init__(self, folder: Path, shape: FieldShape, keys: Int64, edge: float) -> None:
        super().__init__(LocalStore(folder, read_only=True))
        self._levels, xyz = decode_keys(keys)
        self._heights = xyz[:, 2]
        self._shape = shape
        self._edge = edge
        self._pool: dict[tuple[str, int], bytes] = {}

    def _with_store(self, store: LocalStore) -> "MadeRows":
        other = copy(self)
        other._store = store
        return other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        kind, _, name = key.partition("/c.")
        if not name or kind not in ("params", "occupancy", "base"):
            return await self._store.get(key, prototype, byte_range)
        return prototype.buffer.from_bytes(self._row(kind, int(name.split(".")[0])))

    def _row(self, kind: str, slot: int) -> bytes:
        if kind == "occupancy":
            return self._occupancy(slot)
        found = self._pool.get((kind, slot % _POOL))
        if found is None:
            length = self._shape.row_length if kind == "params" else self._shape.base_length
            if kind == "base":
                length = (self._shape.base_cells + 1) ** 3 * self._shape.features
            noise = np.random.default_rng(slot % _POOL).normal(0.0, 0.02, length).astype(np.float16)
            found = self._pool[kind, slot % _POOL] = _encoded(noise.tobytes())
        return found

    def _occupancy(self, slot: int) -> bytes:
        """Ground and blocks: the cells of the node below the height of the city there."""
        cells = self._shape.occupancy_cells
        level, height = int(self._levels[slot]), int(self._heights[slot])
        finest = self._edge / 2 ** int(self._levels[-1])
        low = height * self._edge / 2**level - self._edge / 2  # of the node, above the ground's leaf
        top = finest * (1.6 if slot % 5 == 0 else 0.3)
        return _layers(cells, int(np.clip(np.ceil((top - low) / (self._edge / 2**level) * cells), 1, cells)))


@lru_cache(maxsize=256)
def _layers(cells: int, filled: int) -> bytes:
    occupied = np.zeros((cells, cells, cells), np.bool_)
    occupied[:filled] = True
    return _encoded(np.packbits(occupied.ravel(), bitorder="little").tobytes())


def _encoded(raw: bytes) -> bytes:
    body = bytes(Zstd(level=1).encode(raw))
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def open_made(folder: Path, shape: FieldShape) -> SceneStore:
    """The scene, with rows."""
    with SceneStore.open(folder) as store:
        index, edge = store.read_index(), store.header.root.edge
    return SceneStore.open(GuardedStore(MadeRows(folder, shape, index.keys, edge), str(folder)))
