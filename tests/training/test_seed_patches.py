"""The patches of the seed stage: thinned at random, the same however the photos are cut into runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.small_scenes import build_scene, open_context, tiny, write_city

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64
from infnerf_tiles.geometry.node_id import encode_keys, key_levels
from infnerf_tiles.geometry.octree import Octree, inside_unit, unit_cells
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset
from infnerf_tiles.training import pixel_store, seed
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixels import Patches, all_patches
from infnerf_tiles.training.seed import seed_patches


def _places(patches: Patches) -> Int32:
    return np.stack([patches.photo, patches.pyramid, patches.column, patches.row], axis=1)


def test_thinned_patches_do_not_depend_on_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_city(tmp_path / "city", size=(256, 192))  # three pyramid levels
    with SceneStore.open(build_scene(data, tmp_path / "scene.zarr"), "r+") as store:
        context = open_context(store, data, tiny())
        keys = store.read_index().keys
        everything = all_patches(context.photos.cameras, context.training_photos)
        assert np.array_equal(_places(seed_patches(context, keys, keys)), _places(everything))
        most = everything.count // 3
        thinned = _places(seed_patches(context, keys, keys, most))
        assert len(thinned) == most
        # a random third of every photo, not the first photos
        assert set(thinned[:, 0].tolist()) == set(context.training_photos)
        coarse = _places(seed_patches(context, keys[:1], keys))
        assert 0 < len(coarse) < everything.count
        few = _places(seed_patches(context, keys[:1], keys, len(coarse) // 5))
        assert len(few) == len(coarse) // 5
        monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 1)  # photo by photo, so that it is thinned again and again
        assert np.array_equal(_places(seed_patches(context, keys, keys, most)), thinned)
        assert np.array_equal(_places(seed_patches(context, keys[:1], keys)), coarse)
        assert np.array_equal(_places(seed_patches(context, keys[:1], keys, len(coarse) // 5)), few)


def test_patches_that_are_thinned_out_anyway_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_city(tmp_path / "city", size=(256, 192))
    looked: list[int] = []
    explained = seed._explained

    def counted(context: Context, patches: Patches, octree: Octree, sightings: Any) -> Bool:
        looked.append(patches.count)
        return explained(context, patches, octree, sightings)

    monkeypatch.setattr(seed, "_explained", counted)
    monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 1)
    with SceneStore.open(build_scene(data, tmp_path / "scene.zarr"), "r+") as store:
        context = open_context(store, data, tiny())
        keys = store.read_index().keys
        seed_patches(context, keys[:1], keys, 10)
    assert len(looked) == len(context.training_photos)
    assert looked[-1] < looked[0] / 3


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed") / "street"
    write_city_dataset(folder, blocks=(6, 1), num_photos=48, size=(64, 48), supersample=1, num_points=3000)
    return folder


@pytest.mark.parametrize("tracks", [True, False])
def test_of_many_photos_some_are_opened_first_those_that_show_the_sample(
    street: Path, tracks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("octree.treelet_height=1", "octree.max_level=3", "octree.min_points=20", "training.seed_nodes=5")
    with SceneStore.open(build_scene(street, tmp_path / "scene.zarr", settings), "r+") as store:
        context = open_context(store, street, settings)
        index = store.read_index()
        own = seed.seed_nodes(index.keys, store.header.band_levels, 5, 0)
        top = store.header.band_levels[-1]
        assert len(own) < index.num_nodes
        assert (key_levels(own) == top).any()
        everybody = _places(seed_patches(context, own, index.keys))
        assert set(everybody[:, 0].tolist()) == set(context.training_photos)
        points = context.photos.points
        assert points is not None
        inside = np.isin(treelets_of(context, points.xyz, top), own)
        saw = set(points.track_photos[np.repeat(inside, points.track_lengths)].tolist()) & set(context.training_photos)
        assert 4 <= len(saw) < len(context.training_photos)
        if not tracks:
            offsets, nobody = np.zeros_like(points.track_offsets), np.empty(0, np.int32)
            none = replace(points, track_offsets=offsets, track_photos=nobody)
            context = Context(store, replace(context.photos, points=none), settings)
            everybody = _places(seed_patches(context, own, index.keys))
        monkeypatch.setattr(seed, "MAX_PHOTOS", 8)
        few = _places(seed_patches(context, own, index.keys))
        opened = set(few[:, 0].tolist())
        assert len(opened) == 8
        if tracks:
            assert len(opened & saw) >= min(6, len(saw))
        assert opened <= set(context.training_photos)
        # of those photos, all that was taken before
        assert np.array_equal(few, everybody[np.isin(everybody[:, 0], list(opened))])
        monkeypatch.setattr(seed, "MAX_PHOTOS", len(context.training_photos))
        assert np.array_equal(_places(seed_patches(context, own, index.keys)), everybody)
        # a scene that is sampled as a whole takes all its photos, however many
        monkeypatch.setattr(seed, "MAX_PHOTOS", 1)
        whole = seed_patches(context, index.keys, index.keys)
        assert whole.count == all_patches(context.photos.cameras, context.training_photos).count


def treelets_of(context: Context, xyz: Float64, level: int) -> Int64:
    unit = context.store.header.root.to_unit(xyz)
    cells = np.clip(unit_cells(unit, level), 0, (1 << level) - 1)
    return np.where(inside_unit(unit), encode_keys(level, cells), -1)
