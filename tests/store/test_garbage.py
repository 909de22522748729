"""gc frees what nothing names, and only that."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_scenes import bits, header, planned_index, table, train_treelet, trained_scene
from zarr.storage import LocalStore

from infnerf_tiles.errors import DamagedNodeError, StoreError
from infnerf_tiles.store.garbage import collect_garbage
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import plan_again
from infnerf_tiles.store.journal import drop_record, read_all
from infnerf_tiles.store.location import Location, sweep_partial_files
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import read_checkpoint, write_checkpoint
from infnerf_tiles.store.verify import verify


def test_nothing_to_free(store: SceneStore) -> None:
    trained_scene(store)
    collect_garbage(store)  # brings the spare generation up to date
    before = store.data.keys()
    assert collect_garbage(store) == (0, 0)
    assert store.data.keys() == before
    assert verify(store).ok


def test_replaced_rows_are_freed_and_their_numbers_not_reused(store: SceneStore, place: Location) -> None:
    index = trained_scene(store)
    reader = SceneStore.open(place)
    old = reader.read_index()
    row = int(np.flatnonzero(index.root_keys == index.keys[0])[0])
    nodes = np.flatnonzero(index.treelets == row)
    again = train_treelet(store, plan_again(index, [row]), row, seed=100)
    assert collect_garbage(store).num_slots == 0  # finished, but not committed yet
    store.commit(again.index)
    sizes = sum(store.data.size(store.row_key(k, int(s))) for s in old.slots[nodes] for k in ("params", "occupancy"))
    sizes += store.data.size(store.row_key("base", int(old.base_slots[row])))
    freed = collect_garbage(store)
    assert freed == (len(nodes) + 1, sizes)
    assert verify(store).ok
    assert store.read_index().same_as(again.index)
    with pytest.raises(DamagedNodeError):  # the reader of an old generation meets an error, not another row
        reader.read_node(int(old.slots[nodes[0]]))
    assert store.allocate(1)[0] > max(again.index.slots)


def test_orphans_of_a_dead_worker_are_freed(store: SceneStore) -> None:
    index = trained_scene(store)
    slot = store.allocate(1)[0]
    store.write_node(slot, table(0, store), bits(0, store))
    dead = train_treelet(store, plan_again(index, [0]), 0)
    drop_record(store, dead.record.treelet)
    freed = collect_garbage(store)
    assert freed.num_slots == 1 + len(dead.record.slots) + 1
    assert len(read_all(store)) == index.num_treelets - 1
    assert verify(store).ok


def test_the_spare_generation_is_as_good_as_the_current_one_after_gc(store: SceneStore) -> None:
    index = trained_scene(store)
    collect_garbage(store)
    assert store.read_generation(store.root.previous_generation).same_as(index)


def test_leftovers_go_and_live_state_stays(store: SceneStore, monkeypatch: pytest.MonkeyPatch) -> None:
    index = train_treelet(store, planned_index(store), 0).index
    store.commit(index)
    write_checkpoint(store, "L0/0-0-0", {"a": np.arange(3)}, {})  # trained: not needed
    write_checkpoint(store, "L2/3-3-3", {"a": np.arange(3)}, {})  # planned: to be continued
    store.write_small("decoder", {"w": np.arange(3)})
    with monkeypatch.context() as patch:
        patch.setattr(GuardedStore, "replace_durably", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.write_small("decoder", {"w": np.arange(4)})
    collected = collect_garbage(store)
    assert collected.num_slots == 0
    assert collected.num_bytes > 0
    assert read_checkpoint(store, "L0/0-0-0") is None
    assert read_checkpoint(store, "L2/3-3-3") is not None
    assert store.read_small("decoder")["w"].tolist() == [0, 1, 2]
    assert len({key.split("/")[1] for key in store.data.keys("decoder")}) == 2


def test_old_partial_files_are_swept_and_young_ones_left(tmp_path: Path) -> None:
    with SceneStore.create(tmp_path / "s", header()) as store:
        trained_scene(store)
    names = [f"params/c.3.{'a' * 32}.partial", f"index/2/key/c.{'b' * 32}.partial", f"zarr.{'0' * 32}.partial"]
    for name in (*names, "params/notes.partial"):
        (tmp_path / "s" / name).touch()
    SceneStore.open(tmp_path / "s", "r+")
    assert (tmp_path / "s" / names[0]).exists()  # may be a living writer's
    for name in names:
        os.utime(tmp_path / "s" / name, (time.time() - 3600,) * 2)
    SceneStore.open(tmp_path / "s")
    assert (tmp_path / "s" / names[0]).exists()  # a reader changes nothing
    SceneStore.open(tmp_path / "s", "r+")
    assert not any((tmp_path / "s" / name).exists() for name in names)
    assert (tmp_path / "s/params/notes.partial").exists()  # not ours
    assert sweep_partial_files(GuardedStore(LocalStore(tmp_path / "s"))) == 0


def test_pixels_of_a_killed_training_are_freed_unless_a_training_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store)
        store.data.write_bytes("pixels/L0-0-0-0/0/c.0", b"12345")
        code = (
            "import sys; from infnerf_tiles.store.scene_store import SceneStore\n"
            "with SceneStore.open(sys.argv[1], 'r+') as s, s.exclusive(): print(flush=True); sys.stdin.readline()"
        )
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as training:
            assert training.stdout is not None
            training.stdout.readline()
            with pytest.raises(StoreError, match="another process"):
                collect_garbage(store)
            assert store.data.has("pixels/L0-0-0-0/0/c.0")
            training.communicate("\n")
        collect_garbage(store)
        assert store.data.names("pixels") == []
        store.data.write_bytes("pixels/L0-0-0-0/0/c.0", b"12345")
        assert collect_garbage(store) == (0, 5)
