"""verify names exactly what is damaged; repair leaves a scene that can be used."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_scenes import WIDE, bits, header, planned_index, table, train_treelet, trained_scene

from infnerf_tiles.errors import DamagedStoreError, SceneNotFoundError, StoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store import verify as verification
from infnerf_tiles.store.garbage import collect_garbage
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState, plan_again
from infnerf_tiles.store.journal import read_record, write_record
from infnerf_tiles.store.repair import recover_root, repair
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import VerifyReport, verify


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store, keys=WIDE)
    return path


@pytest.fixture
def scene(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "scene.zarr"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def slot_of(index: SceneIndex, node: str) -> int:
    return int(index.slots[index.keys == NodeId.parse(node).key][0])


def check(path: Path) -> VerifyReport:
    return verify(SceneStore.open(path))


def test_an_intact_scene(scene: Path) -> None:
    seen = []
    report = verify(SceneStore.open(scene), lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.nodes_checked, report.bases_checked, report.generation) == (9, 4, 2)
    assert seen[-1] == (22, 22)
    assert report.to_json()["ok"] is True


def test_damaged_nodes_are_named_exactly_and_repaired(scene: Path) -> None:
    store = SceneStore.open(scene, "r+")
    before = store.read_index()
    flip(scene / f"params/c.{slot_of(before, 'L2/3-3-3')}.0")
    flip(scene / f"occupancy/c.{slot_of(before, 'L2/3-3-3')}.0")
    (scene / f"occupancy/c.{slot_of(before, 'L1/0-0-0')}.0").unlink()
    report = check(scene)
    assert sorted(report.damaged_nodes) == ["L1/0-0-0", "L2/3-3-3"]
    assert report.damaged_treelets == ("L0/0-0-0", "L2/3-3-3")
    assert len(report.damage) == 2

    done = repair(store, report)
    assert done.planned_treelets == done.dropped_records == ("L0/0-0-0", "L2/3-3-3")
    assert check(scene).ok
    after = SceneStore.open(scene).read_index()
    again = np.isin(after.root_keys, [NodeId.parse(name).key for name in done.planned_treelets])
    assert (after.treelet_states == np.where(again, TreeletState.PLANNED, TreeletState.TRAINED)).all()
    assert (after.states == np.where(again[after.treelets], NodeState.PLANNED, NodeState.TRAINED)).all()
    # what is whole stays, for training to begin with
    lost = np.isin(after.keys, [NodeId.parse(name).key for name in report.damaged_nodes])
    assert (after.slots == np.where(lost, -1, before.slots)).all()
    assert (after.base_slots == before.base_slots).all()
    assert read_record(store, "L2/3-3-3") is None
    assert read_record(store, "L2/0-0-0") is not None


def test_a_damaged_base_costs_its_treelet_only(scene: Path) -> None:
    store = SceneStore.open(scene, "r+")
    index = store.read_index()
    row = int(np.flatnonzero(index.root_keys == NodeId.parse("L2/0-0-0").key)[0])
    flip(scene / f"base/c.{index.base_slots[row]}.0.0.0.0")
    report = check(scene)
    assert [(d.kind, d.name) for d in report.damage] == [("base", "L2/0-0-0")]
    assert repair(store, report).planned_treelets == ("L2/0-0-0",)
    assert check(scene).ok
    after = SceneStore.open(scene).read_index()
    assert (after.base_slots == np.where(np.arange(index.num_treelets) == row, -1, index.base_slots)).all()
    assert (after.slots == index.slots).all()


def test_rows_that_are_not_finite_are_damage(scene: Path) -> None:
    store = SceneStore.open(scene, "r+")
    slot = slot_of(store.read_index(), "L1/1-1-1")
    row = table(slot, store)
    row[3] = np.nan
    store.write_node(slot, row, bits(slot, store))
    assert check(scene).damaged_nodes == ("L1/1-1-1",)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
@pytest.mark.parametrize("column", ["slot/c.0", "key/zarr.json", "zarr.json", "treelet_base_slot/c.0"])
def test_a_damaged_index_gives_way_to_the_previous_one(scene: Path, column: str, harm: Callable[[Path], None]) -> None:
    before = SceneStore.open(scene).read_index()
    harm(scene / "index/2" / column)
    report = check(scene)
    assert (report.names("index"), report.nodes_checked) == (("2",), 9)
    assert len(report.damage) == 1
    store = SceneStore.open(scene, "r+")
    repair(store, report)
    # generation 1 had everything planned; the journal knows what was trained since
    assert SceneStore.open(scene).read_index().same_as(before)
    assert check(scene).ok
    assert sorted(p.name for p in (scene / "index").iterdir()) == ["3", "4", "zarr.json"]


def test_a_row_lost_together_with_the_index(scene: Path) -> None:
    slot = slot_of(SceneStore.open(scene).read_index(), "L3/7-7-7")
    (scene / f"params/c.{slot}.0").unlink()
    flip(scene / "index/2/slot/c.0")
    report = check(scene)
    assert (report.names("index"), report.damaged_nodes) == (("2",), ("L3/7-7-7",))
    assert repair(SceneStore.open(scene, "r+"), report).planned_treelets == ("L2/3-3-3",)
    assert check(scene).ok


def test_a_damaged_spare_index_is_replaced(scene: Path) -> None:
    flip(scene / "index/1/key/c.0")
    report = check(scene)
    assert [(d.kind, d.name) for d in report.damage] == [("spare index", "1")]
    repair(SceneStore.open(scene, "r+"), report)
    assert check(scene).ok


def test_no_index_left(scene: Path) -> None:
    flip(scene / "index/1/key/c.0")
    flip(scene / "index/2/key/c.0")
    report = check(scene)
    assert {d.kind for d in report.damage} == {"index", "spare index"}
    with pytest.raises(DamagedStoreError, match="index/1/key is damaged"):
        repair(SceneStore.open(scene, "r+"), report)


def test_lost_metadata_is_written_anew_and_costs_no_row(scene: Path) -> None:
    before = SceneStore.open(scene).read_index()
    paths = ["params", "occupancy", "base", "index", "journal", "scratch"]
    for path in paths:
        (scene / path / "zarr.json").unlink()
    report = check(scene)
    assert [(d.kind, d.name) for d in report.damage] == [("metadata", path) for path in paths]
    repair(SceneStore.open(scene, "r+"), report)
    assert SceneStore.open(scene).read_index().same_as(before)
    assert check(scene).ok


def test_a_damaged_record_is_dropped_and_its_nodes_stay(scene: Path) -> None:
    flip(next((scene / "journal/L2-0-0-0").glob("*/c.0")))
    store = SceneStore.open(scene, "r+")
    record = read_record(store, "L2/3-3-3")
    assert record is not None
    write_record(store, replace(record, slots=record.slots - 1))
    lost = train_treelet(store, store.read_index(), 0).record
    assert len(check(scene).damage) == 2  # work that waits for its commit is no damage ...
    store.data.remove(store.row_key("params", int(lost.slots[0])))  # ... unless it is lost
    report = check(scene)
    names = ("L0/0-0-0", "L2/0-0-0", "L2/3-3-3")
    assert [(d.kind, d.name) for d in report.damage] == [("journal", name) for name in names]
    done = repair(store, report)
    assert (done.planned_treelets, done.dropped_records) == ((), names)
    assert check(scene).ok


@pytest.mark.parametrize("lost", [True, False])
def test_what_has_no_second_copy_is_said(scene: Path, lost: bool) -> None:
    if lost:
        (scene / "decoder/zarr.json").unlink()
    else:
        flip(next((scene / "decoder").glob("*/c.0")))
    flip(scene / "params/c.0.0")
    report = check(scene)
    assert report.names("group") == ("decoder",)
    store = SceneStore.open(scene, "r+")
    with pytest.raises(DamagedStoreError, match=r"cannot repair decoder"):
        repair(store, report)
    assert check(scene).names("group") == ("decoder",)
    assert not check(scene).damaged_nodes  # the rest is mended all the same


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_the_root_document_is_restored(scene: Path, harm: Callable[[Path], None]) -> None:
    store = SceneStore.open(scene, "r+")
    before, index = store.root, store.read_index()
    slots = store.allocate(3)  # after the commit that kept the copy
    store.write_node(slots[1], table(0, store), bits(0, store))
    harm(scene / "zarr.json")
    with pytest.raises((DamagedStoreError, SceneNotFoundError)):
        SceneStore.open(scene)
    recovered = recover_root(scene)
    assert recovered.read_index().same_as(index)
    assert recovered.header.settings == before.header.settings
    assert recovered.allocate(1)[0] >= slots[2]
    assert check(scene).ok


def test_no_root_to_restore(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(SceneNotFoundError):
        recover_root(tmp_path)
    for copy in scene.glob("index/*/zarr.json"):
        copy.unlink()
    (scene / "zarr.json").unlink()
    with pytest.raises(DamagedStoreError, match="no index generation holds a copy"):
        recover_root(scene)


def test_verify_works_on_any_store(store: SceneStore) -> None:
    index = planned_index(store)
    store.commit(train_treelet(store, index, 0).index)
    store.data.remove(store.row_key("params", 0))
    report = verify(store)
    assert report.damaged_nodes == ("L0/0-0-0",)
    assert report.names("group") == ("decoder",)


def _train_again(path: Path) -> None:
    """As a training does beside a verification: new rows for a treelet, and the old ones go."""
    with SceneStore.open(path, "r+") as store:
        index = store.read_index()
        row = int(np.flatnonzero(index.root_keys == NodeId.parse("L2/3-3-3").key)[0])
        store.commit(train_treelet(store, plan_again(index, [row]), row, seed=store.generation).index)
        collect_garbage(store)


@pytest.mark.parametrize(("moves", "tries", "moved"), [(1, 2, False), (2, 3, False), (9, 3, True)])
def test_what_a_training_replaces_meanwhile_is_read_again(
    scene: Path, moves: int, tries: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0
    real = verification._rows_to_read

    def moving(index: SceneIndex) -> Any:
        nonlocal rounds
        rows = real(index)
        rounds += 1
        if rounds <= moves:
            _train_again(scene)
        return rows

    monkeypatch.setattr(verification, "_rows_to_read", moving)
    report = check(scene)
    assert rounds == tries
    assert report.ok is not moved
    assert report.moved is moved
    assert report.to_json()["moved"] is moved


def test_damage_beside_a_training_is_still_found(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(scene / f"params/c.{slot_of(SceneStore.open(scene).read_index(), 'L1/0-0-0')}.0")
    real, calls = verification._rows_to_read, iter([True])

    def moving(index: SceneIndex) -> Any:
        rows = real(index)
        if next(calls, False):
            _train_again(scene)
        return rows

    monkeypatch.setattr(verification, "_rows_to_read", moving)
    report = check(scene)
    assert report.damaged_nodes == ("L1/0-0-0",)
    assert not report.moved


def test_what_was_verified_before_a_commit_is_not_repaired(scene: Path) -> None:
    """Else fresh work would be undone."""
    flip(scene / f"params/c.{slot_of(SceneStore.open(scene).read_index(), 'L2/3-3-3')}.0")
    report = check(scene)
    assert not report.ok
    _train_again(scene)
    with SceneStore.open(scene, "r+") as store, pytest.raises(StoreError, match="verify it again"):
        repair(store, report)
    assert check(scene).ok
