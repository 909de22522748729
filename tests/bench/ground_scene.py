"""A scene store of the default field's size whose nodes lie along a wavy ground, with random contents."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import Float64
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader
from tests.bench.surfaces import EDGE, ground_cells, ground_keys, height

HIDDEN, GEOMETRY = 64, 15
_DEPTH_PER_VOXEL = 0.4
"""Optical depth of a voxel of the finest level: a ray ends after some 17."""
_ROWS = 16
"""Different rows of random numbers; making one for every node would take longer than drawing."""


def ground_scene(
    place: Path | Any, shape: FieldShape, depth: int, *, bands: tuple[int, ...] = (0,), settings: Any = None
) -> Scene:
    """All nodes of the ground down to level `depth`, trained by nobody; a ground as opaque as trained ones are."""
    rng = np.random.default_rng(0)
    gsd_root = EDGE / shape.cells
    gsd_fine = gsd_root / 2**depth
    values: dict[str, Any] = {
        "octree": {"cells": shape.cells},
        "field": {
            "features": shape.features,
            "table_log2": shape.table_size.bit_length() - 1,
            "hidden": HIDDEN,
            "geometry_features": GEOMETRY,
        },
        "rendering": {"memory_budget": "16GiB", **(settings or {})},
    }
    store = SceneStore.create(
        place,
        SceneHeader(
            root=RootCube((0.0, 0.0, 0.0), EDGE),
            cells=shape.cells,
            table_size=shape.table_size,
            features=shape.features,
            base_cells=shape.base_cells,
            occupancy_cells=shape.occupancy_cells,
            band_levels=bands,
            max_level=depth,
            gsd_ref=gsd_fine,
            settings=values,
        ),
    )
    index = SceneIndex.planned(cut(Octree.from_keys(ground_keys(depth)), bands))
    slots = np.array(store.allocate(index.num_nodes), np.int32)
    bases = np.array(store.allocate_treelets(index.num_treelets), np.int32)
    cells = ground_cells(index.keys, shape.occupancy_cells).reshape(index.num_nodes, -1)
    tables = rng.normal(0.0, 0.05, (_ROWS, shape.row_length)).astype(np.float16)
    for row, slot in enumerate(slots.tolist()):
        store.write_node(slot, tables[row % _ROWS], np.packbits(cells[row], bitorder="little"))
    vertices = shape.base_cells + 1
    grid = rng.normal(0.0, 0.05, (vertices, vertices, vertices, shape.features)).astype(np.float16)
    for base in bases.tolist():
        store.write_base(base, grid)
    decoder = Decoder(
        decoder_shape(
            features=shape.features,
            hidden=HIDDEN,
            geometry_features=GEOMETRY,
            density_bias=5.0,
            gsd_ref=gsd_fine,
            gsd_finest=gsd_fine,
        ),
        torch.Generator().manual_seed(0),
    )
    arrays = decoder.to_arrays()
    arrays["density_out.weight"][0] = 0.0
    arrays["density_out.bias"][0] = 5.0 + np.log(_DEPTH_PER_VOXEL)
    store.write_small("decoder", arrays)
    store.write_small("background", {"coefficients": np.zeros((9, 3), np.float32)})
    affine = np.eye(3, 4, dtype=np.float32)[None]
    store.write_small("appearance", {"affine": affine, "known": np.ones(1, np.uint8)})
    cameras = PosedCameras((frame_camera(64, 36),), np.zeros(1, np.int32), frame_pose()[None])
    store.write_cameras(cameras, ("photo.png",), np.zeros(1, np.bool_))
    store.commit(
        replace(
            index,
            slots=slots,
            states=np.full(index.num_nodes, NodeState.TRAINED, np.uint8),
            lambda_max=np.full(index.num_nodes, 20.0, np.float32),
            base_slots=bases,
            treelet_states=np.full(index.num_treelets, TreeletState.TRAINED, np.uint8),
        )
    )
    return Scene.of_store(store)


def frame_pose() -> Float64:
    """float64[3, 4]: aslant over the ground, which fills the picture; 1280 pixels across want levels 3 to 5 of 128
    cells."""
    eye = np.array([0.2 * EDGE, 0.2 * EDGE, 0.0])
    eye[2] = EDGE * (float(height(np.array(0.2), np.array(0.2))) + 0.3)
    target = np.array([0.55 * EDGE, 0.55 * EDGE, 0.3 * EDGE])
    return look_at(eye[None], target[None], np.array([0.0, 0.0, 1.0]))[0]


def frame_camera(width: int, tall: int) -> Camera:
    """A camera for pictures of that size."""
    return Camera("SIMPLE_PINHOLE", width, tall, (1.1 * width, width / 2, tall / 2))
