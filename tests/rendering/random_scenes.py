"""Small scene stores with random contents for the renderer's tests."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import RootCube, encode_keys
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader

SHAPE = FieldShape(cells=16, table_size=512, features=4)
ROOT = RootCube((-32.0, -32.0, -32.0), 64.0)
GSD_ROOT = ROOT.edge / SHAPE.cells
MAX_LEVEL = 4
BANDS = (0, 2)
CAMERA = Camera("SIMPLE_PINHOLE", 48, 36, (60.0, 24.0, 18.0))
PHOTOS = 5


def full_keys(depth: int) -> Int64:
    """Keys of every node of a level."""
    cells = np.stack(np.unravel_index(np.arange(8**depth), (2**depth,) * 3), axis=1)
    return encode_keys(depth, cells)


def near_keys(depth: int, point: tuple[float, float, float], reach: float = 1.0) -> Int64:
    """Keys of the nodes of a level whose centres are within `reach` of their edges of a world point, per axis."""
    keys = full_keys(depth)
    octree = Octree.from_keys(keys)
    rows = octree.index_of(keys)
    centres = (octree.xyz[rows] + 0.5) / 2**depth
    near = np.abs(centres - ROOT.to_unit(np.array(point))) * 2**depth <= reach
    return keys[near.all(axis=1)]


def header(settings: Mapping[str, Any] | None = None, bands: tuple[int, ...] = BANDS) -> SceneHeader:
    """The header of all scenes here; settings: changes by section."""
    values: dict[str, Any] = {
        "octree": {"cells": SHAPE.cells},
        "field": {"features": SHAPE.features, "table_log2": 9, "hidden": 16, "geometry_features": 7},
        "rendering": {"device": "cpu"},
    }
    for section, changes in (settings or {}).items():
        values.setdefault(section, {}).update(changes)
    return SceneHeader(
        root=ROOT,
        cells=SHAPE.cells,
        table_size=SHAPE.table_size,
        features=SHAPE.features,
        base_cells=SHAPE.base_cells,
        occupancy_cells=SHAPE.occupancy_cells,
        band_levels=bands,
        max_level=MAX_LEVEL,
        gsd_ref=GSD_ROOT / 4,
        settings=values,
    )


def planned_scene(place: Path | Any) -> SceneStore:
    """A scene as it is between build and train."""
    store = SceneStore.create(place, header())
    store.commit(SceneIndex.planned(cut(Octree.from_keys(near_keys(2, (0.1, 0.1, 0.1))), BANDS)))
    return store


def make_scene(
    place: Path | Any,
    *,
    keys: Int64 | None = None,
    seed: int = 0,
    fill: float = 0.15,
    density: float = 1.0,
    bands: tuple[int, ...] = BANDS,
    settings: Mapping[str, Any] | None = None,
    lambda_max: float = 20.0,
    photos: PosedCameras | None = None,
    noise: float = 0.6,
    planned: Int64 | None = None,
    nested: bool = False,
) -> SceneStore:
    """A committed scene with random tables, bases and decoder; nodes down to MAX_LEVEL around its middle.

    fill: share of occupied cells. density: added to the decoder's log density. noise: spread of the features.
    planned: keys of nodes that are in the index but not trained. nested: a child has its parent's occupied cells.
    """
    rng = np.random.default_rng(seed)
    store = SceneStore.create(place, header(settings, bands))
    octree = Octree.from_keys(near_keys(3, (0.1, 0.1, 0.1), 1.0) if keys is None else keys)
    index = SceneIndex.planned(cut(octree, bands))
    untrained = np.zeros(index.num_nodes, np.bool_) if planned is None else np.isin(index.keys, planned)
    slots = np.array(store.allocate(index.num_nodes), np.int32)
    bases = np.array(store.allocate_treelets(index.num_treelets), np.int32)
    cells = [blocks(rng, fill) for _ in range(index.num_nodes)]
    for row, (slot, parent) in enumerate(zip(slots.tolist(), octree.parents.tolist(), strict=True)):
        if nested and parent >= 0:
            cells[row] = octant(cells[parent], octree.xyz[row] & 1)
        table = rng.normal(0.0, noise, SHAPE.row_length).astype(np.float16)
        store.write_node(slot, table, np.packbits(cells[row].ravel(), bitorder="little"))
    vertices = SHAPE.base_cells + 1
    for base in bases.tolist():
        grid = rng.normal(0.0, noise, (vertices, vertices, vertices, SHAPE.features))
        store.write_base(base, grid.astype(np.float16))
    write_small_parts(store, density=density, seed=seed, photos=photos)
    store.commit(
        replace(
            index,
            slots=slots,
            states=np.where(untrained, NodeState.PLANNED, NodeState.TRAINED).astype(np.uint8),
            lambda_max=np.full(index.num_nodes, lambda_max, np.float32),
            base_slots=bases,
            treelet_states=np.full(index.num_treelets, TreeletState.TRAINED, np.uint8),
        )
    )
    return store


def write_small_parts(store: SceneStore, *, density: float, seed: int, photos: PosedCameras | None = None) -> None:
    """Decoder, background, appearance and cameras, random but repeatable."""
    decoder = Decoder(
        decoder_shape(
            features=SHAPE.features,
            hidden=16,
            geometry_features=7,
            density_bias=5.0,
            gsd_ref=store.header.gsd_ref,
            gsd_finest=GSD_ROOT / 2**MAX_LEVEL,
        ),
        torch.Generator().manual_seed(seed),
    )
    arrays = decoder.to_arrays()
    arrays["density_out.bias"][0] += 5.0 + density
    store.write_small("decoder", arrays)
    rng = np.random.default_rng(seed + 1)
    store.write_small("background", {"coefficients": rng.normal(size=(9, 3)).astype(np.float32)})
    cameras = poses_around() if photos is None else photos
    num = cameras.num_photos
    affine = np.eye(3, 4, dtype=np.float32) + rng.normal(0.0, 0.02, (num, 3, 4)).astype(np.float32)
    store.write_small("appearance", {"affine": affine, "known": (np.arange(num) % 2 == 0).astype(np.uint8)})
    store.write_cameras(cameras, tuple(f"photo_{i}.png" for i in range(num)), np.arange(num) % 2 == 1)


def blocks(rng: np.random.Generator, fill: float) -> Bool:
    """bool[O, O, O]: occupied cells in blocks of two."""
    half = SHAPE.occupancy_cells // 2
    coarse = rng.random((half, half, half)) < fill
    return coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)


def octant(cells: Bool, place: Int64) -> Bool:
    """One eighth of a node's cells bool[O, O, O] (z, y, x), twice as fine; place: int64[3] (x, y, z), 0 or 1 each."""
    half = cells.shape[0] // 2
    x, y, z = (slice(half * int(p), half * (int(p) + 1)) for p in place)
    return cells[z, y, x].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)


def poses_around(num: int = PHOTOS, distance: float = 40.0) -> PosedCameras:
    """Cameras on a circle around the middle, looking at it from above."""
    angle = 2 * np.pi * np.arange(num) / num
    eyes = distance * np.stack([0.8 * np.cos(angle), 0.8 * np.sin(angle), np.full(num, 0.6)], axis=1)
    return PosedCameras(
        cameras=(CAMERA,),
        camera_index=np.zeros(num, np.int32),
        camera_to_world=look_at(eyes, np.zeros((num, 3)), np.array([0.0, 0.0, 1.0])),
    )


def pose(eye: tuple[float, float, float], target: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Float64:
    """float64[3, 4], a camera at `eye` that looks at `target`."""
    return look_at(np.array([eye]), np.array([target]), np.array([0.0, 0.0, 1.0]))[0]
