"""train --redo: nothing of what is trained again is gone on from, and a kill in between changes nothing about that."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infnerf_tiles.pipelines.cluster import Workplace
from infnerf_tiles.pipelines.plan import Budgets
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, tiny, write_city

from infnerf_tiles.errors import DamagedStoreError, InfnerfError
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import redo, tasks

SETTINGS = tiny("training.passes=0.6", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60")
ROOT = "L0/0-0-0"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("redo")
    scene = build_scene(write_city(folder / "city"), folder / "done.zarr", SETTINGS)
    assert train(scene, threads=1).remaining == 0
    return scene


@pytest.fixture(scope="module")
def interrupted(done: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained root, a treelet below it stopped half-way, with its checkpoint, and others not begun."""
    scene = copy_scene(done, tmp_path_factory.mktemp("redo") / "interrupted.zarr")
    clock = itertools.count(0.0, 1000.0)
    told: list[str] = []

    def interrupt(name: str, share: float, _: float) -> None:
        told.append(name)
        if name.startswith("L1/") and share > 0.5 and told.count(name) > 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.time, "monotonic", lambda: next(clock))
        patch.setattr(tasks, "_KEEPING", 0.0)  # that clock would make it seem slow
        with pytest.raises(KeyboardInterrupt):
            train(scene, redo=ROOT, threads=1, progress=interrupt)
    with SceneStore.open(scene) as store:
        assert [name for name in store.data.names("scratch") if name.startswith("L1")]
        assert TreeletState.PLANNED in store.read_index().treelet_states
    return scene


def first_shares(scene: str, **options: Any) -> dict[str, float]:
    """The share done that each training told first: not about 0 for one that went on from a checkpoint."""
    shares: dict[str, float] = {}

    def tell(name: str, share: float, _: float) -> None:
        shares.setdefault(name, share)

    assert train(scene, threads=1, progress=tell, **options).failed == ()
    return shares


def test_a_checkpoint_is_gone_on_from_until_its_treelet_is_planned_again(interrupted: str, tmp_path: Path) -> None:
    kept = first_shares(copy_scene(interrupted, tmp_path / "kept.zarr"))
    assert max(kept.values()) > 0.4
    again = first_shares(copy_scene(interrupted, tmp_path / "again.zarr"), redo=ROOT)
    assert {"seed", ROOT} < again.keys()
    assert max(again.values()) < 0.4


def test_a_checkpoint_that_stands_on_another_decoder_is_not_gone_on_from(interrupted: str, tmp_path: Path) -> None:
    scene = copy_scene(interrupted, tmp_path / "scene.zarr")
    with SceneStore.open(scene, "r+") as store:
        arrays = store.read_small("decoder")
        store.write_small("decoder", {name: array * 1.01 for name, array in arrays.items()})
    assert max(first_shares(scene).values()) < 0.4


def test_a_checkpoint_that_stands_on_another_parent_is_not_gone_on_from(interrupted: str, tmp_path: Path) -> None:
    scene = copy_scene(interrupted, tmp_path / "scene.zarr")
    with SceneStore.open(scene, "r+") as store:
        index = store.read_index()
        slot = store.allocate_treelets(1).start
        store.write_base(slot, store.read_base(int(index.base_slots[index.root_keys == 0][0])))
        index.base_slots[index.root_keys == 0] = slot
        store.commit(index)
    assert max(first_shares(scene).values()) < 0.4


def _dying_at(name: str, call: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        owner: Any = SceneStore if name == "commit" else redo
        real = getattr(owner, name)
        calls = itertools.count()

        def dies(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, dies)

    return patch


@pytest.mark.parametrize(
    ("name", "call"),
    [("drop_record", 1), ("drop_checkpoint", 0), ("commit", 0), ("drop_bundle", 0), ("drop_bundle", 1)],
)
def test_a_redo_that_dies_is_finished_by_the_next_training(
    name: str, call: int, done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(done, tmp_path / "scene.zarr")
    with monkeypatch.context() as patch:
        _dying_at(name, call)(patch)
        with pytest.raises(KeyboardInterrupt):
            train(scene, redo=ROOT, threads=1)
    summary = train(scene, threads=1, stop=lambda: True)
    assert [report.treelet for report in summary.reports] == ["seed"]
    assert summary.skipped == 0
    with SceneStore.open(scene) as store:
        assert "redo" not in store.data.names("scratch")


def test_a_redo_that_cannot_be_read_is_told_once(done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = copy_scene(done, tmp_path / "scene.zarr")
    with monkeypatch.context() as patch:
        _dying_at("drop_record", 0)(patch)
        with pytest.raises(KeyboardInterrupt):
            train(scene, redo=ROOT, threads=1)
    (Path(scene) / "scratch" / "redo" / "zarr.json").write_bytes(b"{")
    with pytest.raises(DamagedStoreError, match="give --redo again"):
        train(scene, threads=1)
    assert train(scene, threads=1).treelets == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"redo": ROOT, "budgets": Budgets(ram=10_000_000)},
        {"redo": ROOT, "place": Workplace(scheduler="tcp://127.0.0.1:1")},
        {"redo": "L9/0-0-0"},
    ],
    ids=["budget", "scheduler", "node"],
)
def test_a_redo_that_cannot_run_gives_nothing_up(
    done: str, tmp_path: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infnerf_tiles.pipelines.cluster._CONNECT_SECONDS", 0.5)
    scene = copy_scene(done, tmp_path / "kept.zarr")
    with SceneStore.open(scene) as store:
        before = store.read_index()
    with pytest.raises(InfnerfError):
        train(scene, **asked)
    with SceneStore.open(scene) as store:
        after = store.read_index()
        assert store.has_small("decoder")
    assert np.array_equal(after.treelet_states, before.treelet_states)
    assert np.array_equal(after.slots, before.slots)


def test_states_that_take_long_to_keep_are_kept_seldom(
    done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    kept: list[tuple[str, float]] = []
    write = tasks.write_checkpoint

    def slow(store: SceneStore, treelet: str, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
        nonlocal now
        write(store, treelet, arrays, facts)
        now += 10.0
        kept.append((facts["stage"], now))

    def second(*_: Any) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(tasks.time, "monotonic", lambda: now)
    monkeypatch.setattr(tasks, "write_checkpoint", slow)
    settings = tiny(
        "training.passes=3", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60",
        "training.checkpoint_seconds=2", "training.samples_per_step=256",
    )  # fmt: skip
    scene = copy_scene(done, tmp_path / "slow.zarr")
    train(scene, redo=ROOT, threads=1, progress=second, settings=settings, accept_changes=True)
    pauses = [later - then for (a, then), (b, later) in itertools.pairwise(kept) if a == b]
    assert pauses
    assert min(pauses) >= 20 * 10.0
