"""The contract of a scene store, on every kind of place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from store_scenes import base, bits, header, planned_index, table, trained_scene

from infnerf_tiles.errors import DamagedNodeError, SceneNotFoundError, StoreError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.location import Location
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.stored_cameras import StoredFiles


def test_header_survives_reopening(place: Location) -> None:
    made = SceneStore.create(place, header()).header
    assert made.created
    assert made.package_version
    assert SceneStore.open(place).header == made
    assert replace(made, created="", package_version="") == header()


def test_rows_come_back_bit_equal(store: SceneStore, place: Location) -> None:
    slots, treelets = store.allocate(3), store.allocate_treelets(2)
    for slot in slots:
        store.write_node(slot, table(slot, store), bits(slot, store))
    for slot in treelets:
        store.write_base(slot, base(slot, store))
    reader = SceneStore.open(place)
    for slot in slots:
        np.testing.assert_array_equal(reader.read_node(slot), table(slot, store), strict=True)
        np.testing.assert_array_equal(reader.read_occupancy(slot), bits(slot, store), strict=True)
    for slot in treelets:
        np.testing.assert_array_equal(reader.read_base(slot), base(slot, store), strict=True)


def test_a_row_of_zeros_is_stored(store: SceneStore, place: Location) -> None:
    slot = store.allocate(1)[0]
    store.write_node(slot, np.zeros_like(table(0, store)), np.zeros_like(bits(0, store)))
    assert not SceneStore.open(place).read_node(slot).any()


@pytest.mark.parametrize("slot", [0, 3, 4, 1 << 29, -1])
def test_a_missing_row_is_an_error_and_not_zeros(store: SceneStore, slot: int) -> None:
    with pytest.raises(DamagedNodeError, match=f"params slot {slot} "):
        store.read_node(slot)
    with pytest.raises(DamagedNodeError, match=f"occupancy slot {slot} "):
        store.read_occupancy(slot)
    with pytest.raises(DamagedNodeError, match=f"base slot {slot} "):
        store.read_base(slot)


def test_wrong_rows_are_refused(store: SceneStore) -> None:
    slot = store.allocate(1)[0]
    good, occupied = table(0, store), bits(0, store)
    with pytest.raises(ValueError, match=r"params row: expected float16\[128\], got float32"):
        store.write_node(slot, good.astype(np.float32), occupied)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"params row: expected float16\[128\], got float16\[127\]"):
        store.write_node(slot, good[1:], occupied)
    with pytest.raises(ValueError, match="occupancy row: expected"):
        store.write_node(slot, good, occupied[1:])
    with pytest.raises(ValueError, match="base row: expected"):
        store.write_base(0, base(0, store).ravel())
    with pytest.raises(ValueError, match="params slot: expected 0 to 3, got 4; allocate"):
        store.write_node(4, good, occupied)


def test_arrays_grow_and_old_readers_follow(store: SceneStore, place: Location) -> None:
    first = store.allocate(4)
    store.write_node(first[3], table(3, store), bits(3, store))
    worker, reader = SceneStore.open(place, "r+"), SceneStore.open(place)
    reader.read_node(3)
    more = store.allocate(40)
    assert (first, more) == (range(4), range(4, 44))
    worker.write_node(43, table(43, store), bits(43, store))
    np.testing.assert_array_equal(reader.read_node(43), table(43, store))
    np.testing.assert_array_equal(reader.read_node(3), table(3, store))
    assert SceneStore.open(place).header.capacity >= 44
    assert [store.allocate_treelets(2), store.allocate_treelets(1)] == [range(2), range(2, 3)]


def test_slots_are_never_handed_out_twice(store: SceneStore, place: Location) -> None:
    store.allocate(3)
    assert SceneStore.open(place, "r+").allocate(2) == range(3, 5)
    assert store.allocate(1) == range(5, 6)


def test_index_round_trip(store: SceneStore, place: Location) -> None:
    assert store.read_index().num_nodes == 0
    index = trained_scene(store)
    reader = SceneStore.open(place)
    assert reader.read_index().same_as(index)
    assert reader.generation == store.generation == 2
    assert not index.same_as(planned_index(store))


def test_a_reader_sees_a_commit_only_as_a_whole(store: SceneStore, place: Location) -> None:
    planned = planned_index(store)
    store.commit(planned)
    reader = SceneStore.open(place)
    trained_scene(store, seed=1)
    assert reader.generation == 1
    assert reader.read_index().same_as(store.read_index())
    assert reader.generation == store.generation


def test_a_generation_that_goes_while_it_is_read(
    store: SceneStore, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = planned_index(store)
    store.commit(planned)
    reader = SceneStore.open(place)
    real, asked = SceneStore.read_generation, []

    def slow(self: SceneStore, generation: int) -> SceneIndex:
        asked.append(generation)
        if len(asked) == 1:  # two commits: the spare generation goes too
            store.commit(planned)
            store.commit(planned)
        return real(self, generation)

    monkeypatch.setattr(SceneStore, "read_generation", slow)
    assert reader.read_index().same_as(planned)
    assert (asked, reader.generation) == ([1, 3], 3)


def test_commit_on_top_of_another_is_refused(store: SceneStore, place: Location) -> None:
    other = SceneStore.open(place, "r+")
    store.commit(planned_index(store))
    with pytest.raises(StoreError, match="expected generation 0, but 1"):
        other.commit(planned_index(store))
    other.allocate(1)  # sees the new root document, but has not read the index
    with pytest.raises(StoreError, match="expected generation 0, but 1"):
        other.commit(planned_index(store))
    other.read_index()
    assert other.commit(planned_index(store)) == 2


def test_commit_refuses_a_slot_without_a_row(store: SceneStore) -> None:
    index = planned_index(store)
    store.allocate(8)
    slots = index.slots.copy()
    slots[2] = 5
    with pytest.raises(DamagedNodeError, match="params slot 5 to be written"):
        store.commit(replace(index, slots=slots))
    assert store.generation == 0


def test_small_groups(store: SceneStore, place: Location) -> None:
    assert not store.has_small("decoder")
    with pytest.raises(StoreError, match="no decoder yet"):
        store.read_small("decoder")
    arrays = {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        "scalar": np.array(2.5),
        "nothing": np.empty((0, 3), np.int64),
        "flags": np.array([True, False]),
    }
    for values in (arrays, {**arrays, "weight": np.ones((100, 100), np.float16)}):
        store.write_small("decoder", values)
        got = SceneStore.open(place).read_small("decoder")
        assert list(got) == list(values)
        for name, value in values.items():
            np.testing.assert_array_equal(got[name], value, strict=True)
    with pytest.raises(ValueError, match="small group"):
        store.write_small("params", arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain numeric dtype"):
        store.write_small("decoder", {"text": np.array(["a"])})


def test_cameras(store: SceneStore, place: Location) -> None:
    pose = np.concatenate([np.eye(3), [[1 / 3], [2.0], [1e6]]], axis=1)
    cameras = PosedCameras(
        cameras=(Camera("PINHOLE", 40, 30, (50.1, 50.2, 20.0, 15.0)), Camera("SIMPLE_PINHOLE", 4, 3, (5.0, 2.0, 1.5))),
        camera_index=np.array([1, 0, 0], np.int32),
        camera_to_world=np.stack([pose] * 3),
    )
    names = ("a.jpg", "ünter/B.JPG", "odd\udcff.png")
    store.write_cameras(cameras, names, np.array([True, False, False]))
    got, got_names, is_test = SceneStore.open(place).read_cameras()
    assert (got.cameras, got_names, is_test.tolist()) == (cameras.cameras, names, [True, False, False])
    np.testing.assert_array_equal(got.camera_index, cameras.camera_index, strict=True)
    np.testing.assert_array_equal(got.camera_to_world, cameras.camera_to_world, strict=True)
    with pytest.raises(ValueError, match="photo names: expected 3, got 2"):
        store.write_cameras(cameras, names[:2], is_test)
    assert SceneStore.open(place).read_files() is None
    files = StoredFiles(np.arange(3), np.arange(3) + 1, np.arange(48, dtype=np.uint8).reshape(3, 16))
    store.write_cameras(cameras, names, is_test, files)
    for kept, array in zip(SceneStore.open(place).read_files() or (), files, strict=True):
        np.testing.assert_array_equal(kept, array, strict=True)
    with pytest.raises(ValueError, match="digest"):
        store.write_cameras(cameras, names, is_test, files._replace(digest=files.digest[:2]))


def test_a_reader_changes_nothing(store: SceneStore, place: Location) -> None:
    reader = SceneStore.open(place)
    for change in (
        lambda: reader.write_node(0, table(0, store), bits(0, store)),
        lambda: reader.write_base(0, base(0, store)),
        lambda: reader.allocate(1),
        lambda: reader.commit(planned_index(store)),
        lambda: reader.write_small("decoder", {}),
        lambda: reader.exclusive().__enter__(),
    ):
        with pytest.raises(StoreError, match="opened for reading"):
            change()


def test_create_and_open_name_what_is_wrong(store: SceneStore, place: Location, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is one already"):
        SceneStore.create(place, header())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(StoreError, match=r"expected an empty place, found a\.jpg"):
        SceneStore.create(tmp_path / "photos", header())
    with pytest.raises(SceneNotFoundError, match="no scene at"):
        SceneStore.open(tmp_path / "photos")
    with pytest.raises(SceneNotFoundError, match="no scene at"):
        SceneStore.open(tmp_path / "nowhere", "r+")
    assert not (tmp_path / "nowhere").exists()


def test_plain_zarr_reads_what_the_root_document_describes(tmp_path: Path) -> None:
    with SceneStore.create(tmp_path / "scene.zarr", header()) as store:
        index = trained_scene(store)
    scene = zarr.open_group(tmp_path / "scene.zarr", mode="r")
    rows = {name: scene.attrs["rows"][name]["tensors"][0] for name in ("params", "occupancy", "base")}
    slot = int(index.slots[3])
    for name, expected in (("params", table(slot, store)), ("occupancy", bits(slot, store))):
        spec, row = rows[name], scene[name][slot]
        tensor = row.view(spec["dtype"])[spec["offset"] :].reshape(spec["shape"])
        np.testing.assert_array_equal(tensor.ravel(), expected)
    np.testing.assert_array_equal(scene["base"][0].reshape(rows["base"]["shape"]), base(0, store))
    generation = scene[f"index/{scene.attrs['generation']}"]
    np.testing.assert_array_equal(generation["key"][:], index.keys)
    np.testing.assert_array_equal(generation["slot"][:], index.slots)
    group = scene["decoder"]
    for spec in group.attrs["tensors"]:
        data = group[str(group.attrs["version"])][spec["offset"] :]
        tensor = np.frombuffer(data.tobytes(), spec["dtype"], int(np.prod(spec["shape"]))).reshape(spec["shape"])
        np.testing.assert_array_equal(tensor, store.read_small("decoder")[spec["name"]])
    members = {name for name, _ in scene.members(max_depth=None)}  # warns of anything that is not Zarr
    assert {"params", "index", "index/2/slot", "journal/L0-0-0-0", "decoder"} <= members
