"""Scenes behind servers: good ones, bad ones, none at all."""

import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_scenes import header, table, trained_scene
from web_servers import serving
from zarr.storage import MemoryStore

from infnerf_tiles.errors import DamagedNodeError, SceneNotFoundError, SettingsError, StoreError, UnreachableError
from infnerf_tiles.store.facts import info
from infnerf_tiles.store.fetch import Fetch
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.pack import pack, pack_shards
from infnerf_tiles.store.remote import Patience, RemoteStore, open_remote
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify

pytest.importorskip("obstore")
HASTY = Patience(attempts=6, pause=0.01, stall=0.3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store)
        store.write_small("decoder", {"w": np.arange(3)})
    return path


def hasty(url: str) -> SceneStore:
    return SceneStore.open(open_remote(url, url, patience=HASTY))


def same_rows(store: SceneStore, scene: Path) -> bool:
    with SceneStore.open(scene) as local:
        index = local.read_index()
        assert store.read_index().same_as(index)
        nodes = all(np.array_equal(store.read_node(s), local.read_node(s)) for s in index.slots.tolist())
        return nodes and all(np.array_equal(store.read_base(s), local.read_base(s)) for s in index.base_slots.tolist())


def test_a_plain_file_server_is_enough(scene: Path, tmp_path: Path) -> None:
    with serving(scene.parent) as server, SceneStore.open(f"{server.url}/scene.zarr") as store:
        assert store.name == f"{server.url}/scene.zarr"
        assert same_rows(store, scene)
        np.testing.assert_array_equal(store.read_node(3), table(3, store))
        report = verify(store)
        assert report.ok
        assert report.nodes_checked == 5
        facts = info(store)
        assert (facts.nodes, facts.bytes, facts.files) == (5, None, None)
        # the journal, which cannot be listed there, is found from the index
        assert any("/journal/L0-0-0-0/zarr.json" in path for path in server.requests)
        pack(store, tmp_path / "copy.zip")
        with SceneStore.open(tmp_path / "copy.zip") as packed:
            assert same_rows(packed, scene)
        with pytest.raises(StoreError, match="opened for reading"):
            store.allocate(1)
        with pytest.raises(StoreError, match="can be read but not changed"):
            SceneStore.open(f"{server.url}/scene.zarr", "r+")
        with pytest.raises(SceneNotFoundError, match="no scene at"):
            SceneStore.open(f"{server.url}/elsewhere.zarr")


def test_damage_at_a_server_is_named(scene: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(scene, tmp_path / "scene.zarr")
    with SceneStore.open(scene) as local:
        key = local.row_key("params", 3)
    data = bytearray((tmp_path / "scene.zarr" / key).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "scene.zarr" / key).write_bytes(bytes(data))
    with serving(tmp_path) as server, SceneStore.open(f"{server.url}/scene.zarr") as store:
        assert len(verify(store).damaged_nodes) == 1
        # once more, in case it was the way here
        assert sum(path.endswith(key) for path in server.requests) == 2


def test_a_server_that_fails_and_stalls_is_put_up_with(scene: Path) -> None:
    with serving(scene, fail=0.1, stall=0.05, seconds=5.0, seed=3) as server:
        started = time.monotonic()
        with hasty(server.url) as store:
            for _ in range(3):
                assert same_rows(store, scene)
        assert server.bad > 3
        assert time.monotonic() - started < 20.0


def test_a_row_that_arrives_damaged_is_asked_for_again(scene: Path) -> None:
    with serving(scene, seed=1) as server, hasty(server.url) as store:
        store.read_index()
        server.shares = (0.0, 0.0, 0.3)
        for _ in range(12):
            try:
                np.testing.assert_array_equal(store.read_node(3), table(3, store))
            except DamagedNodeError:  # twice in a row
                server.bad -= 2
        assert server.bad > 0


@pytest.mark.parametrize("packed", [False, True])
def test_whatever_arrives_damaged_once_is_asked_for_again(
    scene: Path, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object's first answer has a flipped bit: root, index, small groups, metadata, shards' indices."""
    place = scene
    if packed:
        place = tmp_path / "packed.zarr"
        with SceneStore.open(scene) as store:
            pack_shards(store, place, rows_per_shard=2)
    seen = set()
    with serving(place, ranges=packed) as server:
        send = server._send

        def corrupted(request: Any, status: int, body: bytes, headers: dict[str, str], **options: Any) -> None:
            what = (request.path, request.headers.get("Range"))
            if status in (200, 206) and request.command == "GET" and body and what not in seen:
                seen.add(what)
                body = body[:-1] + bytes([body[-1] ^ 1])
            send(request, status, body, headers, **options)

        monkeypatch.setattr(server, "_send", corrupted)
        with hasty(server.url) as store:
            assert same_rows(store, scene)
            assert store.read_small("decoder").keys()
    assert len(seen) > 20


def test_a_server_that_always_fails_is_given_up(scene: Path) -> None:
    with serving(scene, fail=1.0) as server:
        with pytest.raises(UnreachableError, match=r"expected to reach zarr\.json, got after 6 attempts"):
            hasty(server.url)
        assert len(server.requests) == 6


class _Unlisted(MemoryStore):
    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise TimeoutError("no answer")
        yield prefix


@pytest.mark.parametrize(("folder", "what"), [("", "the list of its files"), ("index", "the list of index")])
def test_what_could_not_be_listed_has_a_name(folder: str, what: str) -> None:
    once = Patience(attempts=1, pause=0.0)
    store = GuardedStore(RemoteStore(_Unlisted(), "s3://b/x", patience=once))
    with pytest.raises(UnreachableError, match=f"scene s3://b/x: expected to reach {what}, got"):
        store.names(folder)


def test_a_server_that_goes_away_is_no_damage(scene: Path) -> None:
    with serving(scene) as server:
        store = hasty(server.url)
        store.read_index()
    with pytest.raises(UnreachableError, match="check the connection and the server"):
        store.read_node(0)
    with pytest.raises(UnreachableError):
        verify(store)
    assert UnreachableError.exit_code == 5
    store.close()


def test_a_fetch_can_be_called_off(scene: Path) -> None:
    with serving(scene) as server:
        store = SceneStore.open(server.url)
        store.read_index()
        store.read_node(0)
    with serving(scene, stall=1.0, seconds=30.0) as slow:
        stalled = open_remote(slow.url, "slow")
        fetch = Fetch()

        def read() -> None:
            with fetch.active():
                SceneStore.open(stalled)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(read)
            threading.Timer(0.2, fetch.cancel).start()
            started = time.monotonic()
            with pytest.raises(CancelledError):
                future.result(timeout=5.0)
            assert time.monotonic() - started < 3.0
        with fetch.active(), pytest.raises(CancelledError):
            SceneStore.open(stalled)
    store.close()


def test_an_object_store(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(scene.parent, prefix="/bucket") as server:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REGION": "nowhere",
        }.items():
            monkeypatch.setenv(name, value)
        with SceneStore.open("s3://bucket/scene.zarr") as store:
            assert same_rows(store, scene)


def test_addresses_that_cannot_work_are_told() -> None:
    with pytest.raises(SettingsError, match=r"without '\?\.\.\.'"):
        SceneStore.open("https://example.org/scene.zarr?token=1")
    with pytest.raises(SettingsError, match="expected a folder"):
        SceneStore.open("nosuchscheme://x/y")
    url = "http://me:secret@127.0.0.1:9/scene.zarr"
    with pytest.raises(UnreachableError) as failure:
        SceneStore.open(open_remote(url, "http://127.0.0.1:9/scene.zarr", patience=HASTY))
    assert "secret" not in str(failure.value)
