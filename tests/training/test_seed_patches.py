"""The patches of the seed stage: thinned at random, the same however the photos are cut into runs."""

from pathlib import Path

import numpy as np
import pytest
from training.small_scenes import build_scene, open_context, tiny, write_city

from infnerf_tiles.arrays import Int32
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import pixel_store
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
        monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 1)  # photo by photo, so that it is thinned again and again
        assert np.array_equal(_places(seed_patches(context, keys, keys, most)), thinned)
        assert np.array_equal(_places(seed_patches(context, keys[:1], keys)), coarse)
