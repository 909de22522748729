"""Packed copies of many rows a file."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from store_scenes import header, trained_scene
from web_servers import serving

from infnerf_tiles.errors import DamagedNodeError, StoreError, UnreachableError
from infnerf_tiles.store.index import NO_SLOT, SceneIndex
from infnerf_tiles.store.pack import pack, pack_shards
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store)
        store.write_small("decoder", {"w": np.arange(3)})
    return path


@pytest.fixture(scope="module")
def packed(scene: Path) -> Path:
    target = scene.parent / "packed.zarr"
    seen: list[tuple[int, int]] = []
    with SceneStore.open(scene) as store:
        size = pack_shards(store, target, rows_per_shard=3, progress=lambda done, total: seen.append((done, total)))
    assert size == sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert seen[-1] == (12, 12)
    return target


def by_key(store: SceneStore, index: SceneIndex, key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = int(np.searchsorted(index.keys, key))
    base = int(index.base_slots[index.treelets[row]])
    slot = int(index.slots[row])
    return store.read_node(slot), store.read_occupancy(slot), store.read_base(base)


def same_scene(a: SceneStore, b: SceneStore) -> None:
    first, second = a.read_index(), b.read_index()
    assert np.array_equal(first.keys, second.keys)
    for key in first.keys[first.slots != NO_SLOT].tolist():
        for left, right in zip(by_key(a, first, key), by_key(b, second, key), strict=True):
            assert np.array_equal(left, right)
    assert a.read_small("decoder")["w"].tolist() == b.read_small("decoder")["w"].tolist()


def test_the_copy_holds_the_same_in_fewer_files(scene: Path, packed: Path) -> None:
    with SceneStore.open(scene) as store, SceneStore.open(packed) as copy:
        same_scene(store, copy)
        assert verify(copy).ok
        assert len(list((packed / "params").glob("c.*"))) == 2  # five rows by three
        with pytest.raises(StoreError, match="can be read but not changed"):
            SceneStore.open(packed, "r+")
        with pytest.raises(StoreError, match="packed already"):
            pack(copy, packed.parent / "again.zip")


def test_any_zarr_library_reads_it(packed: Path) -> None:
    with SceneStore.open(packed) as copy:
        array = zarr.open_array(packed / "params", mode="r")
        for slot in range(5):
            assert np.array_equal(array[slot], copy.read_node(slot))
        base = zarr.open_array(packed / "base", mode="r")
        assert np.array_equal(base[0], copy.read_base(0))


def test_a_server_with_ranges_is_asked_for_rows_only(scene: Path, packed: Path) -> None:
    pytest.importorskip("obstore")
    with serving(packed, ranges=True) as server, SceneStore.open(server.url) as remote, SceneStore.open(scene) as store:
        same_scene(store, remote)
        before = len(server.requests)
        remote.read_node(0)
        assert len(server.requests) == before + 1


def test_a_server_without_ranges_is_told_apart(packed: Path) -> None:
    pytest.importorskip("obstore")
    with serving(packed) as server, SceneStore.open(server.url) as remote:
        remote.read_index()
        with pytest.raises(UnreachableError, match=r"[Rr]ange"):
            remote.read_node(0)


@pytest.mark.parametrize("where", ["row", "index", "gone", "cut"])
def test_damage_in_a_shard_is_seen(scene: Path, tmp_path: Path, where: str) -> None:
    with SceneStore.open(scene) as store:
        pack_shards(store, tmp_path / "p.zarr", rows_per_shard=4)
    with SceneStore.open(tmp_path / "p.zarr") as copy:
        path = tmp_path / "p.zarr" / copy.row_key("params", 0)
        data = bytearray(path.read_bytes())
        if where == "gone":
            path.unlink()
        elif where == "cut":
            path.write_bytes(bytes(data[: len(data) // 2]))
        else:
            data[40 if where == "row" else -20] ^= 1
            path.write_bytes(bytes(data))
        assert len(verify(copy).damaged_nodes) == (1 if where == "row" else 4)
        with pytest.raises(DamagedNodeError):
            copy.read_node(0)
