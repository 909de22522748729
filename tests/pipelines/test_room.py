"""build: what an interrupted one left is no obstacle; a scene that a process holds, and other files, are left alone."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.room import check_room
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, tiny, write_city

from infnerf_tiles.errors import StoreError
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify

HOLDER = """
import sys, time
from infnerf_tiles.store.scene_store import SceneStore
with SceneStore.open(sys.argv[1], "r+") as store, store.exclusive():
    print("held", flush=True)
    sys.stdin.readline()
    store.commit(store.read_index())
"""


class Killed(Exception):
    """Nobody expects it."""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("room") / "city")


def count_writes(city: Path, place: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = dies_at(patch, 10**9)
        build_scene(city, place)
    return next(calls)


def dies_at(patch: pytest.MonkeyPatch, number: int) -> "itertools.count[int]":
    """Every write of an object counts, also the durable ones."""
    calls = itertools.count()
    real, replace = GuardedStore.set, GuardedStore.replace_durably

    async def write(self: GuardedStore, key: str, value: Any) -> None:
        if next(calls) == number:
            raise Killed
        await real(self, key, value)

    def durable(self: GuardedStore, key: str, data: bytes) -> None:
        if next(calls) == number:
            raise Killed
        replace(self, key, data)

    patch.setattr(GuardedStore, "set", write)
    patch.setattr(GuardedStore, "replace_durably", durable)
    return calls


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_build_goes_on_wherever_another_was_interrupted(city: Path, tmp_path: Path, overwrite: bool) -> None:
    total = count_writes(city, tmp_path / "count.zarr")
    assert total > 15
    for number in sorted({0, 1, 3, total // 2, total - 2, total - 1}):
        place = tmp_path / f"{number}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            dies_at(patch, number)
            with pytest.raises(Killed):
                build_scene(city, place)
        (place / "zarr.json.0123.partial").write_bytes(b"{")
        with SceneStore.open(build_scene(city, place, overwrite=overwrite)) as store:
            assert store.read_index().num_nodes > 1
            assert verify(store).ok


def test_a_scene_without_a_generation_is_told_as_what_it_is(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = str(tmp_path / "scene.zarr")

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SceneStore, "commit", die)
        with pytest.raises(Killed):
            build_scene(city, tmp_path / "scene.zarr")
    for use in (train, Scene.open, lambda place: add_photos(city, place)):
        with pytest.raises(StoreError, match=r"'build' was interrupted.*build it again"):
            use(scene)
    build_scene(city, tmp_path / "scene.zarr")
    with SceneStore.open(scene) as store:
        store.check_built()


def test_an_interrupted_overwriting_is_gone_on_with(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "scene.zarr"
    build_scene(city, place)
    (place / "params" / "c.7.0").write_bytes(b"a row")
    calls = itertools.count()
    real = os.rmdir

    def rmdir(*arguments: Any, **options: Any) -> None:
        if next(calls) == 12:
            raise Killed
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", rmdir)
        with pytest.raises(Killed):
            build_scene(city, place, overwrite=True)
    assert list(place.iterdir())
    assert not (place / "zarr.json").exists()
    build_scene(city, place)
    assert not (place / "params" / "c.7.0").exists()


def test_a_scene_that_another_process_holds_is_not_overwritten(city: Path, tmp_path: Path) -> None:
    place = tmp_path / "scene.zarr"
    build_scene(city, place)
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process"):
            build_scene(city, place, tiny("octree.max_level=1"), overwrite=True)
        holder.communicate("\n")
    assert holder.returncode == 0
    with SceneStore.open(str(place)) as store:
        assert store.header.max_level != 1
        assert verify(store).ok


def test_a_scene_whose_root_document_is_lost_is_only_overwritten_when_asked(city: Path, tmp_path: Path) -> None:
    place = tmp_path / "scene.zarr"
    build_scene(city, place)
    (place / "zarr.json").unlink()
    with pytest.raises(StoreError, match="verify --repair"):
        build_scene(city, place)
    build_scene(city, place, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_that_happen_to_have_a_known_name_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "place" / "cameras").mkdir(parents=True)
    (tmp_path / "place" / "cameras" / "left.txt").write_text("x")
    with pytest.raises(StoreError):
        check_room(str(tmp_path / "place"), overwrite)
