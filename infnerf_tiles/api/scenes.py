"""Between an `InfNeRF` in memory and a scene store."""

from typing import TypeVar

import numpy as np
import torch

from infnerf_tiles.api.config import InfNeRFConfig
from infnerf_tiles.api.grid import OctreeGrid
from infnerf_tiles.api.octree_model import OctreeModel
from infnerf_tiles.arrays import Float16
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.errors import SettingsError, StoreError
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder
from infnerf_tiles.field.treelet import fold_corrections
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import key_levels
from infnerf_tiles.kernels.arena import dense_rows
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.settings import Settings, parse_stored_settings
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.location import Location
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader
from infnerf_tiles.store.stored_cameras import StoredCameras
from infnerf_tiles.training.inputs import Inputs, absolute, stored_settings
from infnerf_tiles.volume.occupancy import unpack_cells

Model = TypeVar("Model", bound=OctreeModel)
_FLOAT16_MOST = 65504.0


def settle(model: OctreeModel) -> None:
    """Bring a model to what a scene store keeps: features in float16, corrections folded into the base grids.

    The occupancy's decaying averages start over from its bits. Afterwards the model, a scene saved from it and a model
    loaded from that scene are the same bits. SettingsError if a part of the model is not the scene format's own.
    """
    if not (
        isinstance(model.grid, OctreeGrid)
        and isinstance(model.decoder, Decoder)
        and isinstance(model.background, Background)
    ):
        raise SettingsError(
            "save: expected the model's own grid, decoder and background, got custom ones, which a scene store has no "
            "place for; keep the model with torch.save(model.state_dict(), …) instead"
        )
    shape, grid = model.shape, model.grid
    with torch.no_grad():
        for values in (grid.tables, grid.dense):
            if not bool((values.abs() <= _FLOAT16_MOST).all()):
                raise SettingsError("save: a feature is not finite or too large for float16; train with a lower lr")
        grid.tables.copy_(grid.tables.half())
        first = 0
        for grids in model.dense_grids.tolist():
            rows = dense_rows(shape.base_cells, grids)
            own = grid.dense[first : first + rows]
            base = fold_corrections(own, shape, grids)
            own.zero_()
            own[: shape.base_rows].copy_(base.half())
            first += rows
        model.density_ema.copy_(_ema_of(model))
    model.octree_changed()


def _ema_of(model: OctreeModel) -> torch.Tensor:
    cells = unpack_cells(model.occupancy.cpu().numpy(), model.shape.occupancy_cells)
    flat = torch.from_numpy(cells.reshape(len(cells), -1).astype(np.float32))
    return flat.to(model.density_ema) * (2.0 * model.config.pruning_threshold)


def save_scene(model: OctreeModel, location: Location, dataset: PosedPhotos | None = None) -> None:
    """Write a model as a scene store: a new or empty folder, or a Zarr store.

    A scene keeps float16 and folded dense grids; the model itself is brought to that form first (`settle`), so that
    nothing is lost between the two. `dataset`: its cameras and photo names go along (for camera paths and `eval`).
    StoreError if there is a scene already; SettingsError for a custom grid, decoder or background.
    """
    settle(model)
    assert isinstance(model.grid, OctreeGrid)
    assert isinstance(model.decoder, Decoder)
    config, shape, num = model.config, model.shape, model.num_nodes
    cameras, names, is_test = _cameras(model, dataset)
    if config.num_photos and config.num_photos != cameras.num_photos:
        raise SettingsError(
            f"save: expected the data set of the {config.num_photos} photos whose colour transforms the model holds, "
            f"got {cameras.num_photos} photos; pass it as `dataset`"
        )
    keys = model.keys.cpu().numpy()
    tops = model.top_keys.cpu().numpy()
    top_levels = key_levels(tops)
    bands = np.unique(top_levels)
    header = SceneHeader(
        root=model.root,
        cells=shape.cells,
        table_size=shape.table_size,
        features=shape.features,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        band_levels=tuple(int(level) for level in bands),
        max_level=config.max_depth,
        gsd_ref=model.gsd_ref,
        settings=stored_settings(_settings(config, len(bands)), Inputs(dataset=_folder(dataset))),
        georeference=model.georeference,
        capacity=max(256, 2 * num),
        treelet_capacity=max(16, 2 * len(tops)),
        dataset="" if dataset is None else dataset.root.name,
    )
    tables = model.grid.tables.detach().half().cpu().numpy().reshape(num, -1)
    occupancy = model.occupancy.cpu().numpy()
    with SceneStore.create(location, header) as store:
        store.write_cameras(cameras, names, is_test)
        slots = store.allocate(num)
        base_slots = store.allocate_treelets(len(tops))
        for node, slot in enumerate(slots):
            store.write_node(slot, tables[node], occupancy[node])
        for slot, base in zip(base_slots, _bases(model), strict=True):
            store.write_base(slot, base)
        affine = model.appearance.affine.detach().float().cpu().numpy()
        if len(affine):
            store.write_small("appearance", {"affine": affine, "known": np.ones(len(affine), np.uint8)})
        background = model.background.coefficients
        assert isinstance(background, torch.Tensor)
        store.write_small("background", {"coefficients": background.detach().float().cpu().numpy()})
        store.write_small("decoder", dict(model.decoder.to_arrays()))
        store.commit(
            SceneIndex(
                keys=keys,
                slots=np.arange(slots.start, slots.stop, dtype=np.int32),
                treelets=model.treelet.cpu().numpy(),
                states=np.full(num, NodeState.TRAINED, np.uint8),
                lambda_max=model.lambda_max.float().cpu().numpy(),
                root_keys=tops,
                bands=np.searchsorted(bands, top_levels).astype(np.int32),
                base_slots=np.arange(base_slots.start, base_slots.stop, dtype=np.int32),
                treelet_states=np.full(len(tops), TreeletState.TRAINED, np.uint8),
            )
        )


def _bases(model: OctreeModel) -> list[Float16]:
    assert isinstance(model.grid, OctreeGrid)
    shape, first, bases = model.shape, 0, []
    v = shape.base_cells + 1
    for grids in model.dense_grids.tolist():
        rows = model.grid.dense.detach()[first : first + v**3].half().cpu().numpy()
        bases.append(rows.reshape(v, v, v, shape.features))
        first += dense_rows(shape.base_cells, grids)
    return bases


def _settings(config: InfNeRFConfig, num_bands: int) -> Settings:
    """The settings of the command line that say the same as the config."""
    height = (config.max_depth + 1) if num_bands == 1 else 1
    return parse_stored_settings(
        {
            "octree": {
                "cells": config.cells,
                "max_level": config.max_depth,
                "treelet_height": min(8, height),
                "min_points": config.sparse_point_threshold,
                "lod_bias": config.lod_bias,
                "max_nodes": config.max_nodes,
            },
            "field": {
                "features": config.features,
                "table_log2": config.log2_table_size,
                "hidden": config.hidden_dim,
                "geometry_features": config.geo_feat_dim,
                "density_bias": config.density_bias,
                "background": config.background,
                "appearance": config.num_photos > 0,
            },
            "training": {
                "samples_per_ray": config.num_samples,
                "samples_per_step": max(16384, config.num_samples),
                "step_size": config.step_size,
                "occupancy_threshold": config.pruning_threshold,
            },
            "rendering": {"step_size": config.render_step_size},
        },
        source="settings of a scene store from InfNeRFConfig",
    )


def _folder(dataset: PosedPhotos | None) -> str:
    return "" if dataset is None else absolute(dataset.root) or ""


def _cameras(model: OctreeModel, dataset: PosedPhotos | None) -> StoredCameras:
    if dataset is not None:
        return StoredCameras(dataset.cameras, dataset.names, dataset.is_test)
    if model.photos is not None:
        return model.photos
    unknown = Camera("SIMPLE_PINHOLE", 1, 1, (1.0, 0.5, 0.5))
    none = PosedCameras((unknown,), np.empty(0, np.int32), np.empty((0, 3, 4)))
    return StoredCameras(none, (), np.empty(0, np.bool_))


def load_scene(kind: type[Model], location: Location) -> Model:
    """The trained nodes of a scene store as a model on the CPU, however many treelets they are in.

    Saving it again writes the same rows, bit by bit. Its size is that of the scene in float32: draw large ones with
    `StreamingRenderer`. A model of several treelets can be drawn and trained by an optimizer of your own;
    `InfNeRFTrainer` takes those of one. Errors as `Scene.open`.
    """
    with Scene.open(location) as scene:
        index, octree, shape = scene.index, scene.octree, scene.shape
        config = _config(scene)
        model = kind(config)
        model.photos = StoredCameras(scene.cameras, scene.names, scene.is_test)
        model.georeference = scene.header.georeference
        rows = np.searchsorted(index.keys, octree.keys)
        used, treelet = np.unique(index.treelets[rows], return_inverse=True)
        one = len(used) == 1
        tables = torch.empty((len(rows), shape.table_size, shape.features))
        occupancy = torch.empty((len(rows), shape.occupancy_bytes), dtype=torch.uint8)
        for k, slot in enumerate(index.slots[rows].tolist()):
            row = scene.store.read_node(slot).astype(np.float32)
            tables[k] = torch.from_numpy(row).view(shape.table_size, shape.features)
            occupancy[k] = torch.from_numpy(scene.store.read_occupancy(slot))
        # one treelet can be trained further, with corrections; bases of many stay as they are
        grids = shape.num_corrections if one else 1
        per_treelet = dense_rows(shape.base_cells, grids)
        dense = torch.zeros((len(used) * per_treelet, shape.features))
        for k, base_slot in enumerate(index.base_slots[used].tolist()):
            base = torch.from_numpy(scene.store.read_base(base_slot).astype(np.float32)).view(-1, shape.features)
            dense[k * per_treelet : k * per_treelet + len(base)] = base
        assert isinstance(model.grid, OctreeGrid)
        model.grid.tables.data, model.grid.dense.data = tables, dense
        model.keys = torch.from_numpy(octree.keys.copy())
        model.treelet = torch.from_numpy(treelet.astype(np.int32))
        model.top_keys = torch.from_numpy(index.root_keys[used].copy())
        model.dense_grids = torch.full((len(used),), grids, dtype=torch.int32)
        model.occupancy = occupancy
        model.lambda_max = torch.from_numpy(index.lambda_max[rows].copy())
        model.density_ema = torch.zeros((len(rows), shape.occupancy_cells**3))
        model.density_ema = _ema_of(model)
        if not bool((model.top_keys == 0).any()):
            raise StoreError(f"scene {scene.store.name}: expected the treelet of the octree's root among the trained")
        model.decoder.load_state_dict(scene.decoder.state_dict())
        model.background.load_state_dict(scene.background.state_dict())
        with torch.no_grad():
            model.appearance.affine.copy_(torch.from_numpy(scene.affine[: config.num_photos]))
    model.octree_changed()
    return model


def _config(scene: Scene) -> InfNeRFConfig:
    s, header = scene.settings, scene.header
    learned = bool(scene.known.any())
    return InfNeRFConfig(
        max_depth=header.max_level,
        hidden_dim=s.field.hidden,
        num_samples=s.training.samples_per_ray,
        scene_bound=header.root.edge / 2.0,
        root_origin=header.root.origin,
        cells=header.cells,
        log2_table_size=header.table_size.bit_length() - 1,
        features=header.features,
        geo_feat_dim=s.field.geometry_features,
        density_bias=s.field.density_bias,
        gsd_ref=header.gsd_ref,
        background=s.field.background,
        num_photos=len(scene.affine) if learned else 0,
        lod_bias=s.octree.lod_bias,
        step_size=s.training.step_size,
        render_step_size=s.rendering.step_size,
        pruning_threshold=s.training.occupancy_threshold,
        sparse_point_threshold=s.octree.min_points,
        max_nodes=s.octree.max_nodes,
    )
