"""One scene, many places: folders, zip archives, URLs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from store_scenes import header, table, train_treelet, trained_scene

from infnerf_tiles.errors import DamagedNodeError, DamagedStoreError, SceneNotFoundError, SettingsError, StoreError
from infnerf_tiles.store.facts import info
from infnerf_tiles.store.index import plan_again
from infnerf_tiles.store.location import display_name
from infnerf_tiles.store.pack import pack
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import write_checkpoint
from infnerf_tiles.store.verify import verify


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("places") / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store)
    return path


def zipped(scene: Path, target: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(scene.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(scene).as_posix())
    return target


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_can_be_read(scene: Path, tmp_path: Path, method: int) -> None:
    with SceneStore.open(zipped(scene, tmp_path / "scene.zip", method)) as packed:
        assert packed.read_index().same_as(SceneStore.open(scene).read_index())
        np.testing.assert_array_equal(packed.read_node(3), table(3, packed))
        assert verify(packed).ok
        assert info(packed).files == sum(path.is_file() for path in scene.rglob("*"))
        with pytest.raises(DamagedNodeError):
            packed.read_node(1000)
        with pytest.raises(StoreError, match="opened for reading"):
            packed.allocate(1)
    with pytest.raises(StoreError, match="can be read but not changed"):
        SceneStore.open(tmp_path / "scene.zip", "r+")


def test_pack_keeps_what_renders_and_nothing_else(tmp_path: Path) -> None:
    with SceneStore.create(tmp_path / "scene.zarr", header()) as store:
        index = trained_scene(store)
        index = train_treelet(store, plan_again(index, [0]), 0, seed=50).index
        store.commit(index)
        write_checkpoint(store, "L0/0-0-0", {"a": np.arange(1000)}, {})
        store.write_small("decoder", {"w": np.arange(3)})
        seen: list[tuple[int, int]] = []
        size = pack(store, tmp_path / "scene.zip", lambda done, total: seen.append((done, total)))
        assert size == (tmp_path / "scene.zip").stat().st_size
        assert seen[-1] == (12, 12)
        with SceneStore.open(tmp_path / "scene.zip") as packed:
            assert packed.header == store.header
            assert packed.read_index().same_as(index)
            assert verify(packed).ok
            assert packed.read_small("decoder")["w"].tolist() == [0, 1, 2]
            keys = packed.data.keys()
            assert not [key for key in keys if key.startswith(("journal/L", "scratch/L", "index/2"))]
            assert sum(key.startswith("params/c.") for key in keys) == 5
        with pytest.raises(StoreError, match="expected a new file"):
            pack(store, tmp_path / "scene.zip")
        store.data.remove(store.row_key("occupancy", int(index.slots[2])))
        with pytest.raises(DamagedNodeError, match="occupancy slot"):
            pack(store, tmp_path / "other.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.zarr", "scene.zip"]


def test_what_is_no_archive(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DamagedStoreError, match="got neither"):
        SceneStore.open(tmp_path / "a.zip")
    good = zipped(scene, tmp_path / "b.zip")
    monkeypatch.setattr("infnerf_tiles.store.location.MAX_OBJECT_BYTES", 100)
    with pytest.raises(DamagedStoreError, match="expected members up to 100 bytes"):
        SceneStore.open(good)


def test_urls(scene: Path) -> None:
    store = SceneStore.open(scene.as_uri())
    np.testing.assert_array_equal(store.read_node(0), table(0, store))
    pytest.importorskip("fsspec")
    memory = SceneStore.create("memory://infnerf-tiles-test/scene.zarr", header())
    index = trained_scene(memory)
    again = SceneStore.open("memory://infnerf-tiles-test/scene.zarr")
    assert again.read_index().same_as(index)
    assert verify(again).ok
    with pytest.raises(SceneNotFoundError):
        SceneStore.open("memory://infnerf-tiles-test/nowhere")


def test_names_of_urls_carry_no_secrets() -> None:
    assert display_name("https://me:secret@host:8000/a/b.zarr?token=secret#secret") == "https://host:8000/a/b.zarr"
    assert display_name("s3://bucket/scene.zarr") == "s3://bucket/scene.zarr"


def test_an_empty_name_is_no_place() -> None:
    for name in ("", " "):
        with pytest.raises(SettingsError, match="empty name"):
            SceneStore.open(name)
