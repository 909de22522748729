"""Pictures of scenes behind servers: the same bits as of local ones."""

from pathlib import Path

import numpy as np
import pytest
from rendering.random_scenes import CAMERA, make_scene, near_keys, pose
from web_servers import serving

from infnerf_tiles.errors import UnreachableError
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.pack import pack, pack_shards
from infnerf_tiles.store.remote import Patience, open_remote
from infnerf_tiles.store.scene_store import SceneStore

pytest.importorskip("obstore")
POSE = pose((50.0, 35.0, 22.0))
HASTY = Patience(attempts=6, pause=0.01, stall=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("remote_scenes")
    make_scene(place / "scene.zarr", keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-2.0).close()
    with SceneStore.open(place / "scene.zarr") as store:
        pack(store, place / "scene.zip")
        pack_shards(store, place / "shards.zarr", rows_per_shard=8)
    return place


def drawn(location: object, **options: int) -> Picture:
    with Scene.open(location) as scene, Renderer(scene, threads=1, **options) as renderer:  # type: ignore[arg-type]
        return renderer.render(CAMERA, POSE)


def same(a: Picture, b: Picture) -> bool:
    layers = ("rgb", "transmittance", "depth", "level")
    return all(np.array_equal(getattr(a, layer), getattr(b, layer), equal_nan=True) for layer in layers)


def test_every_place_gives_the_same_bits(folder: Path) -> None:
    expected = drawn(folder / "scene.zarr")
    assert same(drawn(folder / "scene.zip"), expected)
    assert same(drawn(folder / "shards.zarr"), expected)
    with serving(folder, ranges=True) as server:
        assert same(drawn(f"{server.url}/scene.zarr"), expected)
        assert same(drawn(f"{server.url}/shards.zarr"), expected)
    with serving(folder) as server:
        assert same(drawn(f"{server.url}/scene.zarr", memory_budget=400_000), expected)


def test_a_bad_server_gives_the_same_bits(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(folder / "scene.zarr", fail=0.05, stall=0.02, seconds=5.0, seed=2) as server:
        assert same(drawn(open_remote(server.url, "bad", patience=HASTY)), drawn(folder / "scene.zarr"))
        assert server.bad > 3
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_server_that_goes_away_ends_the_picture_and_leaves_the_cache_whole(folder: Path) -> None:
    with serving(folder / "scene.zarr") as server:
        scene = Scene.open(open_remote(server.url, "gone", patience=HASTY))
        renderer = Renderer(scene, threads=1)
        coarse = renderer.render(CAMERA, POSE, lod_bias=-3.0)
        held = renderer.cache.num_bytes
    with pytest.raises(UnreachableError, match="scene gone"):
        renderer.render(CAMERA, POSE)
    assert renderer.cache.num_bytes == held
    assert same(renderer.render(CAMERA, POSE, lod_bias=-3.0), coarse)
    renderer.close()
