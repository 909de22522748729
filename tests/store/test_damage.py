"""Whatever happens to the bytes of a scene is noticed or does no harm; nothing damaged is ever handed out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs.zstd import Zstd
from store_scenes import bits, header, table, trained_scene
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from infnerf_tiles.errors import (
    DamagedNodeError,
    DamagedStoreError,
    InfnerfError,
    SceneNotFoundError,
    StoreFormatError,
)
from infnerf_tiles.store.chunk_codec import zstd_content_size
from infnerf_tiles.store.facts import info
from infnerf_tiles.store.index import NO_SLOT
from infnerf_tiles.store.journal import read_record, record_names
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import read_checkpoint, write_checkpoint
from infnerf_tiles.store.verify import verify


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete scene on disk; copy it before harming it."""
    path = tmp_path_factory.mktemp("intact") / "scene.zarr"
    with SceneStore.create(path, header()) as store:
        trained_scene(store)
        write_checkpoint(store, "L0/0-0-0", {"a": np.arange(5.0)}, {"step": 3})
    return path


@pytest.fixture
def scene(intact: Path, tmp_path: Path) -> Path:
    """A copy of the scene."""
    return Path(shutil.copytree(intact, tmp_path / "scene.zarr"))


def everything(path: Path) -> dict[str, Any]:
    """All that a reader can get out of a scene: value or error by name. A scene that cannot be opened is one error."""
    got: dict[str, Any] = {}

    def attempt(name: str, read: Callable[[], Any]) -> None:
        try:
            got[name] = read()
        except InfnerfError as error:
            got[name] = error

    try:
        store = SceneStore.open(path)
        index = store.read_index()
    except InfnerfError as error:
        return {"scene": error}
    got["header"] = store.header
    got["index"] = [getattr(index, name) for name in vars(index)]
    for slot in index.slots[index.slots != NO_SLOT].tolist():
        attempt(f"params {slot}", lambda slot=slot: store.read_node(slot))
        attempt(f"occupancy {slot}", lambda slot=slot: store.read_occupancy(slot))
    for slot in index.base_slots.tolist():
        attempt(f"base {slot}", lambda slot=slot: store.read_base(slot))
    for group in ("decoder", "appearance"):
        attempt(group, lambda group=group: list(store.read_small(group).values()))
    for treelet in record_names(store):
        attempt(treelet, lambda treelet=treelet: list(vars(read_record(store, treelet)).values()))
    checkpoint = read_checkpoint(store, "L0/0-0-0")
    got["checkpoint"] = ValueError() if checkpoint is None else list(checkpoint.arrays.values())
    return got


def assert_noticed_or_harmless(got: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Nothing in `got` differs from `expected` but by being an error, or (a lost record) by not being there."""
    for name, value in got.items():
        if not isinstance(value, Exception):
            np.testing.assert_equal(value, expected[name], err_msg=f"{what}: {name}")


def errors(got: dict[str, Any]) -> list[str]:
    return [name for name, value in got.items() if isinstance(value, Exception)]


def test_a_flipped_bit_in_any_file_is_noticed_or_harmless(scene: Path) -> None:
    expected = everything(scene)
    assert not errors(expected)
    rng = np.random.default_rng(3)
    unnoticed = []
    for path in sorted(p for p in scene.rglob("*") if p.is_file()):
        name = path.relative_to(scene).as_posix()
        data = path.read_bytes()
        for bit in rng.integers(0, 8 * len(data), 2).tolist():
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            got = everything(scene)
            assert_noticed_or_harmless(got, expected, f"{name}, bit {bit}")
            if not errors(got):
                unnoticed.append(name)
        path.write_bytes(data)
    # Without effect is only what is never read: containers, the spare generation, and free-form metadata fields
    assert not [name for name in unnoticed if not name.endswith("zarr.json") and not name.startswith("index/1/")]


def test_verify_detects_two_hundred_flips_or_they_are_harmless(scene: Path) -> None:
    """Half of the bits are drawn over all bytes of the scene, half over its files, so that small files get their share.

    Provably harmless is a flip after which everything that any reader gets out of the scene is the same. That happens
    in documents (zarr.json) only: in their white space, in the words that say nothing (empty attributes), and in the
    plain documents of containers. The training state is checked where it is read: `verify` leaves it alone, since
    training starts over without it.
    """
    shutil.rmtree(scene / "scratch")
    (scene / "scratch").mkdir()
    expected = everything(scene)
    paths = sorted(p for p in scene.rglob("*") if p.is_file())
    sizes = np.array([path.stat().st_size for path in paths])
    rng = np.random.default_rng(11)
    chosen = [*rng.choice(len(paths), 100, p=sizes / sizes.sum()), *rng.integers(0, len(paths), 100)]
    harmless = []
    for at in chosen:
        path, bit = paths[at], int(rng.integers(0, 8 * sizes[at]))
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            with SceneStore.open(scene) as store:
                detected = not verify(store).ok
        except InfnerfError:
            detected = True
        if not detected:
            got = everything(scene)
            assert not errors(got), path
            assert got.keys() == expected.keys()
            assert_noticed_or_harmless(got, expected, f"{path}, bit {bit}")
            harmless.append(path.relative_to(scene).as_posix())
        path.write_bytes(data)
    assert all(name.endswith("zarr.json") for name in harmless), harmless
    assert len(harmless) < 40, "most flips are detected"


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "other size", "directory"])
def test_harm_to_any_chunk_is_noticed(scene: Path, harm: str) -> None:
    expected = everything(scene)
    for path in sorted(p for p in scene.rglob("c.*") if not p.relative_to(scene).as_posix().startswith("index/1/")):
        data = path.read_bytes()
        path.unlink()
        if harm == "empty":
            path.touch()
        elif harm == "truncated":
            path.write_bytes(data[:-1])
        elif harm == "other size":
            path.write_bytes(encoded(b"a chunk of another array"))
        elif harm == "directory":
            path.mkdir()
        got = everything(scene)
        assert len(errors(got)) == 1 or path.parent.parent.parent.name == "index", path
        assert_noticed_or_harmless(got, expected, str(path))
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)


def encoded(data: bytes) -> bytes:
    """A chunk with these bytes as its content, and a checksum that is right."""
    chunks: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(chunks),
        name="a",
        shape=(len(data),),
        chunks=(len(data),),
        dtype="uint8",
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
    )
    array[:] = np.frombuffer(data, dtype=np.uint8)
    return bytes(chunks["a/c/0"].to_bytes())


def test_a_damaged_row_is_named_and_the_rest_is_usable(scene: Path) -> None:
    path = scene / "params" / "c.1.0"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    store = SceneStore.open(scene)
    with pytest.raises(DamagedNodeError, match=r"params slot 1 cannot be used .*checksum.*'verify --repair'"):
        store.read_node(1)
    np.testing.assert_array_equal(store.read_occupancy(1), bits(1, store))
    np.testing.assert_array_equal(store.read_node(2), table(2, store))


def test_a_compressed_bomb_is_not_unpacked(scene: Path) -> None:
    (scene / "params" / "c.0.0").write_bytes(encoded(b"1" * (1 << 20)))
    with pytest.raises(DamagedNodeError, match="decodes to 1048576 bytes, expected 256"):
        SceneStore.open(scene).read_node(0)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65791, 65792, 1 << 20])
def test_zstd_content_size_is_read_from_any_frame(size: int) -> None:
    assert zstd_content_size(bytes(Zstd(level=1).encode(bytes(size))[:18])) == size
    assert zstd_content_size(b"not a zstd frame at all") is None


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_another_format_version_is_refused(scene: Path) -> None:
    edit(scene / "zarr.json", lambda d: d["attributes"].update(format_version=2))
    with pytest.raises(StoreFormatError, match="expected format version 1, got 2"):
        SceneStore.open(scene)


def test_another_zarr_store_is_no_scene(tmp_path: Path) -> None:
    zarr.create_array(LocalStore(tmp_path / "other"), shape=(2,), dtype="int32")
    with pytest.raises(StoreFormatError, match="got a Zarr store of another kind"):
        SceneStore.open(tmp_path / "other")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [4, 1 << 50]), ("shape", [2, 128]), ("data_type", "float32"), ("codecs", []), ("fill_value", 1.0)],
)
def test_array_metadata_must_be_as_declared(scene: Path, key: str, value: object) -> None:
    edit(scene / "params" / "zarr.json", lambda d: d.update({key: value}))
    store = SceneStore.open(scene)
    with pytest.raises(DamagedStoreError, match=rf"params/zarr.json: expected {key}"):
        store.read_node(0)
    store.read_occupancy(0)


def test_a_hand_edited_root_is_noticed(scene: Path) -> None:
    edit(scene / "zarr.json", lambda d: d["attributes"]["settings"]["training"].update(steps=501))
    with pytest.raises(DamagedStoreError, match="does not match its checksum"):
        SceneStore.open(scene)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attributes": 3}', "\ufeff{}", "[" * 100_000])
def test_a_root_that_is_no_document(scene: Path, text: str) -> None:
    (scene / "zarr.json").write_text(text)
    with pytest.raises((DamagedStoreError, StoreFormatError)):
        SceneStore.open(scene)


def test_a_lost_root_is_no_scene(scene: Path) -> None:
    (scene / "zarr.json").unlink()
    with pytest.raises(SceneNotFoundError, match="no scene at"):
        SceneStore.open(scene)


def test_a_damaged_decoder_says_what_to_do(scene: Path) -> None:
    next((scene / "decoder").glob("*/c.*")).unlink()
    with pytest.raises(DamagedStoreError, match=r"decoder is damaged .* train the scene again from the seed stage"):
        SceneStore.open(scene).read_small("decoder")


def test_oversized_files_are_not_read(scene: Path) -> None:
    os.truncate(scene / "params/c.0.0", 1 << 40)  # sparse: takes no room
    with pytest.raises(DamagedNodeError, match="more than the"):
        SceneStore.open(scene).read_node(0)
    os.truncate(scene / "zarr.json", 1 << 40)
    with pytest.raises(DamagedStoreError, match="more than the"):
        SceneStore.open(scene)


def test_info_counts(scene: Path) -> None:
    facts = info(SceneStore.open(scene))
    files = [p for p in scene.rglob("*") if p.is_file()]
    assert (facts.bytes, facts.files) == (sum(p.stat().st_size for p in files), len(files))
    assert (facts.nodes, facts.trained_nodes, facts.treelets, facts.trained_treelets) == (5, 5, 2, 2)
    assert [(level.level, level.nodes, level.trained_nodes) for level in facts.levels] == [
        (0, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 1),
    ]  # fmt: skip
    assert facts.levels[2].gsd == 4096 / 4 / 8
    assert json.loads(json.dumps(facts.to_json()))["georeference"]["crs"] == "EPSG:2178"
