"""Journal records and checkpoints: complete or absent."""

import logging
from dataclasses import fields, replace

import numpy as np
import pytest
from store_scenes import planned_index, train_treelet

from infnerf_tiles.errors import DamagedStoreError, SettingsError
from infnerf_tiles.store import bundle
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.journal import (
    JournalRecord,
    apply_record,
    drop_record,
    fingerprint,
    read_all,
    read_record,
    rows_exist,
    write_record,
)
from infnerf_tiles.store.location import Location
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import drop_checkpoint, read_checkpoint, write_checkpoint


def same(a: JournalRecord, b: JournalRecord) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(JournalRecord))


def test_records_come_back(store: SceneStore, place: Location) -> None:
    index = planned_index(store)
    records = [train_treelet(store, index, row).record for row in (1, 0)]
    reader = SceneStore.open(place)
    got = read_record(reader, records[0].treelet)
    assert got is not None
    assert same(got, records[0])
    assert [r.treelet for r in read_all(reader)] == [r.treelet for r in reversed(records)]
    write_record(store, replace(records[0], psnr=None, message="again"))
    again = read_record(reader, records[0].treelet)
    assert again is not None
    assert (again.psnr, again.message) == (None, "again")
    drop_record(store, records[0].treelet)
    assert read_record(reader, records[0].treelet) is None
    assert len(read_all(reader)) == 1


def test_a_record_is_never_half(store: SceneStore, place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    record = train_treelet(store, planned_index(store), 0).record

    def killed(self: GuardedStore, key: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GuardedStore, "replace_durably", killed)
        other = replace(record, treelet="L2/3-3-3")
        for half in (replace(record, steps=7, keys=record.keys + 1), other):
            with pytest.raises(KeyboardInterrupt):
                write_record(store, half)
    reader = SceneStore.open(place)
    got = read_record(reader, record.treelet)
    assert got is not None
    assert same(got, record)
    assert read_record(reader, "L2/3-3-3") is None
    assert len(read_all(reader)) == 1
    write_record(store, other)
    assert read_record(reader, "L2/3-3-3") is not None


def test_a_damaged_record_is_left_out_loudly(store: SceneStore, caplog: pytest.LogCaptureFixture) -> None:
    index = planned_index(store)
    records = [train_treelet(store, index, row).record for row in (0, 1)]
    key = next(k for k in store.data.keys("journal/L0-0-0-0") if "/c." in k)
    store.data.write_bytes(key, b"x" * 50)
    with pytest.raises(DamagedStoreError, match="journal/L0-0-0-0 is damaged"):
        read_record(store, "L0/0-0-0")
    with caplog.at_level(logging.WARNING):
        assert [r.treelet for r in read_all(store)] == [records[1].treelet]
    assert "journal/L0-0-0-0 is damaged" in caplog.text


@pytest.mark.parametrize("name", ["../../etc", "L3/5-2", "L3/9-0-0", "", "L1/0-0-0/../.."])
def test_only_node_ids_name_records(store: SceneStore, name: str) -> None:
    with pytest.raises(SettingsError, match="node id"):
        read_record(store, name)
    with pytest.raises(SettingsError, match="node id"):
        write_checkpoint(store, name, {}, {})


def test_apply_record_makes_what_a_commit_needs(store: SceneStore) -> None:
    planned = planned_index(store)
    trained = train_treelet(store, planned, 1)
    got = apply_record(planned, trained.record)
    assert got is not None
    assert got.same_as(trained.index)
    assert rows_exist(store, trained.record)
    store.data.remove(store.row_key("occupancy", int(trained.record.slots[1])))
    assert not rows_exist(store, trained.record)
    assert apply_record(planned_index(store, [int(planned.keys[0])]), trained.record) is None
    failed = apply_record(trained.index, replace(trained.record, status=TreeletState.FAILED))
    assert failed is not None
    assert failed.treelet_states[1] == TreeletState.FAILED
    assert np.array_equal(failed.slots, trained.index.slots)
    stranger = replace(trained.record, keys=trained.record.keys + 1)
    assert apply_record(planned, stranger) is None


def test_fingerprints_tell_settings_apart() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.5}, [1], None)}) == 6
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))


def test_checkpoints(store: SceneStore, place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "CHUNK_BYTES", 1 << 12)
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.standard_normal((3, 1000)).astype(np.float32),
        "step": np.array(7, dtype=np.int64),
        "mask": rng.random(5000) < 0.5,
    }
    assert read_checkpoint(store, "L0/0-0-0") is None
    for step in (1, 2):
        write_checkpoint(store, "L0/0-0-0", {**arrays, "step": np.array(step)}, {"step": step, "rng": [1, 2]})
        got = read_checkpoint(SceneStore.open(place), "L0/0-0-0")
        assert got is not None
        assert got.meta == {"step": step, "rng": [1, 2]}
        assert got.arrays["step"] == step
        np.testing.assert_array_equal(got.arrays["table"], arrays["table"], strict=True)
        np.testing.assert_array_equal(got.arrays["mask"], arrays["mask"], strict=True)
    assert len({key.split("/")[2] for key in store.data.keys("scratch/L0-0-0-0")}) == 2  # head and one version
    drop_checkpoint(store, "L0/0-0-0")
    assert read_checkpoint(store, "L0/0-0-0") is None
    assert not store.data.keys("scratch/L0-0-0-0")


def test_the_last_good_checkpoint_outlives_an_interruption(
    store: SceneStore, place: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(store, "L0/0-0-0", {"a": np.arange(10)}, {})
    with monkeypatch.context() as patch:
        patch.setattr(GuardedStore, "replace_durably", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_checkpoint(store, "L0/0-0-0", {"a": np.arange(20)}, {})
    got = read_checkpoint(SceneStore.open(place), "L0/0-0-0")
    assert got is not None
    assert got.arrays["a"].tolist() == list(range(10))
    store.data.write_bytes("scratch/L0-0-0-0/1/c.0", b"")
    with caplog.at_level(logging.WARNING):
        assert read_checkpoint(SceneStore.open(place), "L0/0-0-0") is None
    assert "starts over" in caplog.text
