"""Killed writers, full disks, several writers at once: what was committed stays whole."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from store_scenes import base, bits, header, planned_index, table, train_treelet, trained_scene
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from infnerf_tiles.errors import BudgetError, StorageFullError, StoreError
from infnerf_tiles.store.index import plan_again
from infnerf_tiles.store.journal import apply_record, read_all
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify

HERE = Path(__file__).parent

# Trains one treelet after the other and commits each.
COMMIT_LOOP = """
import sys
from store_scenes import train_treelet
from infnerf_tiles.store.index import plan_again
from infnerf_tiles.store.scene_store import SceneStore

store = SceneStore.open(sys.argv[1], "r+")
index = store.read_index()
for round_ in range(10_000):
    row = round_ % index.num_treelets
    trained = train_treelet(store, plan_again(index, [row]), row, seed=1000)
    index = trained.index
    store.commit(index)
    print("committed", flush=True)
"""

WRITE_ROWS = """
import sys
from store_scenes import base, bits, table
from infnerf_tiles.store.scene_store import SceneStore

store = SceneStore.open(sys.argv[1], "r+")
for slot in range(int(sys.argv[2]), int(sys.argv[3]), 4):
    store.write_node(slot, table(slot, store), bits(slot, store))
    if slot < 8:
        store.write_base(slot, base(slot, store))
    print(slot, flush=True)
store.close()
"""

HOLD_LOCK = """
import sys, time
from infnerf_tiles.store.scene_store import SceneStore

store = SceneStore.open(sys.argv[1], "r+")
with store.exclusive():
    print("ready", flush=True)
    time.sleep(60)
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_writer_leaves_a_whole_generation(tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store, seed=1000)
    rng = np.random.default_rng(0)
    generation = 0
    for _ in range(3):
        process = start(COMMIT_LOOP, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "committed\n"
        time.sleep(float(rng.uniform(0.0, 0.3)))
        kill(process)
        store = SceneStore.open(path, "r+")
        index = store.read_index()
        assert verify(store).ok
        for slot in index.slots.tolist():
            np.testing.assert_array_equal(store.read_node(slot), table(1000 + slot, store))
            np.testing.assert_array_equal(store.read_occupancy(slot), bits(1000 + slot, store))
        for slot in index.base_slots.tolist():
            np.testing.assert_array_equal(store.read_base(slot), base(1000 + slot, store))
        assert store.generation > generation
        for record in read_all(store):  # work that was finished but not committed is not lost
            index = apply_record(index, record) or index
        store.commit(index)
        generation = store.generation
        assert verify(store).ok


def test_writers_of_different_slots_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        store.allocate(32)
        store.allocate_treelets(8)
        writers = [start(WRITE_ROWS, path, first, 32) for first in range(4)]
        assert [writer.wait(timeout=30) for writer in writers] == [0] * 4
        for slot in range(32):
            np.testing.assert_array_equal(store.read_node(slot), table(slot, store))
            np.testing.assert_array_equal(store.read_occupancy(slot), bits(slot, store))
        for slot in range(8):
            np.testing.assert_array_equal(store.read_base(slot), base(slot, store))
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()


def test_a_writer_that_is_killed_among_four_loses_no_node(tmp_path: Path) -> None:
    path, count = tmp_path / "scene.zarr", 400
    with SceneStore.create(path, header()) as store:
        store.allocate(count)
        store.allocate_treelets(8)
        writers = [start(WRITE_ROWS, path, first, count) for first in range(4)]
        victim = writers[0].stdout
        assert victim is not None
        said = [int(victim.readline()) for _ in range(20)]
        writers[0].send_signal(signal.SIGKILL)
        said += [int(line) for line in victim.read().splitlines()]
        assert writers[0].wait(timeout=30) != 0
        for writer in writers[1:]:
            assert writer.stdout is not None
            said += [int(line) for line in writer.stdout.read().splitlines()]
            assert writer.wait(timeout=30) == 0
        assert len(said) < count  # it died at work
        assert set(said) >= {slot for slot in range(count) if slot % 4}
        for slot in said:
            np.testing.assert_array_equal(store.read_node(slot), table(slot, store))
            np.testing.assert_array_equal(store.read_occupancy(slot), bits(slot, store))
        # whoever is given its work next finds nothing in the way
        successor = start(WRITE_ROWS, path, 0, count)
        assert successor.wait(timeout=30) == 0
        for slot in range(count):
            np.testing.assert_array_equal(store.read_node(slot), table(slot, store))
    for writer in [*writers, successor]:
        assert writer.stdout is not None
        writer.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_one_process_at_a_time_may_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.store.locking._WAIT_SECONDS", 0.1)
    path = tmp_path / "scene.zarr"
    store = SceneStore.create(path, header())
    index = planned_index(store)
    holder = start(HOLD_LOCK, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    for change in (lambda: store.commit(index), lambda: store.allocate(1), lambda: store.exclusive().__enter__()):
        with pytest.raises(StoreError, match="another process is changing it"):
            change()
    assert SceneStore.open(path).read_index().num_nodes == 0  # readers do not mind
    kill(holder)
    store.commit(index)  # the lock dies with its holder
    with store.exclusive(), SceneStore.open(path, "r+").exclusive():  # within one process it is shared
        store.allocate(1)


class FullDisk(WrapperStore):
    """A store with room for so many bytes."""

    def __init__(self, store: LocalStore | MemoryStore, room: int = 1 << 60) -> None:
        super().__init__(store)
        self.room = room

    async def set(self, key: str, value: Buffer) -> None:
        if len(value) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(value)
        await super().set(key, value)


def test_a_full_disk_leaves_the_former_generation(tmp_path: Path) -> None:
    disk = FullDisk(LocalStore(tmp_path / "scene.zarr"))
    store = SceneStore.create(disk, header())
    index = trained_scene(store)
    attempts = 0
    for room in range(0, 60_000, 1500):
        disk.room = room
        try:
            trained = train_treelet(store, plan_again(index, [0]), 0, seed=50)
            store.commit(trained.index)
            break
        except StorageFullError:
            attempts += 1
        disk.room = 1 << 60
        assert SceneStore.open(disk).read_index().same_as(index)
        assert verify(store).ok
    assert attempts > 3
    assert store.read_index().same_as(trained.index)
    assert verify(store).ok


def test_the_error_of_a_full_disk(tmp_path: Path) -> None:
    disk = FullDisk(LocalStore(tmp_path / "scene.zarr"))
    store = SceneStore.create(disk, header())
    slot = store.allocate(1)[0]
    disk.room = 100
    with pytest.raises(StorageFullError, match=r"no space left while writing params/c\.0\.0; .* is intact") as caught:
        store.write_node(slot, table(0, store), bits(0, store))
    assert isinstance(caught.value, BudgetError)
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOSPC, 4)


def test_a_disk_that_fills_during_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SceneStore.create(tmp_path / "scene.zarr", header())
    index = trained_scene(store)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match="no space left"):
            store.commit(plan_again(index, [0]))
        with pytest.raises(StorageFullError):
            store.data.replace_durably("zarr.json", b"{}")
    assert not list((tmp_path / "scene.zarr").glob("*.partial"))
    assert SceneStore.open(tmp_path / "scene.zarr").read_index().same_as(index)
    assert store.commit(plan_again(index, [0])) > 2


def test_everything_is_synced_before_the_root_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.zarr"
    store = SceneStore.create(path, header())
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file a descriptor is")
    monkeypatch.setattr(os, "fsync", record)
    index = planned_index(store)
    trained = train_treelet(store, index, 0)
    assert {f"{path}/{store.row_key('params', s)}" for s in trained.record.slots.tolist()} <= set(synced)
    synced.clear()
    store.commit(trained.index)
    columns = {str(p) for p in (path / "index/1").rglob("*")}  # files and folders
    at = next(i for i, name in enumerate(synced) if Path(name).name.startswith("zarr.json.") and "partial" in name)
    assert Path(synced[at]).parent == path
    assert columns <= set(synced[:at])
    assert synced[at + 1 :] == [str(path)]


def test_readers_keep_up_with_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    store = SceneStore.create(path, header())
    index = trained_scene(store)
    store.write_small("appearance", {"a": np.zeros(3)})
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        reader = SceneStore.open(path)
        try:
            while not done.is_set():
                assert reader.read_index().num_nodes == index.num_nodes
                values = reader.read_small("appearance")["a"]
                assert (values == values[0]).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for value in range(12):
        store.commit(index)
        store.write_small("appearance", {"a": np.full(3 + value, float(value))})
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
